"""What is copied, or ends out of order, inside open blocks: a copy has the flags and the route from before them."""

import copy
import io
import multiprocessing
from contextlib import ExitStack

import pytest
import torch
from model_state import pickled
from tiny_models import build, inputs_for, run

from adapterx import AdapterConfig, adapter_parameters, attach, disabled, mixed, set_active

CONFIG = AdapterConfig(bottleneck_dim=4, init_up="near_zero", modules_to_save=("pooler.dense",))


def torch_saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def forked(model):
    return multiprocessing.reduction.ForkingPickler.loads(multiprocessing.reduction.ForkingPickler.dumps(model))


COPIES = pytest.mark.parametrize("twin_of", [copy.deepcopy, pickled, torch_saved, forked])


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.fixture
def model():
    model = build("bert")
    attach(model, CONFIG, "a")
    attach(model, CONFIG, "b", active=False)
    return model


@COPIES
@pytest.mark.parametrize("block", ["mixed", "mixed in disabled", "mixed in mixed", "mixed in a part"])
def test_a_copy_has_the_flags_from_before_the_blocks(model, block, twin_of):
    before, inputs = flags(model), inputs_for("bert", model)
    adapted = run(model, inputs)
    with ExitStack() as stack:
        if block == "mixed in disabled":
            stack.enter_context(disabled(model))
        if block == "mixed in mixed":
            stack.enter_context(mixed(model, ["a", None]))
        inner = model.encoder if block == "mixed in a part" else model
        stack.enter_context(mixed(inner, ["b", "b"]))
        assert flags(model) != before
        twin, part = twin_of(model), twin_of(model.encoder.layer[0])
        held = flags(model)
    assert flags(twin) == before
    assert flags(part) == flags(model.encoder.layer[0])
    assert held != before == flags(model)
    assert torch.equal(run(twin, inputs), adapted)
    with mixed(twin, ["b", "b"]):
        assert flags(twin) != before
    assert flags(twin) == before


def test_a_shallow_copy_leaves_the_model_as_it_is(model):
    inputs = inputs_for("bert", model)
    adapted = run(model, inputs)
    with mixed(model, ["b", None]):
        held = flags(model)
        for module in model.modules():
            copy.copy(module)
        assert flags(model) == held
    with disabled(model):
        base = run(model, inputs)
        twin = copy.copy(model.encoder.layer[0].output.dense.adapterx)
        assert torch.equal(run(model, inputs), base)
    assert twin.route.overrides == ()
    assert torch.equal(run(model, inputs), adapted)


def test_blocks_that_end_in_another_order_give_all_flags_back(model):
    before = flags(model)
    first, second = mixed(model, ["b", "b"]), mixed(model, [None, "a"])
    first.__enter__()
    inside = flags(model)
    second.__enter__()
    first.__exit__(None, None, None)
    assert flags(model) == before  # the second block picks `a`, which is the active one
    second.__exit__(None, None, None)
    assert flags(model) == before != inside
    set_active(model, "b")
    assert flags(model) == inside


def test_an_inner_block_on_a_part_gives_back_what_the_outer_one_chose(model):
    before = flags(model)
    with mixed(model, ["b", "b"]):
        outer, part = flags(model), model.encoder.layer[0]
        inner = mixed(part, [None, None])
        inner.__enter__()
        assert not any(parameter.requires_grad for _, parameter in adapter_parameters(part))
        assert not inner.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        assert flags(model) == outer
    assert flags(model) == before
