"""Every composition against the slow way, values and gradients, and in how many calls of the operator it runs."""

import pytest
import torch
from composed import slow
from mixed_cases import adapted
from tiny_models import plain_model

from adapterx import (
    AdapterConfig,
    Average,
    BatchSplit,
    Fuse,
    Split,
    Stack,
    add_fusion,
    disabled,
    mixed,
    ops,
    set_active,
)

SHARED = {"positions": ("feed_forward",)}
CONFIGS = {
    "a": AdapterConfig(bottleneck_dim=3, **SHARED),
    "b": AdapterConfig(bottleneck_dim=5, scaling=0.5, down_bias=False, **SHARED),
    "c": AdapterConfig(bottleneck_dim=2, scaling="learned", up_bias=False, **SHARED),
    "s": AdapterConfig(bottleneck_dim=4, activation="sigmoid", **SHARED),  # a call of its own
    "p": AdapterConfig(bottleneck_dim=2, target_modules=("narrow",), placement="parallel"),
    "pp": AdapterConfig(bottleneck_dim=4, target_modules=("narrow",), placement="parallel"),
    "other": AdapterConfig(bottleneck_dim=2, layers=(1,), **SHARED),  # not on this module
}
AB, BC = Average("a", "b", weights=[3, 1]), Average("b", "c", weights=[2, -0.5], normalize=False)
FUSIONS = (Fuse("a", "b", "c"), Fuse("a", Stack("c", "b"), "other", name="deep"), Fuse("p", "pp"), Fuse("a", "s"))
# composition for four sequences of six tokens: calls of the operator on the module
CASES = {
    Stack("a", "b", "p"): 3,
    AB: 1,
    BC: 1,
    Average("a", "other", "b"): 1,
    Average("p", "pp", weights=[1, 4]): 1,
    Average("a", "p"): 2,
    Average("a", "s", "b"): 3,
    Average(Stack("a", "b"), "c"): 3,
    Average(AB, "c"): 2,
    Average("a"): 1,
    BatchSplit("a", None, "b", "c"): 1,
    BatchSplit("a", "p", "s", "a"): 3,
    BatchSplit("a", batch_sizes=4): 1,
    BatchSplit("other", "a", batch_sizes=2): 1,
    BatchSplit(Stack("a", "b"), Stack("c", "a"), "b", None): 2,
    BatchSplit(Stack("a", "p"), Stack("s", "b"), batch_sizes=[1, 3]): 4,
    BatchSplit(AB, "c", batch_sizes=2): 1,
    BatchSplit(BC, "c", batch_sizes=2): 2,
    BatchSplit(Stack("c", BatchSplit("a", "b")), "b", batch_sizes=2): 2,
    BatchSplit(Split("a", "b", splits=[4, 2]), "c", batch_sizes=2): 1,
    BatchSplit(Fuse("a", "b", "c"), "b", batch_sizes=2): 2,
    Stack("c", BatchSplit("a", "b", batch_sizes=2)): 2,
    Stack(BatchSplit("a", "b", batch_sizes=[1, 3]), BatchSplit("s", "c", batch_sizes=[3, 1])): 3,
    Split("a", "b", None, splits=2): 1,
    Split("a", "p", splits=[1, 5]): 2,
    Split("a", Split("b", "c", splits=[2, 1]), splits=3): 1,
    Split(BatchSplit("a", "b", batch_sizes=2), Stack("b", "c"), splits=[4, 2]): 2,
    Split(AB, "c", splits=3): 1,
    Stack(Split("a", "b", splits=3), "c"): 2,
    Average(BatchSplit("a", "b", batch_sizes=2), Split("c", None, splits=3)): 2,
    Fuse("a", "b", "c"): 1,
    Fuse("a", Stack("c", "b"), "other", name="deep"): 2,
    Fuse("p", "pp"): 1,
    Fuse("a", "s"): 2,
    Stack("c", Fuse("a", "s")): 3,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = adapted(plain_model(), CONFIGS)
    for fuse in FUSIONS:
        add_fusion(model, fuse, active=False, seed=1)
    for module in model.modules():
        if type(module).__name__ == "AdapterFusion":
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of the operator."""
    count, operator = [], ops.bottleneck_adapter
    monkeypatch.setattr(ops, "bottleneck_adapter", lambda *a, **k: (count.append(1), operator(*a, **k))[1])
    return count


def received(batch=4, tokens=6):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, tokens, 12, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("composition", CASES, ids=repr)
def test_values_gradients_and_calls(model, calls, composition):
    narrow = model.blocks[0].narrow
    set_active(model, composition, train_fused=True)
    inputs = received()
    with disabled(model):
        base = narrow(inputs)
    expected = slow(composition, narrow.adapterx, base, inputs, getattr(narrow, "adapterx_fusions", None))
    found = narrow(inputs)
    assert len(calls) == CASES[composition]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    wanted = [inputs, *(p for p in narrow.parameters() if p.requires_grad)]
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mine = torch.autograd.grad(found, wanted, gradient, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected, wanted, gradient, allow_unused=True, materialize_grads=True)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(narrow(inputs), expected, rtol=0, atol=1e-12)
        if not isinstance(composition, (Fuse, Stack, Average)):  # a matrix, of which rows belong to sequences
            flat = narrow(inputs.flatten(0, 1))
            torch.testing.assert_close(flat, expected.flatten(0, 1), rtol=0, atol=1e-12)


def test_mixed_takes_compositions(model):
    inputs = received()
    parts = [AB, None, Stack("c", "p"), "a"]
    with torch.no_grad():
        set_active(model, BatchSplit(*parts))
        expected = model.blocks[0].narrow(inputs)
        set_active(model, None)
        with mixed(model, parts):
            assert torch.equal(model.blocks[0].narrow(inputs), expected)
