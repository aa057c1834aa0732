"""The grouped operator against the reference: every form of indices, every gradient, transforms, graphs and errors."""

import io
import itertools

import pytest
import torch
from functorch.compile import make_boxed_func
from ops_cases import ACTIVATIONS, NAMES, copy_of, error
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad

from adapterx import ops, reference

GROUPS = 3
WEIGHTS = NAMES[2:]

# Leading dimensions and shape of the indices: one a token, one a sequence, one for all; no token; no dimension.
FORMS = (
    ((7,), (7,)),
    ((2, 5), (2,)),
    ((2, 5), (2, 5)),
    ((2, 1, 3), (2, 1)),
    ((4, 2), ()),
    ((), ()),
    ((130,), (130,)),
)
# input_size, hidden_size, bottleneck_dim; the second and third fit the tensor-core kernels of a GPU.
SIZES = ((6, 10, 4), (32, 32, 8), (72, 72, 20), (5, 3, 131))


def make_arguments(leading=(7,), sizes=(6, 6, 4), *, dtype=torch.float64, groups=GROUPS, without=(), requires_grad=()):
    """Draw the tensors in schema order without the indices; those named in `without` are None."""
    input_size, hidden_size, bottleneck_dim = sizes
    shapes = (
        ((*leading, input_size), 1.0),
        ((*leading, hidden_size), 1.0),
        ((groups, bottleneck_dim, input_size), input_size**-0.5),
        ((groups, bottleneck_dim), 0.5),
        ((groups, hidden_size, bottleneck_dim), bottleneck_dim**-0.5),
        ((groups, hidden_size), 0.5),
    )
    tensors = [(torch.randn(size, dtype=torch.float64) * factor).to(dtype) for size, factor in shapes]
    return [
        None if name in without else tensor.requires_grad_(name in requires_grad)
        for name, tensor in zip(NAMES, tensors, strict=True)
    ]


def make_indices(shape, groups=GROUPS):
    """Draw from [-1, groups); with enough tokens the last adapter is picked by none."""
    return torch.randint(-1, groups - 1, shape) if len(shape) and shape[0] > 100 else torch.randint(-1, groups, shape)


def compute(arguments, indices, activation="gelu", scaling=0.7):
    hidden_states, residual, *weights = arguments
    options = {"activation": activation, "scaling": scaling, "adapter_indices": indices}
    return ops.bottleneck_adapter(hidden_states, residual, *weights, **options)


def expect(arguments, indices, activation="gelu", scaling=0.7):
    hidden_states, residual, *weights = arguments
    options = {"activation": activation, "scaling": scaling, "adapter_indices": indices}
    return reference.bottleneck_adapter(hidden_states, residual, *weights, **options)


def in_layout(layout, arguments):
    """Make the residual separate, the hidden states themselves, or absent."""
    if layout != "parallel":
        arguments[1] = arguments[0] if layout == "sequential" else None
    return arguments


def gradients(function, arguments, indices, cotangent, **options):
    wanted = {name: t for name, t in zip(NAMES, arguments, strict=True) if t is not None and t.requires_grad}
    output = function(arguments, indices, **options)
    found = torch.autograd.grad(output, list(wanted.values()), cotangent, allow_unused=True)
    return dict(zip(wanted, found, strict=True))


