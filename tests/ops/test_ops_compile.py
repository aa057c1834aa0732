"""The operator in programs that others run: TorchScript, torch.export, torch.compile, and PyTorch's own checks."""

import io

import pytest
import torch
from functorch.compile import make_boxed_func
from ops_cases import ACTIVATIONS, NAMES, compute, expect, make_arguments
from torch._dynamo.backends.common import aot_autograd

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
