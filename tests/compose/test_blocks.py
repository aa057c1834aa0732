"""Open blocks and what comes or goes inside them: adapters, copies, parts of the model."""

import copy

import pytest
import torch
from model_state import pickled
from tiny_models import build, inputs_for, plain_model, run
from torch import nn

from adapterx import (
    AdapterConfig,
    active_adapters,
    adapter_names,
    attach,
    detach,
    disabled,
    load_adapter,
    mixed,
    save_adapter,
    set_active,
)

CONFIG = AdapterConfig(bottleneck_dim=4, init_up="near_zero")
WITH_COPY = AdapterConfig(bottleneck_dim=4, init_up="near_zero", modules_to_save=("pooler.dense",))
PLACEMENTS = pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        AdapterConfig(bottleneck_dim=4, init_up="near_zero", placement="parallel"),
        AdapterConfig(bottleneck_dim=4, init_up="near_zero", placement="normed_sum"),
        WITH_COPY,
    ],
    ids=["sequential", "parallel", "normed sum", "trained copy"],
)


@pytest.fixture
def model():
    return build("bert")


@pytest.fixture
def inputs(model):
    return inputs_for("bert", model)


@PLACEMENTS
def test_a_bare_model_stays_the_base_model_until_the_block_ends(model, inputs, config):
    base = run(model, inputs)
    with disabled(model):
        attach(model, config, "a")
        assert torch.equal(run(model, inputs), base)
        with disabled(model):
            attach(model, config, "b")
        assert torch.equal(run(model, inputs), base)
        set_active(model, "a")
        assert torch.equal(run(model, inputs), base)
    adapted = run(model, inputs)
    assert not torch.equal(adapted, base)
    assert active_adapters(model) == ("a",)
    detach(model, "b")
    assert torch.equal(run(model, inputs), adapted)


@pytest.mark.parametrize("asked", ["enclosing", "part", "child"])
def test_blocks_on_what_encloses_the_model_or_on_a_part(model, inputs, asked):
    outer = nn.ModuleDict({"inner": model, "head": nn.Linear(32, 2)})
    part = model.encoder.layer[0]
    around, attached = {
        "enclosing": (outer, model),
        "part": (model, part),
        "child": (model.encoder, model.encoder),
    }[asked]
    base = run(model, inputs)
    config = AdapterConfig(bottleneck_dim=4, init_up="near_zero", target_modules=("output.dense",))
    with disabled(around):
        attach(attached, config)
        assert torch.equal(run(model, inputs), base)
    assert not torch.equal(run(model, inputs), base)


def test_a_block_on_one_part_leaves_what_is_attached_to_another(model, inputs):
    base = run(model, inputs)
    with disabled(model.encoder.layer[0]):
        attach(model, CONFIG)
        half = run(model, inputs)
    assert not torch.equal(half, base)
    assert not torch.equal(half, run(model, inputs))


def test_loading_inside_a_block(model, inputs, tmp_path):
    twin = copy.deepcopy(model)
    attach(model, CONFIG)
    save_adapter(model, tmp_path)
    base = run(twin, inputs)
    with disabled(twin):
        load_adapter(twin, tmp_path)
        assert torch.equal(run(twin, inputs), base)
    assert torch.equal(run(twin, inputs), run(model, inputs))


@PLACEMENTS
@pytest.mark.parametrize("twin_of", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("block", ["disabled", "mixed", "nested"])
def test_a_copy_knows_nothing_of_the_block(model, inputs, block, twin_of, config):
    attach(model, config)
    adapted = run(model, inputs)
    opened = mixed(model, [None, None]) if block == "mixed" else disabled(model)
    with opened:
        base = run(model, inputs)
        if block == "nested":
            with disabled(model):
                twin = twin_of(model)
        else:
            twin = twin_of(model)
        assert torch.equal(run(twin, inputs), adapted)
        with disabled(twin):
            assert torch.equal(run(twin, inputs), base)
        assert torch.equal(run(twin, inputs), adapted)
    assert torch.equal(run(twin, inputs), adapted)
    assert torch.equal(run(model, inputs), adapted)
    assert active_adapters(twin) == ("default",)


def test_a_copy_of_a_bare_model_knows_nothing_of_the_block(model, inputs):
    with disabled(model):
        twin = copy.deepcopy(model)
        base = run(twin, inputs)
        attach(twin, CONFIG)
        assert not torch.equal(run(twin, inputs), base)


def test_a_part_that_is_taken_out_inside_is_not_disabled_for_ever():
    model = plain_model()
    attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), init_up="near_zero"))
    part, hidden_states = model.blocks[0], torch.randn(3, 8)
    adapted = part(hidden_states)
    with disabled(model):
        model.blocks[0] = nn.Identity()
        assert not torch.equal(part(hidden_states), adapted)
    assert torch.equal(part(hidden_states), adapted)


def test_nothing_is_attached_to_a_bare_model_inside_mixed(model):
    for around, attached in ((model, model), (model, model.encoder), (nn.Sequential(model), model)):
        with (
            mixed(around, [None, None]),
            pytest.raises(RuntimeError, match="attach: model must not be inside a `mixed`"),
        ):
            attach(attached, CONFIG)
    assert adapter_names(model) == ()
    with mixed(build("bert"), [None]):  # another model's block is none of its business
        attach(model, CONFIG)


def test_an_exception_ends_blocks_for_what_was_attached_inside(model, inputs):
    base = run(model, inputs)

    def fail_inside():
        with disabled(model):
            attach(model, CONFIG)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert not torch.equal(run(model, inputs), base)


def test_what_is_attached_later_follows_the_nearest_part(model):
    attach(model, CONFIG, "a")
    attach(model, CONFIG, "b", active=False)
    set_active(model, ["a", "b"])
    set_active(model.encoder.layer[1], "b")
    late = AdapterConfig(bottleneck_dim=2, target_modules=("intermediate.dense",))
    attach(model, late, "late", active=False)
    for block, names in ((0, ("a", "b")), (1, ("b",))):
        hung = model.encoder.layer[block].intermediate.dense.adapterx
        assert active_adapters(hung) == names
    set_active(model, None)
    assert active_adapters(model) == ()


def test_a_name_does_not_come_alive_with_its_namesake(model, inputs):
    outer = nn.Sequential(model)
    base = run(model, inputs)
    attach(model, CONFIG, "a")
    set_active(outer, "a")
    detach(model, "a")  # the outer module is not asked
    attach(outer, CONFIG, "a", active=False)
    assert active_adapters(outer) == ()
    attach(outer, AdapterConfig(bottleneck_dim=2, layers=(1,)), "b", active=False)
    assert active_adapters(outer) == ()
    assert torch.equal(run(model, inputs), base)
