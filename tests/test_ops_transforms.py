"""The operator under everything that transforms programs: torch.func, autocast, TorchScript, export, torch.compile."""

import io

import pytest
import torch
from functorch.compile import make_boxed_func
from ops_cases import ACTIVATIONS, NAMES, compute, copy_of, expect, make_arguments
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad

from adapterx import ops

OPERATOR = "adapterx.bottleneck_adapter.default"


class Block(torch.nn.Module):
    """An adapter as modules call the operator; sequential placement unless told otherwise."""

    def __init__(self, size: int = 8, bottleneck_dim: int = 4, sequential: bool = True):
        super().__init__()
        self.down = torch.nn.Linear(size, bottleneck_dim)
        self.up = torch.nn.Linear(bottleneck_dim, size)
        self.sequential = sequential

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states if self.sequential else torch.sin(hidden_states)
        return ops.bottleneck_adapter(
            hidden_states,
            residual,
            self.down.weight,
            self.down.bias,
            self.up.weight,
            self.up.bias,
            activation="gelu",
            scaling=0.7,
        )


def count(graph, name: str = OPERATOR) -> int:
    return sum(str(node.target) == name for node in graph.nodes if node.op == "call_function")


# torch.func and forward mode


@pytest.mark.parametrize(
    "in_dims",
    [(0, 0, None, None, None, None), (1, None, None, None, None, None), (None, None, 0, 0, 0, 0), (0,) * 6],
    ids=str,
)
def test_vmap(in_dims):
    arguments = make_arguments((3,), 6, 5, 4)
    batched = [
        tensor if where is None else torch.stack([tensor + 0.1 * step for step in range(3)], where)
        for tensor, where in zip(arguments, in_dims, strict=True)
    ]
    actual = torch.vmap(lambda *tensors: compute(tensors), in_dims)(*batched)
    wanted = [
        expect(
            [
                tensor if where is None else tensor.select(where, step)
                for tensor, where in zip(batched, in_dims, strict=True)
            ]
        )
        for step in range(3)
    ]
    torch.testing.assert_close(actual, torch.stack(wanted))


def test_per_sample_gradients():
    arguments = make_arguments((5, 2), 6, 6, 3)

    def loss(function):
        def of(weights, sample):
            return function([sample, sample, *weights]).square().sum()

        return torch.vmap(torch.func.grad(of), (None, 0))(tuple(arguments[2:]), arguments[0])

    for mine, theirs in zip(loss(compute), loss(expect), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "hessian", "jvp", "vjp"])
def test_torch_func(transform):
    arguments = make_arguments((2,), 3, 3, 2)
    tangents = tuple(torch.randn_like(tensor) for tensor in arguments)

    def apply(function):
        def of(*tensors):
            output = function(tensors, "silu")
            return output.square().sum() if transform in ("grad", "hessian") else output

        every = tuple(range(6))
        if transform == "jvp":
            return torch.func.jvp(of, tuple(arguments), tangents)
        if transform == "vjp":
            return torch.func.vjp(of, *arguments)[1](torch.ones(2, 3, dtype=torch.float64))
        return getattr(torch.func, transform)(of, argnums=every)(*arguments)

    torch.testing.assert_close(apply(compute), apply(expect))


def test_torch_func_grad_of_tensors_that_require_gradients():
    arguments = make_arguments((2,), 3, 3, 2, requires_grad=NAMES)
    results = []
    for function in (compute, expect):
        twins = copy_of(arguments)
        inner = torch.func.grad(
            lambda hidden, twins=twins, function=function: function([hidden, *twins[1:]]).square().sum()
        )
        gradient = inner(twins[0])
        gradient.square().sum().backward()
        results.append([gradient.detach(), *[tensor.grad for tensor in twins]])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("requires_grad", [(), NAMES])
def test_forward_mode(requires_grad):
    arguments = make_arguments((2,), 3, 3, 2, requires_grad=requires_grad)
    tangent = torch.randn(3, 2, dtype=torch.float64)
    results = []
    for function in (compute, expect):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(arguments[4], tangent)
            output, derivative = forward_ad.unpack_dual(function([*arguments[:4], dual, arguments[5]]))
        results.append((output.detach(), derivative.detach()))
    torch.testing.assert_close(*results)


def test_batched_backward():
    arguments = make_arguments((4,), 5, 5, 3, requires_grad=NAMES)
    arguments[1] = arguments[0]
    leaves = [arguments[0], *arguments[2:]]
    cotangents = torch.randn(6, 4, 5, dtype=torch.float64)
    batched = torch.autograd.grad(compute(arguments), leaves, cotangents, is_grads_batched=True)
    for index, cotangent in enumerate(cotangents):
        for mine, theirs in zip(batched, torch.autograd.grad(expect(arguments), leaves, cotangent), strict=True):
            torch.testing.assert_close(mine[index], theirs)


