"""A thousand adapters: what is done for one of them does not grow with the others. Calls are counted, not seconds."""

import sys

import pytest
import torch
from tiny_models import build, inputs_for, plain_model, run

from adapterx import AdapterConfig, attach, detach, disabled, mixed, rename_adapter, set_active, skip_layers

CONFIGS = {
    "sequential": AdapterConfig(bottleneck_dim=1),
    "parallel": AdapterConfig(bottleneck_dim=1, placement="parallel", positions=("feed_forward",)),
    "with a head": AdapterConfig(bottleneck_dim=1, positions=("feed_forward",), modules_to_save=("pooler.dense",)),
}


def calls_of(act):
    """Return how many calls, of Python and of C, an action makes."""
    count = 0

    def note(_frame, event, _argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def block_of(opened):
    def act():
        with opened():
            pass

    return act


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_work_for_one_adapter_does_not_grow_with_the_others(config):
    model = build("bert")
    inputs = inputs_for("bert", model)

    def work():
        """Return the calls of everything that is done to one adapter among those that there are."""
        return {
            "attach": calls_of(lambda: attach(model, config, "x", seed=0)),
            "switch": calls_of(lambda: (set_active(model, "first"), set_active(model, "x"))),
            "run": calls_of(lambda: run(model, inputs)),
            "mixed": calls_of(block_of(lambda: mixed(model, ["x", "first"]))),
            "disabled": calls_of(block_of(lambda: disabled(model))),
            "skip": calls_of(block_of(lambda: skip_layers(model, [0]))),
            "detach": calls_of(lambda: detach(model, "x")),
        }

    attach(model, config, "first")
    with torch.no_grad():
        work()  # what is made once and kept
        few = work()
        for number in range(60):
            attach(model, config, f"other-{number}", active=False)
        many = work()
    grown = {name: (few[name], many[name]) for name in few if many[name] > few[name] + 30}
    assert not grown


def test_renaming_among_many_keeps_the_rest():
    model = build("bert")
    for number in range(20):
        attach(model, CONFIGS["parallel"], f"a{number}", active=False)
    source = model.encoder.layer[0].intermediate.dense
    assert len(source._forward_pre_hooks) == 1  # all of them share what they read
    rename_adapter(model, "a3", "b")
    for number in range(20):
        detach(model, "b" if number == 3 else f"a{number}")
    assert not source._forward_pre_hooks


def test_what_is_found_does_not_depend_on_the_adapters_before():
    model = plain_model()
    config = AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), train_norms=True)
    first, second = attach(model, config, "a"), attach(model, config, "b")
    assert (first.targets, first.modules_to_save) == (second.targets, second.modules_to_save)
