"""Other names for adapters, and new adapters of the weights of others."""

import copy
from pathlib import Path

import pytest
import torch
from model_state import pickled
from tiny_adapters import randomise
from tiny_models import build, inputs_for, plain_model, run

from adapterx import (
    AdapterConfig,
    Average,
    CheckpointError,
    ConfigError,
    Fuse,
    Stack,
    UnknownAdapterError,
    active_adapters,
    adapter_names,
    adapter_parameters,
    adapters,
    add_fusion,
    attach,
    combine_adapters,
    detach,
    fusions,
    mixed,
    rename_adapter,
    save_adapter,
    set_active,
)

CONFIG = AdapterConfig(bottleneck_dim=3, positions=("feed_forward",), modules_to_save=("pooler.dense",))
PARALLEL = AdapterConfig(bottleneck_dim=3, placement="parallel")


@pytest.fixture
def model():
    model = build("bert").double()
    for name in "ab":
        attach(model, CONFIG, name)
    attach(model, PARALLEL, "p")
    randomise(model)
    return model


def test_a_new_name_changes_nothing_else(model):
    inputs = inputs_for("bert", model)
    set_active(model, Stack("a", "p"))
    expected = run(model, inputs)
    before = {key for key, p in model.named_parameters() if p.requires_grad}
    rename_adapter(model, "p", "q")
    rename_adapter(model, "a", "c")
    assert set(adapter_names(model)) == {"q", "c", "b"}
    assert adapter_names(model.encoder.layer[0].output.dense) == ("c", "b", "q")
    assert active_adapters(model) == ("c", "q")
    assert adapters(model)["c"].name == "c"
    assert {
        key.replace(".c.", ".a.").replace(".q.", ".p.") for key, p in model.named_parameters() if p.requires_grad
    } == before
    for each in (model, copy.deepcopy(model), pickled(model)):
        assert torch.equal(run(each, inputs), expected)
    with mixed(model, ["q", "c"]):
        assert torch.isfinite(run(model, inputs)).all()
    attach(model, CONFIG, "a", active=False)
    detach(model, "q")
    detach(model)
    assert not any("adapterx" in key for key in model.state_dict())


def test_fusions_follow(model):
    fuse = add_fusion(model, ["a", "b"], seed=0)
    add_fusion(model, Fuse("a", "b", name="own"), active=False, seed=1)
    set_active(model, fuse)
    inputs = inputs_for("bert", model)
    expected = run(model, inputs)
    rename_adapter(model, "a", "c")
    assert fusions(model) == {"c,b": Fuse("c", "b"), "own": Fuse("c", "b", name="own")}
    assert torch.equal(run(model, inputs), expected)


def test_names_that_cannot_be(model):
    for old, new, error, message in (
        ("z", "y", UnknownAdapterError, "rename_adapter: name must be an attached adapter, got 'z'"),
        ("a", "b", ConfigError, "rename_adapter: name must be new, got 'b'"),
        ("a", "a.b", ConfigError, "rename_adapter: name must consist of letters"),
    ):
        with pytest.raises(error, match=message):
            rename_adapter(model, old, new)
    with mixed(model, ["a", "b"]), pytest.raises(RuntimeError, match="rename_adapter: model must not be inside"):
        rename_adapter(model, "a", "c")


def parameters(model, name):
    return {
        key.replace(f".{name}.", "."): parameter.detach().clone() for key, parameter in adapter_parameters(model, name)
    }


def test_every_parameter_is_the_weighted_sum(model, tmp_path):
    save_adapter(model, tmp_path, "b")
    a, b = parameters(model, "a"), parameters(model, "b")
    wanted = {key: 0.7 * a[key] - 0.3 * b[key] for key in a}
    set_active(model, "a")
    report = combine_adapters(model, "sum", {"a": 0.7, "b": -0.3}, active=False)
    assert (report.name, report.config) == ("sum", CONFIG)
    assert active_adapters(model) == ("a",)
    combine_adapters(model, "same", {"a": 0.7, Path(tmp_path): -0.3})
    assert active_adapters(model) == ("same",)
    assert adapter_names(model).count("combined-0") == 0
    for name in ("sum", "same"):
        for key, parameter in parameters(model, name).items():
            torch.testing.assert_close(parameter, wanted[key], rtol=0, atol=1e-14)
    combine_adapters(model, "mean", {"a": 3, "b": 1}, normalize=True)
    for key, parameter in parameters(model, "mean").items():
        torch.testing.assert_close(parameter, 0.75 * a[key] + 0.25 * b[key], rtol=0, atol=1e-14)
    for key, parameter in parameters(model, "a").items():
        assert torch.equal(parameter, a[key])


def test_what_cannot_be_combined(model, tmp_path):
    for weights, error, message in (
        ({"a": 1.0, "p": 1.0}, ConfigError, "adapters must have one configuration, 'a' has"),
        ({"a": 1.0, "z": 1.0}, UnknownAdapterError, "combine_adapters: name must be an attached adapter, got 'z'"),
        ({"a": float("nan")}, ConfigError, "weights must be a finite number, got nan"),
        ({}, ConfigError, "weights must name one adapter or more"),
        (["a", "b"], TypeError, "weights must map names or paths to numbers"),
        ({"a": 1.0, tmp_path: 1.0}, CheckpointError, "combine_adapters: "),
    ):
        with pytest.raises(error, match=message):
            combine_adapters(model, "new", weights)
    with pytest.raises(ConfigError, match="weights must not sum to 0 to be normalized"):
        combine_adapters(model, "new", {"a": 1.0, "b": -1.0}, normalize=True)
    other = plain_model()
    attach(other, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",)), "a")
    attach(other, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), layers=(1,)), "b")
    with pytest.raises(ConfigError, match="adapters must have one configuration"):
        combine_adapters(other, "new", {"a": 1.0, "b": 1.0})
    set_active(other, Average("a", "b"))
    assert set(adapter_names(model)) == {"a", "b", "p"}