# Values


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("without", [(), ("residual",), ("down_bias", "up_bias")], ids=lambda n: "-".join(n) or "all")
def test_forms_of_indices_and_absent_arguments(form, sizes, without):
    leading, shape = form
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        arguments, indices = make_arguments(leading, sizes, dtype=dtype, without=without), make_indices(shape)
        output = compute(arguments, indices, "gelu", -1.3)
        assert output.shape == (*leading, sizes[1])
        assert output.is_contiguous()
        exact = expect(copy_of(arguments, torch.float64), indices, "gelu", -1.3)
        assert (output.double() - exact).norm() <= tolerance * max(exact.norm(), 1.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_every_activation(activation, dtype):
    # In float16 at sizes of the tensor-core kernels; without residual, which would hide the branch.
    arguments = make_arguments((33,), (24, 24, 10), dtype=dtype, without=("residual",))
    indices = make_indices((33,))
    exact = expect(copy_of(arguments, torch.float64), indices, activation)
    eager = error(expect(arguments, indices, activation), exact)
    assert error(compute(arguments, indices, activation), exact) <= 2 * eager + (
        1e-15 if dtype == torch.float64 else 1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_low_precision_is_at_most_twice_as_inexact_as_pytorch(form, sizes, dtype):
    leading, shape = form
    arguments = make_arguments(leading, sizes, dtype=dtype, without=("residual",))
    indices = torch.randint(0, GROUPS, shape)
    exact = expect(copy_of(arguments, torch.float64), indices)
    output = compute(arguments, indices)
    assert output.dtype == dtype
    assert error(output, exact) <= 2 * error(expect(arguments, indices), exact) + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_without_adapter_keeps_its_residual_bit_for_bit(dtype):
    indices = torch.tensor([0, -1, 2, -1, -1, 1, -1])
    for layout in ("parallel", "sequential", "bare"):
        arguments = in_layout(layout, make_arguments(sizes=(32, 32, 8), dtype=dtype))
        output, pre_activation = torch.ops.adapterx.bottleneck_adapter_train(*arguments, "sigmoid", 0.5, indices)
        none = indices == -1
        kept = torch.zeros_like(output) if arguments[1] is None else arguments[1]
        assert torch.equal(output[none], kept[none])
        assert not pre_activation[none].any()
        assert not torch.equal(output[~none], kept[~none])


def test_adapters_of_several_widths_through_padding():
    # sigmoid(0) is not 0: only zero columns of up_weight make the padding harmless.
    widths, (leading, indices) = (2, 5, 3), ((6,), torch.tensor([0, 1, 2, -1, 1, 0]))
    arguments = make_arguments(leading, (8, 8, max(widths)))
    expected = arguments[1].clone()
    for group, width in enumerate(widths):
        arguments[2][group, width:] = 0
        arguments[3][group, width:] = 0
        arguments[4][group, :, width:] = 0
        own = [
            arguments[2][group, :width],
            arguments[3][group, :width],
            arguments[4][group, :, :width],
            arguments[5][group],
        ]
        alone = reference.bottleneck_adapter(*arguments[:2], *own, activation="sigmoid", scaling=0.7)
        expected[indices == group] = alone[indices == group]
    torch.testing.assert_close(compute(arguments, indices, "sigmoid"), expected)


@pytest.mark.parametrize("count", [1, 40])
def test_thousands_of_adapters_and_few_tokens(count):
    arguments = make_arguments((count,), (4, 4, 2), groups=3000)
    indices = torch.randint(-1, 3000, (count,))
    torch.testing.assert_close(compute(arguments, indices), expect(arguments, indices))


@pytest.mark.parametrize("leading", [(0,), (0, 3), (2, 0)])
def test_no_tokens(leading):
    arguments = make_arguments(leading, requires_grad=NAMES)
    indices = torch.zeros(leading[:1], dtype=torch.int64)
    output = compute(arguments, indices)
    assert output.shape == (*leading, 6)
    output.sum().backward()
    for name, tensor in zip(WEIGHTS, arguments[2:], strict=True):
        assert tensor.grad.shape == tensor.shape, name
        assert not tensor.grad.any(), name


def test_layouts():
    indices = torch.tensor([0, -1, 2, 1, 1, 0])
    arguments = make_arguments((6,), (8, 8, 5))
    exact = expect(arguments, indices)
    wide = torch.zeros(6, 20, dtype=torch.float64)
    wide[:, 3:11] = arguments[0]
    strided = [wide[:, 3:11], arguments[1].t().contiguous().t(), *arguments[2:]]
    strided[2] = arguments[2].transpose(1, 2).contiguous().transpose(1, 2)
    strided[5] = torch.stack([arguments[5], arguments[5]], -1)[..., 0]
    torch.testing.assert_close(compute(strided, torch.stack([indices, indices], -1)[:, 0]), exact)
    broadcast = arguments[0][:1].expand(6, 8)
    torch.testing.assert_close(
        compute([broadcast, broadcast, *arguments[2:]], indices),
        expect([broadcast, broadcast, *arguments[2:]], indices),
    )


# Gradients


@pytest.mark.parametrize("layout", ["parallel", "sequential", "bare"])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_gradient(layout, form, dtype):
    leading, shape = form
    arguments = in_layout(layout, make_arguments(leading, (32, 32, 12), dtype=dtype, requires_grad=NAMES))
    indices, cotangent = make_indices(shape), torch.randn(*leading, 32, dtype=torch.float64).to(dtype)
    twins = copy_of(arguments, torch.float64)
    exact = gradients(expect, twins, indices, cotangent.double())
    eager = gradients(expect, copy_of(arguments), indices, cotangent)
    actual = gradients(compute, arguments, indices, cotangent)
    factor = {torch.float64: 1e-13, torch.float32: 2e-6}
    for name, right in exact.items():
        assert actual[name].dtype == dtype
        allowed = factor.get(dtype) or 3 * error(eager[name], right) + 1e-5
        scale = max(float(right.norm()), 1e-6)
        assert (actual[name].double() - right).norm() <= allowed * scale, name


@pytest.mark.parametrize("layout", ["parallel", "sequential", "bare"])
@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh", "leaky_relu"])
def test_gradcheck_and_gradgradcheck(activation, layout):
    arguments = in_layout(layout, make_arguments((3, 2), (4, 4, 3), requires_grad=NAMES))
    indices = torch.tensor([[0, 2], [-1, 1], [2, 2]])
    inputs = [tensor for place, tensor in enumerate(arguments) if place != 1]

    def function(hidden_states, *weights):
        residual = {"parallel": arguments[1], "sequential": hidden_states, "bare": None}[layout]
        return compute([hidden_states, residual, *weights], indices, activation)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


SUBSETS = [subset for subset in itertools.product([False, True], repeat=6) if any(subset)]


@pytest.mark.parametrize("layout", ["parallel", "sequential"])
def test_every_subset_of_gradients(layout):
    indices = torch.tensor([0, 2, -1, 0, 2, 2, 0])
    arguments = in_layout(layout, make_arguments(sizes=(16, 16, 4), requires_grad=NAMES))
    cotangent = torch.randn(7, 16, dtype=torch.float64)
    exact = gradients(expect, arguments, indices, cotangent)
    for subset in SUBSETS:
        twins = copy_of(arguments)
        for tensor, wanted in zip(twins, subset, strict=True):
            tensor.requires_grad_(wanted)
        if not any(tensor.requires_grad for tensor in twins):
            continue
        for name, actual in gradients(compute, twins, indices, cotangent).items():
            if layout == "sequential" and name in NAMES[:2]:
                name = "hidden_states"
            torch.testing.assert_close(actual, exact[name], msg=f"{name} of {subset}")


def test_gradients_of_adapters_that_no_token_picked_are_zero():
    arguments = make_arguments(requires_grad=NAMES)
    indices = torch.tensor([0, 2, -1, 0, 2, 2, 0])
    compute(arguments, indices).square().sum().backward()
    for tensor in arguments[2:]:
        assert not tensor.grad[1].any()
        assert tensor.grad[0].any()
        assert tensor.grad[2].any()


def test_saved_for_backward():
    arguments = make_arguments((50,), (64, 64, 4), dtype=torch.float32, requires_grad=WEIGHTS)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        compute(arguments, make_indices((50,)))
    own = [tensor for tensor in saved if tensor.data_ptr() not in {a.data_ptr() for a in arguments}]
    assert sorted(tuple(tensor.shape) for tensor in own) == [(50,), (50, 4)]  # the indices and the pre-activation


def test_backward_is_deterministic():
    arguments = make_arguments((700,), (16, 16, 4), dtype=torch.float32, requires_grad=NAMES)
    indices = make_indices((700,))
    cotangent = torch.randn(700, 16)
    first = gradients(compute, arguments, indices, cotangent)
    for _ in range(5):
        for name, again in gradients(compute, arguments, indices, cotangent).items():
            assert torch.equal(first[name], again), name


# Transforms, autocast and graphs


def test_torch_func_and_forward_mode():
    arguments, indices = make_arguments((4,), (3, 3, 2)), torch.tensor([0, -1, 2, 2])
    tangents = tuple(torch.randn_like(tensor) for tensor in arguments)

    def loss(function):
        return lambda *tensors: function(tensors, indices, "silu").square().sum()

    every = tuple(range(6))
    for mine, theirs in zip(
        torch.func.grad(loss(compute), every)(*arguments), torch.func.grad(loss(expect), every)(*arguments), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(arguments, tangents, strict=True)]
        mine, theirs = (forward_ad.unpack_dual(function(duals, indices)).tangent for function in (compute, expect))
        torch.testing.assert_close(mine, theirs)


def test_vmap_over_hidden_states_indices_and_weights():
    arguments = make_arguments((2, 4), (3, 5, 2))
    indices = torch.tensor([[0, -1, 2, 2], [1, 1, 0, -1]])
    actual = torch.vmap(lambda hidden, residual, picked: compute([hidden, residual, *arguments[2:]], picked))(
        *arguments[:2], indices
    )
    torch.testing.assert_close(actual, expect(arguments, indices))
    ensembles = [torch.stack([tensor, 2 * tensor]) for tensor in arguments[2:]]
    actual = torch.vmap(lambda *weights: compute([*arguments[:2], *weights], indices))(*ensembles)
    wanted = [expect([*arguments[:2], *(tensor[step] for tensor in ensembles)], indices) for step in range(2)]
    torch.testing.assert_close(actual, torch.stack(wanted))


@pytest.mark.parametrize("residual", [torch.float32, torch.bfloat16, None], ids=str)
def test_autocast(residual):
    arguments = make_arguments((5,), (8, 8, 4), dtype=torch.float32, requires_grad=NAMES)
    arguments[1] = None if residual is None else arguments[1].detach().to(residual)
    indices = torch.tensor([0, -1, 2, 2, 1])
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = compute(arguments, indices), expect(arguments, indices)
    # The branch alone is bfloat16, as that of the plain operator.
    assert mine.dtype == (theirs.dtype if residual else torch.bfloat16)
    torch.testing.assert_close(mine.float(), theirs.float(), atol=0.05, rtol=0.05)
    mine.float().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in arguments[2:])


@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_opcheck(shape):
    arguments = make_arguments((4, 2), (6, 6, 3), requires_grad=NAMES)
    operator = torch.ops.adapterx.bottleneck_adapter.default
    torch.library.opcheck(operator, (*arguments, "gelu", 0.5, make_indices(shape)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_keeps_one_node_for_training(dynamic):
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(
        compute, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True, dynamic=dynamic
    )
    arguments = make_arguments(requires_grad=NAMES)
    indices = make_indices((7,))
    cotangent = torch.randn(7, 6, dtype=torch.float64)
    for name, gradient in gradients(compiled, arguments, indices, cotangent).items():
        torch.testing.assert_close(gradient, gradients(expect, arguments, indices, cotangent)[name])
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes if "adapterx" in str(node.target)]
    assert targets == [
        "adapterx.bottleneck_adapter_train.default",
        "adapterx.bottleneck_adapter_backward.default",
    ]


def test_export_keeps_one_node():
    class Grouped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, tensor in zip(WEIGHTS, make_arguments()[2:], strict=True):
                self.register_buffer(name, tensor)

        def forward(self, hidden_states, indices):
            return compute([hidden_states, hidden_states, *(getattr(self, name) for name in WEIGHTS)], indices)

    batch = torch.export.Dim("batch")
    module, example = Grouped(), (torch.randn(4, 3, 6, dtype=torch.float64), make_indices((4,)))
    program = torch.export.export(module, example, dynamic_shapes=({0: batch}, {0: batch}))
    assert sum("adapterx.bottleneck_adapter" in str(node.target) for node in program.graph.nodes) == 1
    other = (torch.randn(9, 3, 6, dtype=torch.float64), make_indices((9,)))
    torch.testing.assert_close(program.module()(*other), module(*other))


def test_script_saves_loads_and_trains():
    @torch.jit.script
    def scripted(hidden_states: torch.Tensor, indices: torch.Tensor, w: list[torch.Tensor]) -> torch.Tensor:
        return torch.ops.adapterx.bottleneck_adapter(
            hidden_states, hidden_states, w[0], w[1], w[2], w[3], "gelu", 0.7, indices
        )

    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    arguments = in_layout("sequential", make_arguments(requires_grad=NAMES))
    indices = make_indices((7,))
    output = loaded(arguments[0], indices, arguments[2:])
    torch.testing.assert_close(output, expect(arguments, indices))
    output.sum().backward()
    assert arguments[2].grad is not None


# Errors. Arguments are (4, 8) -> 6 through 3, for three adapters.

BAD = {
    "no indices": (
        {"indices": None},
        ValueError,
        r"down_weight must have shape \(bottleneck_dim, input_size\), got \[3, 3, 8\] without adapter_indices",
    ),
    "dtype": ({"indices": torch.zeros(4)}, TypeError, "adapter_indices must have dtype int64, got float32"),
    "int32": ({"indices": torch.zeros(4, dtype=torch.int32)}, TypeError, "must have dtype int64, got int32"),
    "count": (
        {"indices": torch.zeros(5, dtype=torch.int64)},
        ValueError,
        r"adapter_indices must have the first of the leading dimensions of hidden_states \[4, 8\], got shape \[5\]",
    ),
    "too many dimensions": ({"indices": torch.zeros(4, 8, dtype=torch.int64)}, ValueError, r"got shape \[4, 8\]"),
    "one weight": (
        {"down_weight": torch.zeros(3, 8, dtype=torch.float64)},
        ValueError,
        r"down_weight must have shape \(num_adapters, bottleneck_dim, input_size\), got \[3, 8\] with adapter_indices",
    ),
    "no adapters": (
        {"down_weight": torch.zeros(0, 3, 8, dtype=torch.float64)},
        ValueError,
        "down_weight must have at least one row and one column and one adapter",
    ),
    "up_weight": (
        {"up_weight": torch.zeros(2, 6, 3, dtype=torch.float64)},
        ValueError,
        r"up_weight must be for as many adapters as the other arguments \(3\), got shape \[2, 6, 3\]",
    ),
    "down_bias": (
        {"down_bias": torch.zeros(2, 3, dtype=torch.float64)},
        ValueError,
        r"down_bias must have shape \(num_adapters, bottleneck_dim\) = \(3, 3\), got \[2, 3\]",
    ),
    "up_bias": (
        {"up_bias": torch.zeros(6, dtype=torch.float64)},
        ValueError,
        r"up_bias must have shape \(num_adapters, hidden_size\) = \(3, 6\), got \[6\]",
    ),
    "mixed dtypes": (
        {"up_weight": torch.zeros(3, 6, 3)},
        TypeError,
        r"up_weight must have the dtype of hidden_states \(float64\), got float32",
    ),
    "device": (
        {"indices": torch.zeros(4, dtype=torch.int64, device="meta")},
        ValueError,
        "adapter_indices must be on the device of hidden_states",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("grad", [False, True])
def test_bad_input(case, grad):
    changes, kind, words = BAD[case]
    tensors = dict(zip(NAMES, make_arguments((4,), (8, 6, 3), requires_grad=NAMES if grad else ()), strict=True))
    tensors = {**tensors, "indices": torch.tensor([0, 1, 2, -1]), **changes}
    indices = tensors.pop("indices")
    with pytest.raises(kind, match=f"^bottleneck_adapter: .*{words}"):
        compute(list(tensors.values()), indices)


@pytest.mark.parametrize("index", [3, -2, 2**40])
def test_index_out_of_range(index):
    # The library whose CUDA kernels are emulated says it as a GPU does: the kernel's assertion fails.
    emulated = ops.build_info()["cuda"] == "emulated"
    words = "adapter_indices must be -1" + ("" if emulated else rf" .*, got {index} for token 2")
    with pytest.raises(RuntimeError if emulated else ValueError, match=words):
        compute(make_arguments((4,)), torch.tensor([0, 1, index, 0]))


def test_backward_operator_says_what_it_needs():
    arguments, indices = make_arguments((4,)), torch.tensor([0, 1, 2, -1])
    backward = torch.ops.adapterx.bottleneck_adapter_backward
    cotangent, pre_activation = torch.zeros(4, 6, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    common = (cotangent, arguments[0], pre_activation, arguments[2], arguments[4], "gelu", 1.0, False)
    with pytest.raises(ValueError, match="num_adapters must be positive, got 0"):
        backward(*common, [True] * 5, indices)
    with pytest.raises(ValueError, match="num_adapters must be 0 without adapter_indices, got 3"):
        backward(*common, [True] * 5, None, 3)
    with pytest.raises(ValueError, match=r"up_weight must be for as many adapters as the other arguments \(2\)"):
        backward(*common, [True] * 5, indices, 2)
    with pytest.raises(ValueError, match="hidden_states must be given when grad_down_weight is wanted, got None"):
        backward(cotangent, None, *common[2:], [False, True, False, False, False], indices, 3)
