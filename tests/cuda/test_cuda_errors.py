"""Bad input on a GPU: clear errors or right results, never a crash of the process or silent garbage."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_cases import grouped, make_grouped, to_device
from ops_cases import NAMES, compute, error, expect, make_arguments
from ops_error_cases import CASES, call, right

from adapterx import ops

ROOT = Path(__file__).resolve().parents[2]
GROUPED_NAMES = ("hidden_states", "residual", "down_weight", "down_bias", "up_weight", "up_bias")


@pytest.mark.parametrize("case", CASES)
def test_wrong_arguments(case, device):
    """The words are those of the CPU; none of these reaches a kernel."""
    changes, kind, words = CASES[case]
    arguments = dict(zip(NAMES, to_device(right().values(), device), strict=True))
    changes = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in changes.items()}
    with pytest.raises(kind, match=f"^bottleneck_adapter: {words}"):
        call(changes, arguments=arguments)


@pytest.mark.parametrize("name", NAMES)
def test_one_tensor_on_the_cpu(name, gpu):
    arguments = to_device(make_arguments((4,), 8, 8, 3), gpu)
    index = NAMES.index(name)
    arguments[index] = arguments[index].cpu()
    where = r"must be on the device of hidden_states \((cpu|cuda:0)\), got (cuda:0|cpu)"
    with pytest.raises(ValueError, match=rf"bottleneck_adapter: \w+ {where}"):
        compute(arguments)
    assert compute(to_device(make_arguments((4,), 8, 8, 3), gpu)).isfinite().all()


def test_indices_on_another_device_or_of_another_kind(device):
    arguments, indices = make_grouped((4,), 8, 8, 3, 2, dtype=torch.float32)
    arguments = to_device(arguments, device)
    other = "cpu" if device == "cuda" else "meta"
    with pytest.raises(ValueError, match="adapter_indices must be on the device of hidden_states"):
        grouped(indices.to(other))(arguments)
    for dtype in (torch.int32, torch.float32, torch.bool):
        with pytest.raises(TypeError, match="adapter_indices must have dtype int64"):
            grouped(indices.to(device, dtype))(arguments)
    for shape in ((5,), (4, 8), (2, 2), (4, 1)):
        with pytest.raises(ValueError, match="adapter_indices must have the first of the leading dimensions"):
            grouped(torch.zeros(shape, dtype=torch.int64, device=device))(arguments)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("down_weight", (3, 8), r"down_weight must have shape \(num_adapters, bottleneck_dim, input_size\)"),
        ("up_weight", (3, 8, 3), r"up_weight must be for as many adapters as the other arguments \(2\)"),
        ("down_bias", (3,), r"down_bias must have shape \(num_adapters, bottleneck_dim\) = \(2, 3\)"),
        ("up_bias", (1, 8), r"up_bias must have shape \(num_adapters, hidden_size\) = \(2, 8\)"),
        ("residual", (4, 7), "residual must have the leading dimensions of hidden_states"),
    ],
)
def test_wrong_shapes_of_the_grouped_form(name, shape, words, device):
    arguments, indices = make_grouped((4,), 8, 8, 3, 2, dtype=torch.float32)
    arguments = to_device(arguments, device)
    arguments[GROUPED_NAMES.index(name)] = torch.zeros(shape, device=device)
    with pytest.raises(ValueError, match=f"^bottleneck_adapter: {words}"):
        grouped(indices.to(device))(arguments)


@pytest.mark.parametrize(("index", "path"), [(-2, "auto"), (3, "segments"), (3, "tile:64x1"), (2**63 - 1, "auto")])
def test_indices_out_of_range_stop_the_process_with_words(index, path, device, pin):
    """On a GPU the error comes from the device and ends all work on it: hence a process of its own."""
    pin(path)
    program = f"""
import sys, torch
from adapterx import ops
make = lambda *shape: torch.zeros(shape, dtype=torch.bfloat16, device={device!r})
indices = torch.tensor([0, {index}, 1, -1], device={device!r})
try:
    output = ops.bottleneck_adapter(
        make(4, 16), make(4, 16), make(3, 8, 16), None, make(3, 16, 8), None, activation="relu", scaling=1.0,
        adapter_indices=indices,
    )
    if {device!r} == "cuda":
        torch.cuda.synchronize()
except (RuntimeError, ValueError) as error:
    print(type(error).__name__, str(error).splitlines()[0])
    sys.exit(3)
