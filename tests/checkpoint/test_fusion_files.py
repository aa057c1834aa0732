"""Fusions saved and loaded: the same numbers, other names of modules, and what does not fit."""

import copy
import json

import pytest
import torch
from tiny_adapters import randomise
from tiny_models import build, inputs_for, run
from torch import nn

from adapterx import (
    AdapterConfig,
    CheckpointError,
    ConfigError,
    Fuse,
    FusionConfig,
    Stack,
    UnknownAdapterError,
    add_fusion,
    attach,
    fusions,
    load_adapter,
    load_fusion,
    remove_fusion,
    save_adapter,
    save_fusion,
    set_active,
)

CONFIG = AdapterConfig(bottleneck_dim=4, positions=("feed_forward",))


@pytest.fixture
def model():
    model = build("bert")
    for name in "abc":
        attach(model, CONFIG, name)
    randomise(model)
    return model


def test_loaded_with_its_adapters_it_gives_the_same(model, tmp_path):
    twin = build("bert")
    twin.load_state_dict({key: value for key, value in model.state_dict().items() if ".adapterx" not in key})
    fuse = add_fusion(model, [Stack("c", "a"), "b"], FusionConfig(temperature=True, dropout=0.1), seed=3)
    save_fusion(model, tmp_path / "fusion", metadata={"task": "x"})
    for name in "abc":
        save_adapter(model, tmp_path / name, name)
        load_adapter(twin, tmp_path / name)
    assert load_fusion(twin, tmp_path / "fusion") == fuse == fusions(twin)["a,b"]
    inputs = inputs_for("bert", model)
    assert torch.equal(run(twin, inputs), run(model, inputs))
    hung = twin.encoder.layer[1].output.dense.adapterx_fusions["a,b"]
    assert hung.config == FusionConfig(temperature=True, dropout=0.1)
    assert all(parameter.requires_grad for parameter in hung.parameters())
    assert json.loads((tmp_path / "fusion" / "fusion_config.json").read_text())["metadata"] == {"task": "x"}


def test_names_may_have_another_prefix(model, tmp_path):
    add_fusion(model, ["a", "b"], seed=3)
    save_fusion(model, tmp_path)
    inputs = inputs_for("bert", model)
    expected = run(model, inputs)
    twin = copy.deepcopy(model)
    set_active(twin, None)
    remove_fusion(twin, "a,b")
    load_fusion(nn.ModuleDict({"inner": twin}), tmp_path)
    assert torch.equal(run(twin, inputs), expected)
    save_fusion(nn.ModuleDict({"inner": twin}), tmp_path / "outer")
    set_active(twin, None)
    remove_fusion(twin, "a,b")
    load_fusion(twin, tmp_path / "outer")
    assert torch.equal(run(twin, inputs), expected)


def test_what_does_not_fit_is_refused_and_changes_nothing(model, tmp_path):
    add_fusion(model, ["a", "b"], seed=3)
    save_fusion(model, tmp_path)
    with pytest.raises(ConfigError, match="load_fusion: names must make a new fusion, 'a,b' is there"):
        load_fusion(model, tmp_path)
    other = build("bert")
    attach(other, CONFIG, "a")
    with pytest.raises(UnknownAdapterError, match="load_fusion: name must be an attached adapter, got 'b'"):
        load_fusion(other, tmp_path)
    attach(other, AdapterConfig(bottleneck_dim=4), "b")
    with pytest.raises(CheckpointError, match=r"load_fusion: the fusion in .* does not fit the adapters"):
        load_fusion(other, tmp_path)
    assert not fusions(other)
    with pytest.raises(UnknownAdapterError, match="save_fusion: fuse must be a fusion that was added, got None"):
        save_fusion(other, tmp_path)
    with pytest.raises(UnknownAdapterError, match="got 'b,a'; there are 'a,b'"):
        save_fusion(model, tmp_path, Fuse("b", "a"))
    (tmp_path / "fusion_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        load_fusion(model, tmp_path)