# Autocast


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("residual", [None, torch.float32, torch.bfloat16, torch.float16, "hidden_states"], ids=str)
@pytest.mark.parametrize("hidden_states", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_gives_the_dtypes_of_the_formula(hidden_states, residual, lower):
    arguments = make_arguments((65,), 24, 24, 10, dtype=torch.float32, requires_grad=NAMES)
    arguments[0] = arguments[0].detach().to(hidden_states).requires_grad_()
    if residual is None:
        arguments[1] = None
    elif residual == "hidden_states":
        arguments[1] = arguments[0]
    else:
        arguments[1] = arguments[1].detach().to(residual).requires_grad_()
    results = []
    for function in (compute, expect):
        with torch.autocast("cpu", dtype=lower):
            output = function(arguments)
        cotangent = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output.dtype)
        leaves = [tensor for tensor in dict.fromkeys(arguments) if tensor is not None]
        results.append([output, *torch.autograd.grad(output, leaves, cotangent)])
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype
        exactness = 2 * torch.finfo(lower).eps
        torch.testing.assert_close(
            mine.float(), theirs.float(), rtol=4 * exactness, atol=exactness * float(theirs.detach().abs().max())
        )


def test_autocast_leaves_float64_alone_and_can_be_switched_off():
    arguments = make_arguments()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compute(arguments), compute(arguments))
        assert compute(arguments).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            single = make_arguments(dtype=torch.float32)
            assert compute(single).dtype == torch.float32


def test_autocast_keeps_the_fused_backward_where_nothing_is_cast():
    arguments = make_arguments(dtype=torch.float32, requires_grad=NAMES)
    hidden_states = arguments[0].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = compute([hidden_states, hidden_states, *arguments[2:]])
    assert output.grad_fn.name().endswith("BottleneckAdapter>")
    assert len(output.grad_fn.next_functions) == 5


# TorchScript


def test_trace_records_one_node():
    block = Block()
    traced = torch.jit.trace(block, torch.randn(3, 8))
    assert str(traced.inlined_graph).count("adapterx::bottleneck_adapter(") == 1
    other = torch.randn(2, 5, 8)
    assert torch.equal(traced(other), block(other))
    frozen = torch.jit.freeze(traced.eval())
    assert "aten::linear" not in str(frozen.graph)
    assert torch.equal(frozen(other), block(other))


