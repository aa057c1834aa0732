"""Properties that hold for every configuration, found by hypothesis."""

import copy
import json
import tempfile
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_state import assert_same, fingerprint
from tiny_adapters import randomise
from tiny_models import build, inputs_for, plain_model, run

from adapterx import (
    AdapterConfig,
    BottleneckAdapter,
    ConfigError,
    adapter_parameters,
    attach,
    detach,
    disabled,
    load_adapter,
    save_adapter,
    set_active,
)
from adapterx.activations import ACTIVATIONS
from adapterx.branch_options import INITS
from adapterx.config import DEFAULT_POSITIONS, PLACEMENTS

SCALINGS = st.one_of(st.floats(-8, 8), st.sampled_from(["learned", "learned_per_channel"]))
SIZES = st.one_of(
    st.builds(lambda width: {"bottleneck_dim": width}, st.integers(1, 8)),
    st.builds(lambda factor: {"reduction_factor": factor}, st.floats(0.5, 64)),
    st.builds(
        lambda factor, own: {"reduction_factor": {"default": factor, 1: own}}, st.floats(1, 64), st.floats(0.5, 64)
    ),
)


@st.composite
def configs(draw, positions=DEFAULT_POSITIONS, modules_to_save=(), depth=2):
    """Any configuration that fits a model with two blocks of width 8 or more."""
    return AdapterConfig(
        **draw(SIZES),
        placement=draw(st.sampled_from(PLACEMENTS[:2])),
        positions=draw(st.lists(st.sampled_from(positions), min_size=1, unique=True)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        scaling=draw(SCALINGS),
        dropout=draw(st.sampled_from([0.0, 0.5])),
        down_bias=draw(st.booleans()),
        up_bias=draw(st.booleans()),
        norm_before=draw(st.booleans()),
        init=draw(st.sampled_from(INITS)),
        init_up=draw(st.sampled_from(["zero", "near_zero"])),
        layers=draw(st.none() | st.lists(st.integers(0, depth - 1), min_size=1, unique=True)),
        modules_to_save=draw(st.lists(st.sampled_from(modules_to_save), unique=True)) if modules_to_save else (),
    )


PLAIN = configs(positions=("feed_forward",), modules_to_save=("classifier", "blocks.1.norm"))
MODELS = {name: build(name) for name in ("bert", "llama")}
HIDDEN_STATES = torch.linspace(-2, 2, 40).view(5, 8)


@given(configs(), st.sampled_from(sorted(MODELS)), st.integers(0, 3))
@torch.no_grad()
def test_zero_up_projection_leaves_the_model_unchanged_bit_for_bit(config, name, seed):
    model = copy.deepcopy(MODELS[name])
    inputs = inputs_for(name, model, batch=1 + seed, length=2 + seed)
    base = run(model, inputs)
    attach(model, config, seed=seed)
    for key, parameter in adapter_parameters(model):
        if "up_proj" in key:
            parameter.zero_()
    assert torch.equal(run(model, inputs).view(torch.int32), base.view(torch.int32))
    randomise(model, seed=seed, scale=1.0)
    with disabled(model):
        assert torch.equal(run(model, inputs), base)


@given(PLAIN, PLAIN, st.booleans())
def test_detach_undoes_attach(one, other, reverse):
    model = plain_model()
    model.blocks[0].widen.weight.requires_grad_(False)
    before = fingerprint(model)
    base = model(HIDDEN_STATES)
    attach(model, one, "a")
    attach(model, other, "b")
    randomise(model, seed=1, scale=1.0)
    set_active(model, ["a", "b"])
    model(HIDDEN_STATES)
    for name in ("b", "a") if reverse else ("a", "b"):
        detach(model, name)
    assert torch.equal(model(HIDDEN_STATES), base)
    assert_same(before, fingerprint(model))


@given(PLAIN, st.integers(0, 10))
def test_load_undoes_save(config, seed):
    model = plain_model()
    attach(model, config, "mine")
    randomise(model, seed=seed, scale=1.0)
    twin = plain_model()
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        report = load_adapter(twin, folder)
    assert report.config == config
    pairs = list(zip(adapter_parameters(model), adapter_parameters(twin), strict=True))
    assert all(name == other and torch.equal(one, two) for (name, one), (other, two) in pairs)
    assert torch.equal(model.eval()(HIDDEN_STATES), twin.eval()(HIDDEN_STATES))


@given(PLAIN, st.integers(0, 10))
def test_training_leaves_the_base_bitwise_unchanged(config, seed):
    model = plain_model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attach(model, config, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(HIDDEN_STATES).square().mean().backward()
        optimizer.step()
    detach(model)
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


@given(configs(), st.integers(1, 9), st.integers(0, 10))
@torch.no_grad()
def test_rows_are_independent_and_the_branch_is_linear_in_scaling(config, rows, seed):
    torch.manual_seed(seed)

    def make(scaling):
        module = BottleneckAdapter(8, 8, 3, activation=config.activation, scaling=scaling, dtype=torch.float64)
        return module

    module = make(1.0)
    for parameter in module.parameters():
        parameter.normal_()
    hidden_states = torch.randn(rows, 8, dtype=torch.float64)
    whole = module(hidden_states, hidden_states)
    single = torch.cat([module(row, row) for row in hidden_states.split(1)])
    torch.testing.assert_close(whole, single)
    order = torch.randperm(rows)
    torch.testing.assert_close(module(hidden_states[order], hidden_states[order]), whole[order])
    factor = config.scaling if isinstance(config.scaling, float) else 3.0
    scaled = make(factor)
    scaled.load_state_dict(module.state_dict())
    expected = hidden_states + factor * (whole - hidden_states)
    torch.testing.assert_close(scaled(hidden_states, hidden_states), expected)
    for kind in ("learned", "learned_per_channel"):
        learned = make(kind)
        learned.load_state_dict({**module.state_dict(), "scaling": torch.full_like(learned.scaling, factor)})
        torch.testing.assert_close(learned(hidden_states, hidden_states), expected)


@given(configs())
def test_configs_survive_json(config):
    assert AdapterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def _blocks_of(config):
    """Return the blocks of which a width is known: those of a mapping, or any."""
    size = config.reduction_factor if config.bottleneck_dim is None else config.bottleneck_dim
    return [key for key in size if key != "default"] if isinstance(size, Mapping) else [None]


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from([*AdapterConfig.__dataclass_fields__, "unknown"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda children: (
                st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=2)
            ),
            max_leaves=5,
        ),
    )
)
def test_any_json_makes_a_valid_config_or_a_config_error(values):
    try:
        config = AdapterConfig.from_dict(values)
    except ConfigError as error:
        assert str(error).startswith("AdapterConfig: ")  # noqa: PT017
    else:
        assert AdapterConfig.from_dict(config.to_dict()) == config
        assert all(config.resolve_bottleneck_dim(8, block) >= 1 for block in _blocks_of(config))


@given(st.permutations(["a", "b", "c"]), st.lists(st.sampled_from("abc"), unique=True))
def test_only_the_active_names_matter(order, active):
    outputs = []
    for names in (["a", "b", "c"], order):
        model = plain_model()
        for name in names:
            attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",)), name)
            with torch.no_grad():
                for key, parameter in adapter_parameters(model, name):
                    parameter.copy_(
                        torch.linspace(-1, 1 + ord(name) / 99 + len(key), parameter.numel()).view(parameter.shape)
                    )
        set_active(model, active)
        outputs.append(model(HIDDEN_STATES))
    assert torch.equal(*outputs)


def test_strategies_cover_both_placements():
    found = set()

    @settings(max_examples=50)
    @given(configs())
    def collect(config):
        found.add((config.placement, type(config.scaling)))

    collect()
    assert len(found) == 4


def test_learned_scaling_of_zero_blocks_the_branch():
    module = BottleneckAdapter(4, 4, 2, scaling="learned")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        module.scaling.zero_()
    hidden_states = torch.randn(3, 4)
    assert torch.equal(module(hidden_states, hidden_states), hidden_states)
    assert module.scaling.item() == pytest.approx(0.0)
