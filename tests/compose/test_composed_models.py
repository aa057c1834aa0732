"""Compositions on whole models: sizes that do not fit, trained copies, dropout, adapters that run alone, precision."""

import copy

import pytest
import torch
from composed import slow
from mixed_cases import HIDDEN_STATES, adapted, call
from model_state import pickled
from tiny_adapters import randomise
from tiny_models import build, inputs_for, plain_model, run

from adapterx import (
    AdapterConfig,
    Average,
    BatchSplit,
    ConfigError,
    Fuse,
    Parallel,
    Split,
    Stack,
    adapter_parameters,
    add_fusion,
    attach,
    mixed,
    set_active,
)

SHARED = {"positions": ("feed_forward",)}
CONFIGS = {
    "a": AdapterConfig(bottleneck_dim=3, **SHARED),
    "b": AdapterConfig(bottleneck_dim=5, **SHARED),
    "gated": AdapterConfig(bottleneck_dim=3, gating=True, **SHARED),
    "normed": AdapterConfig(bottleneck_dim=3, norm_before=True, norm_after="sum", **SHARED),
}
NARROW = torch.linspace(-1, 1, 4 * 6 * 12, dtype=torch.float64).view(4, 6, 12)


@pytest.fixture
def model():
    return adapted(plain_model(), CONFIGS)


def alone(model, name, hidden_states):
    set_active(model, name)
    return model(hidden_states)


@pytest.mark.parametrize(
    ("composition", "shape", "wanted"),
    [
        (BatchSplit("a", "b", batch_sizes=2), (3, 5, 8), r"\(4, \.\.\., hidden_size\), the sum of batch_sizes"),
        (BatchSplit("a", batch_sizes=4), (3, 5, 8), r"\(4, \.\.\., hidden_size\), the sum of batch_sizes"),
        (BatchSplit("gated", "a", batch_sizes=2), (5, 5, 8), r"\(4, \.\.\., hidden_size\), the sum of batch_sizes"),
        (Split("a", None, splits=3), (2, 5, 8), r"\(batch, 6, \.\.\., hidden_size\), the sum of splits being"),
        (Split("a", None, splits=3), (2, 8), r"\(batch, 6, \.\.\., hidden_size\)"),
        (BatchSplit(Split("a", "b", splits=3), "b"), (3, 6, 8), r"\(2, 6, \.\.\., hidden_size\)"),
    ],
)
def test_batches_of_another_size(model, composition, shape, wanted):
    set_active(model, composition)
    with pytest.raises(ValueError, match=rf"set_active: the hidden states of blocks\.0\.narrow must be {wanted}"):
        model(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("composition", "message"),
    [
        (Split("a", Fuse("a", "b"), splits=3), "parts of Split must be names of adapters or one of Stack, Average"),
        (Average("a", Fuse("a", "b")), "names must not repeat|parts of Average must be"),
        (BatchSplit("a", Parallel("a", "b")), "parts of BatchSplit must be"),
        (BatchSplit(BatchSplit("a", "b"), "b"), "batch_sizes must make up the 1 sequences"),
        (Stack(Split("a", None, splits=3), Split("b", None, splits=2)), "every Split for the same hidden states"),
    ],
)
def test_what_cannot_nest(model, composition, message):
    add_fusion(model, ["a", "b"], active=False)
    set_active(model, "a")
    with pytest.raises(ConfigError, match=f"set_active: ({message})"):
        set_active(model, composition)
    assert model.blocks[0].narrow.adapterx.route.composition == Stack("a")


