"""An adapter that does not fit is refused whole, by the function that was called, under the error it names."""

import json

import pytest
import torch
from saved_adapters import CONFIG, PLAIN, assert_refused, edit, rewrite
from tiny_models import build, plain_model

import adapterx
from adapterx import CheckpointError, ConfigError, attach, load_adapter, restore_adapter, save_adapter


def test_another_model(saved):
    assert_refused(saved, r"model lacks: \['blocks.1.narrow'\]", model=plain_model(depth=1))
    assert_refused(saved, r"missing tensors \['blocks.2.narrow.adapterx.down_proj.bias'", model=plain_model(depth=3))
    assert_refused(saved, r"wrong shapes \[.*down_proj.weight \[2, 8\] instead of \[2, 6\]", model=plain_model(size=6))
    headless = plain_model()
    del headless.classifier
    assert_refused(saved, "modules_to_save must be qualified names", model=headless)
    assert_refused(saved, "model lacks", model=build("bert"))


def test_wrong_tensors(saved):
    key = "blocks.0.narrow.adapterx.up_proj.weight"
    original = {path.name: path.read_bytes() for path in saved.iterdir()}
    for change, message in (
        (lambda tensors: tensors.pop(key) is None, rf"missing tensors \['{key}'\]"),
        (lambda tensors: tensors.update(b=torch.ones(1), a=torch.ones(1)), r"unknown tensors \['a', 'b'\]"),
        (
            lambda tensors: tensors.update({key: torch.ones(2, 8)}),
            rf"wrong shapes \['{key} \[2, 8\] instead of \[8, 2\]",
        ),
        (lambda tensors: tensors.update({key: torch.ones(8, 2, dtype=torch.int64)}), rf"wrong dtypes \['{key}'\]"),
    ):
        rewrite(saved, change)
        assert_refused(saved, message)
        for name, content in original.items():
            (saved / name).write_bytes(content)
    load_adapter(plain_model(), saved)


def test_meta_models(saved):
    with torch.device("meta"):
        model = plain_model()
    attach(model, PLAIN, "meta")
    with pytest.raises(CheckpointError, match="save_adapter: the model must hold real weights"):
        save_adapter(model, saved, "meta")
    load_adapter(model, saved)  # the adapter has memory, the model has none
    load_adapter(plain_model(), saved)


def test_it_is_load_adapter_that_speaks(saved, tmp_path):
    """Whatever helper finds the fault: an error of the files is a CheckpointError, one of the name a ConfigError."""
    own = plain_model()
    own.blocks[0].narrow.adapterx = torch.nn.Linear(1, 1)
    config = json.loads((saved / CONFIG).read_text())["config"]
    cases = [
        ({}, own, r"does not fit the model: .*has an attribute 'adapterx' of its own"),
        ({"config": config | {"modules_to_save": ["absent"]}}, None, "modules_to_save must be"),
        ({"config": config | {"modules_to_save": ["blocks.0"]}}, None, "modules_to_save must not hold"),
        ({"config": config | {"layers": [7]}}, None, "does not fit the model: layers must be block indices"),
        ({"config": config | {"bottleneck_dim": 9}}, None, "does not fit the model: bottleneck_dim must be at most"),
        ({"config": config | {"bottleneck_dim": -1}}, None, "holds no valid config: AdapterConfig: bottleneck_dim"),
    ]
    original = (saved / CONFIG).read_bytes()
    for changes, model, message in cases:
        edit(saved, **changes)
        assert_refused(saved, rf"^load_adapter: (?!.*attach: ).*{message}", model=model)
        (saved / CONFIG).write_bytes(original)
    for name, message in (("a.b", "name must consist of letters"), ("keys", "name must not be an attribute")):
        with pytest.raises(ConfigError, match=f"^load_adapter: {message}"):
            load_adapter(plain_model(), saved, name)
    adapterx.attach(model := plain_model(), PLAIN)
    with pytest.raises(ConfigError, match=r"^load_adapter: name must be new, got 'default'"):
        load_adapter(model, saved)
    with adapterx.mixed(model, ["default"]), pytest.raises(RuntimeError, match=r"^load_adapter: model must not be"):
        load_adapter(model, saved, "other")


def test_what_zero_3_has_partitioned_is_refused(saved, tmp_path):
    """DeepSpeed leaves empty tensors, which fit no shape and would be saved as they are."""
    model = plain_model()
    attach(model, PLAIN)
    for parameter in model.parameters():
        parameter.ds_numel = parameter.numel()
        parameter.data = torch.empty(0)
    for act in (save_adapter, restore_adapter):
        with pytest.raises(CheckpointError, match=rf"{act.__name__}: .*enter deepspeed\.zero\.GatheredParameters"):
            act(model, tmp_path / "adapter" if act is save_adapter else saved)
    assert not (tmp_path / "adapter").exists()
