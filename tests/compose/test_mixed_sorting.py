"""One sort of the tokens for all layers inside `mixed`, where the kernels want the tokens sorted: on a GPU."""

from collections import Counter

import pytest
import torch
from mixed_cases import NAMES, adapted, small_model
from tiny_models import inputs_for, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from adapterx import adapter_parameters, mixed, ops
from adapterx.compose import batch as batch_module
from adapterx.compose.batch import Choice
from adapterx.compose.regions import Extent, Region

EMULATED = ops.build_info()["cuda"] == "emulated"
needs_the_sort = pytest.mark.skipif(not EMULATED, reason="the CPU does not sort beforehand")


class Calls(TorchDispatchMode):
    """Count the calls of our operators."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function).removeprefix("adapterx.").removesuffix(".default")] += 1
        return function(*args, **(kwargs or {}))

    def take(self):
        """Return how often tokens were sorted, and how often adapters ran, since the last time."""
        counts, self.counts = self.counts, Counter()
        return counts["sort_tokens"], counts["bottleneck_adapter"] + counts["bottleneck_adapter_train"]


@pytest.fixture
def sorting(monkeypatch):
    """Sort as on a GPU; the CPU tensors of the emulated library stand for those of one."""
    monkeypatch.setattr(ops, "SORTING_DEVICES", ("cpu",))


@needs_the_sort
def test_a_pass_sorts_once_for_each_group_of_adapters(sorting, monkeypatch):
    model = adapted(dtype=torch.float32)
    inputs = inputs_for("bert", model, batch=len(NAMES))
    with torch.no_grad(), mixed(model, NAMES):
        with Calls() as calls:
            found = run(model, inputs)
            sorts, adapters = calls.take()
            assert 0 < sorts < adapters
            assert torch.equal(run(model, inputs), found)
            assert calls.take() == (0, adapters)
        monkeypatch.setattr(ops, "SORTING_DEVICES", ())
        assert torch.equal(run(model, inputs), found)


@needs_the_sort
def test_training_with_checkpoints(sorting, monkeypatch):
    """The layers of a part that is computed again find the order of the first time."""
    model = small_model().train()
    hidden_states = torch.randn(3, 5, 8, dtype=torch.float64)

    def gradients():
        model.zero_grad()
        with mixed(model, ["b", "c", None]), Calls() as calls:
            checkpoint(model, hidden_states, use_reentrant=False).square().sum().backward()
        return {key: p.grad.clone() for key, p in adapter_parameters(model) if p.grad is not None}, calls.take()

    found, (sorts, adapters) = gradients()
    assert 0 < sorts < adapters / 2
    monkeypatch.setattr(ops, "SORTING_DEVICES", ())
    expected, _ = gradients()
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        assert torch.equal(gradient, expected[key])


@needs_the_sort
def test_other_numbers_of_tokens_are_sorted_anew(sorting, monkeypatch):
    model = small_model()
    passes = [torch.randn(4, length, 8, dtype=torch.float64) for length in (7, 1, 1, 130)]
    with torch.no_grad(), mixed(model, ["b", "a", None, "c"]):
        with Calls() as calls:
            found, sorts = [], []
            for hidden_states in passes:
                found.append(model(hidden_states))
                sorts.append(calls.take()[0])
        assert sorts[0] == sorts[1] == sorts[3] > sorts[2] == 0
        monkeypatch.setattr(ops, "SORTING_DEVICES", ())
        for hidden_states, output in zip(passes, found, strict=True):
            assert torch.equal(model(hidden_states), output)


@needs_the_sort
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:DeprecationWarning")
def test_what_is_recorded_serves_other_numbers_of_tokens(sorting):
    """A trace has the indices, as without an order, and so has what torch.export makes."""
    model = small_model()
    example, other = (torch.randn(3, length, 8, dtype=torch.float64) for length in (5, 9))
    with torch.no_grad(), mixed(model, ["b", None, "c"]):
        traced = torch.jit.trace(model, (example,), check_trace=False)
        length = torch.export.Dim("length")
        program = torch.export.export(model, (example,), dynamic_shapes=({1: length},))
        expected = model(other)
    torch.testing.assert_close(traced(other), expected)
    torch.testing.assert_close(program.module()(other), expected)
    for text in (str(traced.inlined_graph), str(program.graph)):
        assert "bottleneck_adapter" in text
        assert "sort_tokens" not in text


@needs_the_sort
def test_compiled(sorting):
    model = small_model()
    hidden_states = torch.randn(3, 5, 8, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), mixed(model, ["b", "c", None]):
        torch.testing.assert_close(compiled(hidden_states), model(hidden_states))
    with torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"), mixed(model, ["c", None, "b"]):
        torch.testing.assert_close(compiled(hidden_states), model(hidden_states))


# ---- streams and graphs, on a batch alone ----


@pytest.fixture
def queue(sorting, monkeypatch):
    """Return what the batch believes of the GPU, [stream, capturing], which tests change; sorts return new tensors."""
    state = [1, False]
    monkeypatch.setattr(batch_module, "_stream", lambda _: tuple(state))
    monkeypatch.setattr(ops, "sort_tokens", lambda indices, *_: indices.clone())
    return state


def choice_of(*numbers):
    """Return the choice of a batch in which each sequence picks the member of this number, or None."""
    entries = tuple((Region((row,)), number) for row, number in enumerate(numbers) if number is not None)
    return Choice(Extent(len(numbers)), entries, 2)


def sorted_by(batch, count=8):
    tokens = torch.empty(2, count, 3)
    return batch.sorted_indices(batch.indices(tokens.device), tokens)


def test_an_order_is_used_on_the_stream_that_made_it(queue):
    """Nothing else waits for it."""
    batch = choice_of(0, 1)
    first = sorted_by(batch)
    assert sorted_by(batch) is first
    queue[0] = 2
    second = sorted_by(batch)
    assert second is not first
    assert sorted_by(batch) is second


def test_a_capture_takes_an_order_that_is_there_and_keeps_it(queue):
    """A graph reads the memory later; it must not go to others when another number of tokens comes."""
    batch = choice_of(0, 1)
    order = sorted_by(batch)
    queue[:] = 2, True
    assert sorted_by(batch) is order
    queue[:] = 1, False
    sorted_by(batch, 16)
    assert any(kept is order for kept in batch._captured.values())


def test_an_order_of_a_capture_is_for_no_other_call(queue):
    """Before the graph runs there is nothing in its memory."""
    batch = choice_of(0, 1)
    queue[1] = True
    captured = sorted_by(batch)
    assert sorted_by(batch) is not captured
    queue[1] = False
    assert sorted_by(batch) is not captured


def test_without_a_gpu_the_indices_stay_as_they_are():
    batch = choice_of(0, None)
    tokens = torch.empty(2, 8, 3)
    indices = batch.indices(tokens.device)
    assert batch.sorted_indices(indices, tokens) is indices
    assert indices.tolist() == [0, -1]