def test_adapters_that_run_alone_see_their_own_sequences(model):
    """A gate is a mean over the tokens of a sequence, or of a stretch of it; nothing else may come into it."""
    hidden_states = torch.randn(4, 6, 8, dtype=torch.float64)
    rows = {name: alone(model, name, hidden_states) for name in (*CONFIGS, None)}
    set_active(model, BatchSplit("gated", "a", "normed", "gated"))
    expected = torch.stack([rows[name][i] for i, name in enumerate(("gated", "a", "normed", "gated"))])
    torch.testing.assert_close(model(hidden_states), expected, rtol=0, atol=1e-12)
    narrow = model.blocks[0].narrow
    set_active(model, "gated")
    pieces = [narrow(NARROW[:, :4]), None]
    set_active(model, "a")
    pieces[1] = narrow(NARROW[:, 4:])
    set_active(model, Split("gated", "a", splits=[4, 2]))
    torch.testing.assert_close(narrow(NARROW), torch.cat(pieces, 1), rtol=0, atol=1e-12)
    set_active(model, Average("gated", "a", "b", weights=[2, 1, 1]))
    means = narrow(NARROW)
    total = 0
    for name, factor in (("gated", 0.5), ("a", 0.25), ("b", 0.25)):
        set_active(model, name)
        total = total + factor * narrow(NARROW)
    torch.testing.assert_close(means, total, rtol=0, atol=1e-12)


def test_fused_adapters_that_run_alone(model):
    narrow = model.blocks[0].narrow
    fuse = add_fusion(model, ["a", "gated"], seed=0)
    found = narrow(NARROW)
    set_active(model, None)
    base = narrow(NARROW)
    branches = torch.stack([narrow.adapterx[name](base, base) - base for name in fuse.parts])
    torch.testing.assert_close(found, narrow.adapterx_fusions[fuse.key](base, branches, base), rtol=0, atol=1e-12)


@pytest.fixture
def headed():
    """A plain model whose adapters a and b train copies of the classifier; "bare" does not."""
    model = plain_model()
    for name in ("a", "b", "bare"):
        saved = () if name == "bare" else ("classifier",)
        attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("narrow",), modules_to_save=saved), name)
    randomise(model)
    return model.double()


def test_trained_copies_answer_for_their_own(headed):
    classifier, hidden_states = headed.classifier, HIDDEN_STATES[:2].repeat(2, 1)
    a, b = (classifier.adapterx_copies[name](hidden_states) for name in "ab")
    set_active(headed, None)
    base = classifier(hidden_states)
    add_fusion(headed, ["a", "bare"], active=False)
    for composition, expected in (
        (BatchSplit("a", "b", None, "bare"), torch.stack([a[0], b[1], base[2], base[3]])),
        (BatchSplit(Stack("a", "b"), "a", batch_sizes=2), torch.cat([b[:2], a[2:]])),
        (BatchSplit(Average("a", "b", weights=[1, 3]), "b", batch_sizes=2), torch.cat([(a + 3 * b)[:2] / 4, b[2:]])),
        (Stack("b", BatchSplit("a", "bare", batch_sizes=2)), torch.cat([a[:2], b[2:]])),
        (Average(BatchSplit("a", None, batch_sizes=2), "b"), torch.cat([a[:2] + b[:2], base[2:] + b[2:]]) / 2),
        (Fuse("a", "bare"), base),
        (Stack("b", Fuse("a", "bare")), b),
        (Stack("b", Split("bare", None, splits=1)), b),
    ):
        set_active(headed, composition)
        torch.testing.assert_close(classifier(hidden_states), expected, rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match=r"adapters in Split must not train copies of modules .*, got 'a'"):
        set_active(headed, Split("a", "bare", splits=1))


def test_each_averaged_adapter_drops_for_itself():
    configs = {name: AdapterConfig(bottleneck_dim=3, dropout=0.5, **SHARED) for name in "ab"}
    model = adapted(plain_model(), configs).train()
    narrow = model.blocks[0].narrow
    set_active(model, None)
    base = narrow(NARROW)
    set_active(model, Average("a", "b"))
    torch.manual_seed(0)
    found = narrow(NARROW)
    torch.manual_seed(0)
    expected = sum(narrow.adapterx[name](base, base) for name in "ab") / 2
    torch.testing.assert_close(found, expected)
    model.eval()
    torch.testing.assert_close(narrow(NARROW), slow(Average("a", "b"), narrow.adapterx, base), rtol=0, atol=1e-12)


