"""The operator's forward pass against the reference in float64, and the contract of its schema."""

import re
import threading

import pytest
import torch
from ops_cases import ACTIVATIONS, NAMES, SHAPES, compute, copy_of, error, expect, layouts, make_arguments

from adapterx import ops

WITHOUT = ((), ("residual",), ("down_bias",), ("up_bias",), ("residual", "down_bias", "up_bias"))


def test_schemas_are_frozen_and_no_default_changes_numbers():
    # Files written by one version are read by the next: TorchScript and .pt2 leave out arguments equal to a default.
    # The defaults that there are say that something is absent; what shape weights must have then keeps it so.
    forward = (
        "(Tensor hidden_states, Tensor? residual, Tensor down_weight, Tensor? down_bias, Tensor up_weight, "
        "Tensor? up_bias, str activation, float scaling, Tensor? adapter_indices=None) -> "
    )
    schemas = {
        "bottleneck_adapter": forward + "Tensor",
        "bottleneck_adapter_train": forward + "(Tensor output, Tensor pre_activation)",
        "bottleneck_adapter_backward": (
            "(Tensor grad_output, Tensor? hidden_states, Tensor? pre_activation, Tensor? down_weight, "
            "Tensor? up_weight, str activation, float scaling, bool add_grad_output, bool[5] output_mask, "
            "Tensor? adapter_indices=None, int num_adapters=0) -> (Tensor grad_hidden_states, Tensor grad_down_weight, "
            "Tensor grad_down_bias, Tensor grad_up_weight, Tensor grad_up_bias)"
        ),
        "sort_tokens": "(Tensor adapter_indices, SymInt num_tokens, int num_adapters) -> Tensor",
        "build_info": "() -> str",
    }
    for name, schema in schemas.items():
        overload = getattr(torch.ops.adapterx, name).default
        assert str(overload._schema) == f"adapterx::{name}{schema}"
        defaults = {a.name: a.default_value for a in overload._schema.arguments if a.has_default_value()}
        assert defaults.items() <= {"adapter_indices": None, "num_adapters": 0}.items()
        assert torch.Tag.pt2_compliant_tag in overload.tags


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_activation(activation, dtype):
    arguments = make_arguments((33,), 24, 24, 10, dtype=dtype)
    exact = expect(copy_of(arguments, torch.float64), activation)
    assert error(compute(arguments, activation), exact) < (1e-14 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("without", WITHOUT, ids=lambda names: "-".join(names) or "all")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_absent_arguments(shape, without):
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        arguments = make_arguments(*shape, dtype=dtype, without=without)
        output = compute(arguments, "gelu", -1.3)
        assert output.shape == (*shape[0], shape[2])
        assert output.is_contiguous()
        assert error(output, expect(copy_of(arguments, torch.float64), "gelu", -1.3)) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("without", [(), ("down_bias", "up_bias")], ids=["biases", "bare"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_low_precision_is_at_most_twice_as_inexact_as_pytorch(shape, without, dtype):
    # On the branch alone: beside the residual an error of the branch would drown.
    arguments = make_arguments(*shape, dtype=dtype, without=("residual", *without))
    exact = expect(copy_of(arguments, torch.float64))
    output = compute(arguments)
    assert output.dtype == dtype
    assert error(output, exact) <= 2 * error(expect(arguments), exact) + 1e-5


COPY_FREE = ("rows of a wider matrix", "every other row", "three dimensions, strided", "one row, strided")


@pytest.mark.parametrize("layout", layouts())
def test_layouts_of_hidden_states_and_residual(layout):
    hidden_states = layouts()[layout]
    size = hidden_states.shape[-1]
    arguments = [hidden_states, hidden_states, *make_arguments((), size, size, 5)[2:]]
    torch.testing.assert_close(compute(arguments), expect(arguments))
    separate = [hidden_states, layouts()[layout], *arguments[2:]]
    torch.testing.assert_close(compute(separate), expect(separate))


@pytest.mark.parametrize("layout", COPY_FREE)
def test_strided_rows_are_read_in_place(layout):
    hidden_states = layouts()[layout]
    arguments = [hidden_states, hidden_states, *make_arguments((), 24, 24, 5)[2:]]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        compute(arguments)
    called = {event.name for event in profile.events()}
    assert "adapterx::bottleneck_adapter" in called
    assert not called & {"aten::copy_", "aten::clone"}


def test_layouts_of_weights():
    arguments = make_arguments((6,), 12, 10, 5)
    arguments[2] = torch.randn(12, 5, dtype=torch.float64).t()
    arguments[3] = torch.randn(10, dtype=torch.float64)[::2]
    arguments[4] = torch.randn(10, 15, dtype=torch.float64)[:, ::3]
    arguments[5] = torch.randn(1, dtype=torch.float64).expand(10)
    torch.testing.assert_close(compute(arguments), expect(arguments))


@pytest.mark.parametrize("leading", [(0,), (2, 0, 3)])
def test_no_tokens(leading):
    output = compute(make_arguments(leading, 8, 6, 4))
    assert output.shape == (*leading, 6)


def test_zero_up_projection_returns_the_residual_bit_for_bit():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        arguments = make_arguments((33,), 24, 24, 10, dtype=dtype)
        arguments[4].zero_()
        arguments[5].zero_()
        assert torch.equal(compute(arguments), arguments[1])


def test_the_result_is_new_and_the_arguments_are_left_alone():
    arguments = make_arguments((9,), 24, 24, 10)
    before = copy_of(arguments)
    output = compute(arguments, "identity", 0.0)
    assert output.data_ptr() not in {tensor.data_ptr() for tensor in arguments}
    assert all(torch.equal(tensor, old) for tensor, old in zip(arguments, before, strict=True))


def test_the_same_input_gives_the_same_bits():
    for dtype in (torch.float32, torch.bfloat16):
        arguments = make_arguments((301,), 96, 96, 48, dtype=dtype)
        first = compute(arguments)
        assert all(torch.equal(compute(arguments), first) for _ in range(3))


def test_rows_do_not_depend_on_each_other():
    arguments = make_arguments((130,), 24, 24, 10)
    changed = copy_of(arguments)
    changed[0][64] = float("nan")
    ours, theirs = compute(arguments), compute(changed)
    keep = torch.arange(130) != 64
    torch.testing.assert_close(theirs[keep], ours[keep])
    assert theirs[64].isnan().all()


def test_threads_of_python_and_of_the_pool():
    arguments = make_arguments((300,), 64, 64, 16)
    exact = expect(arguments)
    outputs = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs.append(compute(arguments))
        callers = [threading.Thread(target=lambda: outputs.append(compute(arguments))) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(before)
    assert len(outputs) == 7
    for output in outputs:
        torch.testing.assert_close(output, exact)


def test_meta_tensors_have_shapes_only():
    arguments = [tensor.to("meta") for tensor in make_arguments((5, 3), 8, 6, 4, dtype=torch.bfloat16)]
    output = compute(arguments)
    assert output.device.type == "meta"
    assert output.shape == (5, 3, 6)
    assert output.dtype == torch.bfloat16


def test_build_info():
    info = ops.build_info()
    cuda = {"cuda", "cuda_architectures", "plan_table"}
    assert set(info) == {"version", "compiler", "torch", "cpu_capability", *cuda}
    assert len({bool(info[key]) for key in cuda}) == 1  # all or none
    assert torch.__version__.startswith(info["torch"])
    assert info["cpu_capability"] in {"avx512_bf16", "avx512", "avx2", "baseline", "emulated"}


@pytest.fixture
def without_cuda(capfd):
    """Let what is registered for CUDA in a library without its kernels compute on CPU tensors; it says so each time."""
    if ops.build_info()["cuda"]:
        pytest.skip("this library has CUDA kernels")
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)

    def call(name, *arguments):
        try:
            return getattr(torch.ops.adapterx, name).default._op_dk(torch._C.DispatchKey.CUDA, *arguments)
        finally:
            said = re.search(r"built without CUDA kernels.*ADAPTERX_CUDA=1 pip install", capfd.readouterr().err)
            assert bool(said) == (name != "sort_tokens")

    yield call
    torch.set_warn_always(before)


def test_cuda_tensors_in_a_library_without_cuda_kernels(without_cuda):
    arguments = make_arguments()
    torch.testing.assert_close(without_cuda("bottleneck_adapter", *arguments, "gelu", 0.7), expect(arguments))
    output, pre_activation = without_cuda("bottleneck_adapter_train", *arguments, "gelu", 0.7)
    torch.testing.assert_close(output, expect(arguments))
    hidden_states, _, down_weight, _, up_weight, _ = arguments
    rest = (hidden_states, pre_activation, down_weight, up_weight, "gelu", 0.7, False, [True] * 5)
    ours = without_cuda("bottleneck_adapter_backward", torch.ones_like(output), *rest)
    theirs = torch.ops.adapterx.bottleneck_adapter_backward(torch.ones_like(output), *rest)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_grouped_cuda_tensors_in_a_library_without_cuda_kernels(without_cuda):
    """With indices as they are and as sort_tokens leaves them, and tokens of another adapter that are not finite."""
    hidden_states, residual, down, down_bias, up, up_bias = make_arguments((4, 3))
    stacked = [torch.stack([tensor, tensor + 0.1]) for tensor in (down, down_bias, up, up_bias)]
    hidden_states[2] = torch.nan
    indices = torch.tensor([1, -1, 0, 1])
    ordered = without_cuda("sort_tokens", indices, 12, 2)
    wanted = torch.ops.adapterx.bottleneck_adapter_train(hidden_states, residual, *stacked, "gelu", 0.7, indices)
    for given in (indices, ordered):
        ours = without_cuda("bottleneck_adapter_train", hidden_states, residual, *stacked, "gelu", 0.7, given)
        torch.testing.assert_close(ours, wanted, equal_nan=True)
    rest = (hidden_states, wanted[1], stacked[0], stacked[2], "gelu", 0.7, True, [True] * 5)
    grad = torch.ones_like(wanted[0])
    ours = without_cuda("bottleneck_adapter_backward", grad, *rest, ordered, 2)
    theirs = torch.ops.adapterx.bottleneck_adapter_backward(grad, *rest, indices, 2)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, equal_nan=True)
    assert torch.isfinite(ours[1][1]).all()
    with pytest.raises(RuntimeError, match="adapter_indices must be -1"):
        without_cuda("bottleneck_adapter", hidden_states, residual, *stacked, "gelu", 0.7, indices + 1)


def test_threads_share_the_rows_and_agree():
    arguments = make_arguments((700,), 96, 96, 24, dtype=torch.float32, requires_grad=NAMES)
    outputs, gradients = [], []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            output = compute(arguments, "gelu", 0.7)
            outputs.append(output.detach())
            gradients.append(torch.autograd.grad(output.square().sum(), arguments))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(output, outputs[0]) for output in outputs)  # a row is computed by one thread
    for gradient in gradients[1:]:  # sums over tokens are formed per thread
        for ours, single in zip(gradient, gradients[0], strict=True):
            torch.testing.assert_close(ours, single, rtol=1e-4, atol=1e-4)