"""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)
    # After a failed device assertion PyTorch may abort on the way out; it has said why by then.
    assert done.returncode != 0, done.stdout
    assert "rror" in done.stdout, done.stdout + done.stderr
    assert "adapter_indices must be -1 or the number of an adapter" in done.stdout + done.stderr
    if device == "cuda":
        assert "device-side assert" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("fast", "must name a path that serves this call, got 'fast'"),
        ("tile:32x1", "must name a path that serves this call, got 'tile:32x1'"),
        ("tile:64x3x1", "must name a path that serves this call, got 'tile:64x3x1'"),
        ("tile", "must name a path that serves this call, got 'tile': dtype must be bfloat16 or float16"),
        ("segments", "must name a path that serves this call, got 'segments'"),
    ],
)
def test_pins_that_cannot_serve_are_refused(path, words, device, pin):
    pin(path)
    arguments = to_device(make_arguments((4,), 8, 8, 3, dtype=torch.float32), device)
    with pytest.raises(ValueError, match=f"bottleneck_adapter: ADAPTERX_CUDA_PATH {words}"):
        compute(arguments)


def test_a_pinned_tile_refuses_wide_bottlenecks_and_other_sizes(device, pin):
    pin("tile:64x1")
    for sizes in ((8, 8, 129), (8, 16, 4)):
        arguments = to_device(make_arguments((4,), *sizes, dtype=torch.bfloat16), device)
        with pytest.raises(ValueError, match="must name a path that serves this call"):
            compute(arguments)
    pin("cublas")
    arguments, indices = make_grouped((4,), 8, 8, 3, 2, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"^bottleneck_adapter: ADAPTERX_CUDA_PATH must name a path"):
        grouped(indices.to(device))(to_device(arguments, device))


def test_adapters_on_the_wrong_gpu(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    arguments = to_device(make_arguments((4,), 8, 8, 3), gpu)
    arguments[2:] = [tensor.to("cuda:1") for tensor in arguments[2:]]
    with pytest.raises(ValueError, match=r"must be on the device of hidden_states \(cuda:0\), got cuda:1"):
        compute(arguments)


def test_strides_that_rows_do_not_have(device):
    """Hidden states by columns, negative, conjugated or broadcast are copied; weights that are not contiguous too."""
    arguments = to_device(make_arguments((6,), 8, 8, 3, dtype=torch.float32), device)
    by_columns = [
        tensor.t().contiguous().t() if tensor is not None and tensor.dim() == 2 else tensor for tensor in arguments
    ]
    assert not by_columns[2].is_contiguous()
    assert error(compute(by_columns), compute(arguments).double()) < 1e-6
    spread = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in arguments]
    assert error(compute(spread), compute(arguments).double()) < 1e-6


def test_the_backward_operator_checks_too(device):
    make = lambda *shape: torch.zeros(shape, dtype=torch.bfloat16, device=device)  # noqa: E731
    backward = torch.ops.adapterx.bottleneck_adapter_backward
    with pytest.raises(ValueError, match=r"^bottleneck_adapter_backward: pre_activation must have the leading dim"):
        backward(make(4, 8), make(4, 8), make(5, 3), make(3, 8), make(8, 3), "gelu", 0.7, False, [True] * 5)
    indices = torch.zeros(4, dtype=torch.int64, device=device)
    tensors = (make(4, 8), make(4, 8), make(4, 3), make(2, 3, 8), make(2, 8, 3))
    with pytest.raises(ValueError, match=r"^bottleneck_adapter_backward: up_weight must be for as many"):
        backward(*tensors, "gelu", 0.7, False, [True] * 5, indices, 3)


def test_sparse_and_quantised_tensors_are_no_rows(device):
    sparse = torch.zeros(4, 8, device=device).to_sparse()
    weights = to_device(make_arguments((4,), 8, 8, 3, dtype=torch.float32), device)[2:]
    with pytest.raises(NotImplementedError, match="Could not run 'adapterx::bottleneck_adapter'"):
        ops.bottleneck_adapter(sparse, None, *weights, activation="relu", scaling=1.0)


def test_the_reference_agrees_that_the_arguments_of_these_tests_are_right(device):
    arguments = to_device(make_arguments((4,), 8, 8, 3, dtype=torch.float32), device)
    assert error(compute(arguments), expect([t.double() for t in arguments])) < 2e-6