def test_copies_and_pickles_and_training_steps(model):
    hidden_states = torch.randn(4, 6, 8, dtype=torch.float64)
    composition = BatchSplit(Average("a", "b"), None, Stack("b", "a"), "gated")
    set_active(model, composition)
    with torch.no_grad():
        before = model(hidden_states)
        for twin in (copy.deepcopy(model), pickled(model)):
            assert torch.equal(twin(hidden_states), before)
    optimizer = torch.optim.Adam([p for _, p in adapter_parameters(model)], lr=0.1, fused=True)
    model(hidden_states).square().sum().backward()
    optimizer.step()  # changes parameters without counting up their versions
    with torch.no_grad():
        after = model(hidden_states)
        twin = copy.deepcopy(model)  # which has kept nothing
        assert torch.equal(after, twin(hidden_states))
    assert not torch.allclose(after, before)


COMPOSITIONS = (
    Average("pa", "pb", weights=[3, 1]),
    Average(Stack("pa"), "pb"),
    BatchSplit("pa", Average("pa", "pb"), None, Stack("pb", "pa")),
    Split("pa", "pb", splits=3),
    Fuse("pa", "pb"),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("composition", COMPOSITIONS, ids=repr)
def test_low_precision_is_as_exact_as_the_formula_in_pytorch(composition, dtype):
    """Errors against float64 are at most twice PyTorch's own, of weight gradients three times; without a residual."""
    beside = AdapterConfig(bottleneck_dim=8, target_modules=("narrow",), placement="parallel")
    exact = adapted(plain_model(depth=1, size=64, width=64), {"pa": beside, "pb": beside})
    add_fusion(exact, ["pa", "pb"], active=False, seed=0)
    exact.to(dtype).double()  # numbers that both can hold
    low = copy.deepcopy(exact).to(dtype)
    generator = torch.Generator().manual_seed(1)
    received, gradient = (torch.randn(4, 6, 64, generator=generator).to(dtype) for _ in range(2))

    def results(model, *, by_formula):
        """Return the output of the adapters alone, and the gradients of their weights."""
        narrow = model.blocks[0].narrow
        source = received.to(narrow.weight.dtype)
        zeros = torch.zeros_like(source)
        set_active(model, composition, train_fused=True)
        if by_formula:
            output = slow(composition, narrow.adapterx, zeros, source, getattr(narrow, "adapterx_fusions", None))
        else:
            output = narrow.adapterx.adapt(narrow, (source,), {}, zeros)
        weights = [p for p in narrow.parameters() if p.requires_grad and p.dim() > 1]
        return [output.detach(), *torch.autograd.grad(output, weights, gradient.to(output.dtype))]

    wanted, theirs, mine = (
        results(exact, by_formula=True),
        results(low, by_formula=True),
        results(low, by_formula=False),
    )
    for number, (right, other, own) in enumerate(zip(wanted, theirs, mine, strict=True)):
        limit = (3 if number else 2) * (other.double() - right).norm() + 1e-7 * right.norm()
        assert (own.double() - right).norm() <= limit


def test_batches_and_stretches_compile_in_one_graph():
    model = adapted(build("bert"), {"a": AdapterConfig(bottleneck_dim=3), "b": AdapterConfig(bottleneck_dim=4)})
    inputs = inputs_for("bert", model, batch=2, length=6)
    set_active(model, BatchSplit(Split("a", "b", splits=[4, 2]), Stack("b", "a")))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))


def test_mixed_batches_of_one_adapter_complain_late():
    model = adapted(plain_model(), {"a": CONFIGS["a"]})
    set_active(model, None)
    with mixed(model, ["a"] * 3):
        loss = call(model, HIDDEN_STATES).sum()
    with pytest.raises(RuntimeError, match=r"mixed: backward\(\) must run inside"):
        loss.backward()