def test_script_saves_loads_and_trains():
    block = Block()
    scripted = torch.jit.script(block)
    assert str(scripted.inlined_graph).count("adapterx::bottleneck_adapter(") == 1
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    hidden_states = torch.randn(3, 8)
    assert torch.equal(loaded(hidden_states), block(hidden_states))
    block(hidden_states).square().sum().backward()
    loaded(hidden_states).square().sum().backward()
    for mine, theirs in zip(loaded.parameters(), block.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


# Export and compile


@pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec.*:FutureWarning")  # torch.export's own strict mode
@pytest.mark.parametrize("strict", [True, False])
def test_export_keeps_one_node(strict):
    block = Block(sequential=False)
    dynamic = {"hidden_states": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(block, (torch.randn(3, 5, 8),), dynamic_shapes=dynamic, strict=strict)
    assert count(program.graph) == 1
    assert count(program.run_decompositions().graph) == 1
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for leading in ((3, 5), (2, 9), (7, 2)):
        hidden_states = torch.randn(*leading, 8)
        assert torch.equal(loaded(hidden_states), block(hidden_states))


def test_export_checks_sizes_while_tracing():
    class Wrong(Block):
        def forward(self, hidden_states):
            return super().forward(hidden_states[..., :7])

    with pytest.raises(Exception, match="down_weight must have as many columns as hidden_states"):
        torch.export.export(Wrong(), (torch.randn(3, 8),), strict=False)


def test_export_with_a_size_that_only_the_data_knows():
    class Selected(Block):
        def forward(self, hidden_states):
            return super().forward(hidden_states[hidden_states[:, 0] > 0])

    block = Selected()
    dynamic = {"hidden_states": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(block, (torch.randn(9, 8),), dynamic_shapes=dynamic, strict=False)
    assert count(program.graph) == 1
    hidden_states = torch.randn(6, 8)
    assert torch.equal(program.module()(hidden_states), block(hidden_states))


def compiled(module, **options):
    """Compile through AOTAutograd and keep the graphs that it makes."""
    torch._dynamo.reset()
    graphs = []

    def keep(graph_module, example_inputs):
        graphs.append(graph_module.graph)
        return make_boxed_func(graph_module.forward)

    return torch.compile(module, backend=aot_autograd(fw_compiler=keep), fullgraph=True, **options), graphs


@pytest.mark.parametrize("sequential", [True, False])
def test_compile_for_training(sequential):
    block = Block(sequential=sequential)
    fast, graphs = compiled(block, dynamic=True)
    for leading in ((3, 5), (2, 4), (6, 1)):
        hidden_states = torch.randn(*leading, 8)
        results = []
        for module in (fast, block):
            block.zero_grad()
            leaf = hidden_states.clone().requires_grad_()
            module(leaf).square().sum().backward()
            results.append([leaf.grad, *[parameter.grad.clone() for parameter in block.parameters()]])
        torch.testing.assert_close(*results)
    forward, backward = graphs[:2]
    assert count(forward, "adapterx.bottleneck_adapter_train.default") == 1
    assert count(backward, "adapterx.bottleneck_adapter_backward.default") == 1
    assert not [node for node in (*forward.nodes, *backward.nodes) if "mm" in str(node.target)]
    assert count(backward, "aten.add.Tensor") == (0 if sequential else 1)


def test_compile_for_training_of_the_lowest_layer():
    block = Block()
    fast, graphs = compiled(block)
    hidden_states = torch.randn(5, 8)
    fast(hidden_states).square().sum().backward()
    node = next(node for node in graphs[1].nodes if "backward" in str(node.target))
    assert node.args[-1] == [False, True, True, True, True]
    actual = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    block(hidden_states).square().sum().backward()
    torch.testing.assert_close(actual, [parameter.grad for parameter in block.parameters()])


def test_compile_for_inference():
    block = Block()
    fast, graphs = compiled(block)
    hidden_states = torch.randn(5, 8)
    with torch.no_grad():
        assert torch.equal(fast(hidden_states), block(hidden_states))
    assert [str(node.target) for node in graphs[0].nodes if node.op == "call_function"] == [OPERATOR]


def test_compile_under_autocast():
    block = Block()
    fast, _ = compiled(block)
    hidden_states = torch.randn(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, wanted = fast(hidden_states), block(hidden_states)
    assert actual.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(actual, wanted)


def test_compile_with_inductor():
    torch._dynamo.reset()
    block = Block()
    fast = torch.compile(block, fullgraph=True)
    hidden_states = torch.randn(5, 8)  # no gradient of its own: inductor must cope with the result that is left out
    fast(hidden_states).square().sum().backward()
    actual = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    block(hidden_states).square().sum().backward()
    torch.testing.assert_close(actual, [parameter.grad for parameter in block.parameters()])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch hides it itself
def test_compiled_autograd():
    torch._dynamo.reset()
    block = Block()
    hidden_states = torch.randn(5, 8)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        block(hidden_states).square().sum().backward()
    actual = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    block(hidden_states).square().sum().backward()
    torch.testing.assert_close(actual, [parameter.grad for parameter in block.parameters()])


# PyTorch's own checks


@pytest.mark.parametrize("without", [(), ("residual",), ("down_bias", "up_bias")], ids=str)
def test_opcheck(without):
    arguments = make_arguments((3, 2), 6, 5, 4, without=without, requires_grad=NAMES)
    same = [arguments[0], arguments[0], *make_arguments((), 6, 6, 4, requires_grad=NAMES)[2:]]
    for name in ("bottleneck_adapter", "bottleneck_adapter_train"):
        operator = getattr(torch.ops.adapterx, name).default
        for tensors in (arguments, same):
            torch.library.opcheck(operator, (*tensors, "silu", 0.7))


@pytest.mark.parametrize("mask", [(True,) * 5, (False, True, False, True, False), (True, False, False, False, False)])
def test_opcheck_of_the_backward_operator(mask):
    hidden_states, grad_output, down_weight, _, up_weight, _ = make_arguments((3, 2), 6, 6, 4)
    pre_activation = torch.randn(3, 2, 4, dtype=torch.float64)
    tensors = (grad_output, hidden_states, pre_activation, down_weight, up_weight)
    torch.library.opcheck(
        torch.ops.adapterx.bottleneck_adapter_backward.default, (*tensors, "gelu", 0.7, True, list(mask))
    )


def test_activations_and_scaling_are_constants_of_the_graph():
    for activation in ACTIVATIONS:
        fast, graphs = compiled(lambda *tensors, activation=activation: compute(tensors, activation, 0.25))
        arguments = make_arguments()
        torch.testing.assert_close(fast(*arguments), expect(arguments, activation, 0.25))
        assert next(node for node in graphs[0].nodes if str(node.target) == OPERATOR).args[6:] == (activation, 0.25)
