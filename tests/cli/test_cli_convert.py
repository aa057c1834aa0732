"""`adapterx convert`: adapters of AdapterHub become ours, and ours theirs, with the heads beside them."""

import json
import shutil

import pytest
import torch
from command_line import invoke, refused
from hub_goldens import TOLERANCE, Golden

import adapterx
from adapterx.integrations import adapterhub

CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return Golden("bert", tmp_path_factory.mktemp("bert"))


def test_there_and_back(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(golden.folder)  # what our folders record of a base is the last part of its path
    base, case = golden.folder / "base", "double_seq_bn"
    shown = invoke("convert", golden.path(case), tmp_path / "ours", "--base", base).stdout
    assert "adapterx" in shown
    model = golden.base()
    adapterx.load_adapter(model, tmp_path / "ours")
    assert golden.difference(model, case) < TOLERANCE
    adapterx.detach(model)
    invoke("convert", tmp_path / "ours", tmp_path / "theirs", "--name", "other")  # the folder names its base
    assert adapterhub.load_adapter(model, tmp_path / "theirs").name == "other"
    assert golden.difference(model, case) < TOLERANCE
    tensors = torch.load(tmp_path / "theirs" / "pytorch_adapter.bin")
    original = torch.load(golden.path(case) / "pytorch_adapter.bin")
    renamed = {f"bert.{key.replace('.a.', '.other.')}": tensor for key, tensor in original.items()}
    assert tensors.keys() == renamed.keys()
    assert all(torch.equal(tensors[key], renamed[key]) for key in renamed)


def test_the_head_comes_along(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(golden.folder)
    base, case = golden.folder / "base", "head: one layer, pooler"
    assert "2 labels" in invoke("convert", golden.path(case), tmp_path / "ours", "--base", base).stdout
    model, head = golden.base(), adapterx.load_head(tmp_path / "ours")
    adapterx.load_adapter(model, tmp_path / "ours")
    logits = head.eval()(model(**golden.inputs)[0], golden.inputs["attention_mask"])
    assert (logits - golden.outputs[case]).abs().max() < TOLERANCE
    invoke("convert", tmp_path / "ours", tmp_path / "theirs")
    assert adapterhub.load_head(tmp_path / "theirs").to_dict() == head.to_dict()


def test_labels_are_kept(golden, tmp_path):
    source = shutil.copytree(golden.path("head: one layer"), tmp_path / "source")
    document = json.loads((source / "head_config.json").read_text())
    document["config"]["label2id"] = {"bad": 1, "good": 0}
    (source / "head_config.json").write_text(json.dumps(document))
    assert "2 labels: good, bad" in invoke("convert", source, tmp_path / "to", "--base", golden.folder / "base").stdout
    assert json.loads((tmp_path / "to" / "head_config.json").read_text())["metadata"] == {"labels": ["good", "bad"]}


def test_encoder_decoders_are_converted_whole(tmp_path):
    golden = Golden("t5", tmp_path / "t5")
    invoke("convert", golden.path("cross_adapter"), tmp_path / "ours", "--base", golden.folder / "base")
    model = golden.base()
    adapterx.load_adapter(model, tmp_path / "ours")
    assert golden.difference(model, "cross_adapter") < TOLERANCE


FUSED = "Fuse dynamic, double_seq_bn"


def test_fusions_and_their_adapters_there_and_back(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(golden.folder)
    shown = invoke("convert", golden.path(FUSED) / "fusion", tmp_path / "ours", "--base", golden.folder / "base").stdout
    assert "a, b, c" in shown
    model = golden.base()
    for name in "abc":
        adapterx.load_adapter(model, tmp_path / "ours" / name, active=False)
    assert adapterx.load_fusion(model, tmp_path / "ours") == adapterx.Fuse("a", "b", "c")
    assert golden.difference(model, FUSED) < TOLERANCE
    assert "value_initialized" in invoke("info", tmp_path / "ours").stdout
    invoke("convert", tmp_path / "ours", tmp_path / "theirs")
    adapterx.detach(model)
    for name in "abc":
        adapterhub.load_adapter(model, tmp_path / "theirs" / name, active=False)
    adapterhub.load_fusion(model, tmp_path / "theirs")
    assert golden.difference(model, FUSED) < TOLERANCE


def test_fusions_that_cannot_be_converted(golden, tmp_path):
    base = golden.folder / "base"
    source = shutil.copytree(golden.path(FUSED), tmp_path / "source")
    fusion, target = source / "fusion", tmp_path / "x"
    assert "name must not be given for a fusion" in refused("convert", fusion, target, "--name", "n", "--base", base)
    shutil.copytree(source / "c", tmp_path / "both")
    shutil.copytree(fusion, tmp_path / "both", dirs_exist_ok=True)
    assert "holds both" in refused("convert", tmp_path / "both", target, "--base", base)
    document = json.loads((source / "b" / CONFIG).read_text())
    document["config"]["use_gating"] = True
    (source / "b" / CONFIG).write_text(json.dumps(document))
    assert refused("convert", fusion, target, "--base", base)  # without the weights of a gate
    assert f"there are some in {source / 'a'}, " in refused("convert", source, target, "--base", base)
    shutil.rmtree(source / "b")
    words = refused("convert", fusion, target, "--base", base)
    assert "source fuses a, b, c; b must stand in" in words
    (fusion / "adapter_fusion_config.json").write_text('{"config": "dynamic", "adapter_names": ["a", 1]}')
    assert "must fuse adapters by their names, got ['a', 1]" in refused("convert", fusion, target, "--base", base)
    assert not target.exists()


def test_what_cannot_be_converted(golden, tmp_path):
    source, base = golden.path("double_seq_bn"), golden.folder / "base"
    assert refused("convert", source, tmp_path / "x").endswith("does not name the base model of its adapter")
    assert "to must be one of adapterx, adapterhub, peft, got 'onnx'" in refused(
        "convert", source, tmp_path / "x", "--to", "onnx"
    )
    same = refused("convert", source, tmp_path / "x", "--to", "adapterhub")
    assert "to must be another library than that of" in same
    assert "source must hold an adapter or a fusion of adapterx or AdapterHub" in refused(
        "convert", tmp_path, tmp_path / "x"
    )
    assert "target must be another folder" in refused("convert", source, source, "--base", base)
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA"}')
    assert "must be 'ADAPTERX_BOTTLENECK', got 'LORA'" in refused("convert", tmp_path, tmp_path / "x", "--base", base)
    lora = shutil.copytree(source, tmp_path / "lora")
    (lora / CONFIG).write_text(
        json.dumps({"config": {"architecture": "lora"}, "name": "a", "version": "adapters.1.3.0"})
    )
    assert "got 'lora'" in refused("convert", lora, tmp_path / "x", "--base", base)
    assert not (tmp_path / "x").exists()
