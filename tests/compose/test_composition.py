"""Active adapters: which run, in what order, which train, and what switches them off."""

import pytest
import torch
from tiny_adapters import randomise
from tiny_models import build, inputs_for, plain_model, run
from torch import nn

from adapterx import (
    AdapterConfig,
    UnknownAdapterError,
    active_adapters,
    adapter_names,
    adapter_parameters,
    attach,
    detach,
    disabled,
    set_active,
)

CONFIG = AdapterConfig(bottleneck_dim=3, positions=("feed_forward",))
PARALLEL = AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), placement="parallel")


@pytest.fixture
def model():
    """A plain model with adapters a (sequential), b (sequential) and c (parallel), of which a is active."""
    model = plain_model()
    for name in "abc":
        attach(model, PARALLEL if name == "c" else CONFIG, name, active=name == "a")
    randomise(model, scale=1.0)
    return model


HIDDEN_STATES = torch.linspace(-1, 1, 24).view(3, 8)


def test_names_and_active_names(model):
    assert adapter_names(model) == ("a", "b", "c")
    assert active_adapters(model) == ("a",)
    assert adapter_names(nn.Linear(1, 1)) == active_adapters(nn.Linear(1, 1)) == ()
    set_active(model, ["c", "a"])
    assert active_adapters(model) == ("c", "a")
    set_active(model, None)
    assert active_adapters(model) == ()


def test_stacked_in_the_given_order(model):
    narrow = model.blocks[0].narrow
    hidden_states = torch.randn(4, 12)
    with disabled(model):
        base = narrow(hidden_states)
    a, b = narrow.adapterx["a"], narrow.adapterx["b"]
    for names, expected in (
        (["a", "b"], b(a(base, base), a(base, base))),
        (["b", "a"], a(b(base, base), b(base, base))),
        (["b"], b(base, base)),
        ("b", b(base, base)),
        ((), base),
        (None, base),
    ):
        set_active(model, names)
        torch.testing.assert_close(narrow(hidden_states), expected)


def test_parallel_adapters_add_to_a_stack_in_any_order(model):
    outputs = []
    for names in (["a", "c"], ["c", "a"]):
        set_active(model, names)
        outputs.append(model(HIDDEN_STATES))
    assert not torch.allclose(*outputs)  # a also reads what c has added, if it comes later
    attach(model, PARALLEL, "d")
    randomise(model, "d", seed=12, scale=1.0)
    outputs = []
    for names in (["c", "d"], ["d", "c"]):
        set_active(model, names)
        outputs.append(model(HIDDEN_STATES))
    torch.testing.assert_close(*outputs)


def test_active_adapters_are_the_trainable_ones(model):
    for names in (["a"], ["b", "c"], None):
        set_active(model, names)
        trainable = {name.split(".adapterx.")[1][0] for name, p in model.named_parameters() if p.requires_grad}
        assert trainable == set(names or ())


def test_a_detached_adapter_is_not_active_when_its_name_comes_back(model):
    set_active(model, ["b", "a"])
    detach(model, "a")
    assert active_adapters(model) == ("b",)
    attach(model, CONFIG, "a", active=False)
    assert active_adapters(model) == ("b",)


def test_unknown_and_repeated_names_change_nothing(model):
    with pytest.raises(
        UnknownAdapterError, match="set_active: name must be an attached adapter, got 'x', 'y'; attached"
    ):
        set_active(model, ["y", "a", "x"])
    with pytest.raises(KeyError):
        set_active(model, "x")
    with pytest.raises(ValueError, match="names must not repeat"):
        set_active(model, ["b", "b"])
    assert active_adapters(model) == ("a",)


def test_attaching_inactive_changes_nothing(model):
    before = model(HIDDEN_STATES)
    set_active(model, ["a", "b"])
    stacked = model(HIDDEN_STATES)
    attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("classifier",)), "late", active=False)
    assert active_adapters(model) == ("a", "b")
    assert torch.equal(model(HIDDEN_STATES), stacked)
    assert not any(parameter.requires_grad for _, parameter in adapter_parameters(model, "late"))
    assert not torch.equal(before, stacked)


def test_disabled_nests_and_survives_exceptions(model):
    adapted = model(HIDDEN_STATES)
    with disabled(model) as same:
        assert same is model
        base = model(HIDDEN_STATES)
        with disabled(model):
            assert torch.equal(model(HIDDEN_STATES), base)
        assert torch.equal(model(HIDDEN_STATES), base)
        with pytest.raises(ZeroDivisionError), disabled(model):
            _ = 1 / 0
        assert torch.equal(model(HIDDEN_STATES), base)
        assert active_adapters(model) == ("a",)
    assert not torch.allclose(base, adapted)
    assert torch.equal(model(HIDDEN_STATES), adapted)


def test_disabled_part_of_a_model(model):
    adapted = model(HIDDEN_STATES)
    with disabled(model.blocks[0]):
        half = model(HIDDEN_STATES)
        with disabled(model):
            base = model(HIDDEN_STATES)
        assert torch.equal(model(HIDDEN_STATES), half)
    assert torch.equal(model(HIDDEN_STATES), adapted)
    assert not torch.allclose(half, base)


def test_changes_inside_a_disabled_block(model):
    with disabled(model):
        base = model(HIDDEN_STATES)
        set_active(model, "b")
        assert torch.equal(model(HIDDEN_STATES), base)
        attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("classifier",), init_up="near_zero"), "late")
        assert torch.equal(model(HIDDEN_STATES), base)
        detach(model, "a")
    assert active_adapters(model) == ("late",)
    assert not torch.equal(model(HIDDEN_STATES), base)


def test_enclosing_modules_see_and_switch_the_adapters_of_their_parts():
    outer = nn.ModuleDict({"inner": build("distilbert"), "head": nn.Linear(32, 2)})
    inputs = inputs_for("distilbert", outer["inner"])
    base = run(outer["inner"], inputs)
    attach(outer["inner"], AdapterConfig(bottleneck_dim=4, init_up="near_zero"))
    assert active_adapters(outer) == ("default",)
    with disabled(outer):
        assert torch.equal(run(outer["inner"], inputs), base)
    set_active(outer, None)
    assert torch.equal(run(outer["inner"], inputs), base)
