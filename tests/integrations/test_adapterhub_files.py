"""Files of AdapterHub are a stranger's: nothing in them runs, and what does not fit is refused in words."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("transformers")
from hub_goldens import Golden

import adapterx
from adapterx import CheckpointError, ConfigError
from adapterx.integrations import adapterhub

CONFIG, PICKLE, SAFE = "adapter_config.json", "pytorch_adapter.bin", "adapter.safetensors"
LN_AFTER = {"ln_after": True, "adapter_residual_before_ln": True}
FFN = "encoder.layer.0.output.adapters.a."


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return Golden("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def model(golden):
    return golden.base()


@pytest.fixture
def folder(golden, tmp_path):
    """A copy of the folder of `double_seq_bn`."""
    for name in (CONFIG, PICKLE):
        (tmp_path / name).write_bytes((golden.path("double_seq_bn") / name).read_bytes())
    return tmp_path


def tensors_of(folder):
    return torch.load(folder / PICKLE, weights_only=True)


def edit(folder, _document=None, **options):
    """Change options in the configuration, and keys of the document; None takes a key away."""
    document = json.loads((folder / CONFIG).read_text())
    for part, changes in ((document, _document or {}), (document["config"], options)):
        for key, value in changes.items():
            part[key] = value
            if value is None and part is document:
                del part[key]
    (folder / CONFIG).write_text(json.dumps(document))


def refused(model, folder, words, **arguments):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"^load_adapter: .*{words}"):
        adapterhub.load_adapter(model, folder, **arguments)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_no_pickle_runs(model, folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    torch.save({"x": Bomb()}, folder / PICKLE)
    refused(model, folder, "must hold tensors only")
    (folder / PICKLE).write_bytes(pickle.dumps({"x": Bomb()}))
    refused(model, folder, "must hold tensors only")
    assert not os.path.exists("exploded")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "must hold a dictionary of names and tensors"),
        ({1: torch.ones(1)}, "must hold a dictionary of names and tensors"),
        ({"x": 1.0}, "must hold a dictionary of names and tensors"),
        ({"x": torch.ones(1).expand(10**9)}, "must hold plain floating-point tensors.* x is of another kind"),
        ({"x": torch.ones(2, dtype=torch.int64)}, "must hold plain floating-point tensors"),
        ({"x": torch.eye(3).to_sparse()}, "must hold plain floating-point tensors"),
        ({"x": torch.ones(1, device="meta")}, "must hold plain floating-point tensors"),
    ],
)
def test_what_a_pickle_may_hold(model, folder, content, words):
    torch.save(content, folder / PICKLE)
    refused(model, folder, words)


def test_damaged_and_oversized_files(model, folder):
    content = (folder / PICKLE).read_bytes()
    (folder / PICKLE).write_bytes(content[: len(content) // 2])
    refused(model, folder, "must hold tensors only")
    (folder / PICKLE).write_bytes(b"")
    refused(model, folder, "must hold tensors only")
    with zipfile.ZipFile(folder / PICKLE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**20)
    refused(model, folder, "must not be compressed inside")
    with (folder / PICKLE).open("wb") as file:
        file.truncate(2**34)
    refused(model, folder, r"must not exceed \d+ bytes for the adapter that its document describes, got 17179869184")
    (folder / PICKLE).unlink()
    refused(model, folder, "must hold pytorch_adapter.bin or adapter.safetensors")
    os.mkfifo(folder / PICKLE)
    refused(model, folder, "must be a regular file")


def test_safetensors_alone_and_beside_the_pickle(model, folder):
    tensors = tensors_of(folder)
    save_file(tensors, folder / SAFE)
    adapterhub.load_adapter(model, folder, "both")
    save_file(tensors | {FFN + "adapter_up.bias": torch.zeros(16)}, folder / SAFE)
    refused(model, folder, "pytorch_adapter.bin and adapter.safetensors of .* must hold the same, they differ")
    (folder / PICKLE).unlink()
    assert adapterhub.load_adapter(model, folder, "alone").targets
    (folder / SAFE).write_bytes(b"\xff" * 64)
    refused(model, folder, "is not a valid safetensors file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(FFN + "adapter_up.bias"), r"lacks tensors of its adapter: .*behind encoder.layer.0.output"),
        (lambda t: t.update({FFN + "gate.weight": torch.ones(1, 16)}), "holds tensors that its config or the model"),
        (lambda t: t.update({FFN.replace("0", "7") + "adapter_up.bias": torch.ones(16)}), "not have: .*layer.7"),
        (lambda t: t.update({FFN + "other": torch.ones(1)}), "of an adapter 'a' .* only, 1 are none: .*other"),
        (lambda t: t.update({"pooler.dense.bias": torch.ones(16)}), "1 are none: pooler.dense.bias"),
        (lambda t: t.update({FFN + "adapter_up.bias": torch.ones(17)}), r"must have the shape \(16,\), got \(17,\)"),
        (lambda t: t.update({"bert." + FFN + "adapter_up.bias": torch.zeros(16)}), "must be equal, they name one"),
        (lambda t: t.update({f"bert.{FFN}gate.bias": t.pop(FFN + "adapter_up.bias")}), "one prefix, .* '', 'bert.'"),
    ],
)  # fmt: skip
def test_missing_and_unexpected_keys_are_errors(model, folder, change, words):
    tensors = tensors_of(folder)
    change(tensors)
    torch.save(tensors, folder / PICKLE)
    refused(model, folder, words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "lora"}, "architecture of .* must be that of a bottleneck adapter .*, got 'lora'"),
        ({"architecture": "prefix_tuning"}, "got 'prefix_tuning'"),
        ({"architecture": "union", "configs": []}, "got 'union'"),
        ({"unheard_of": 1}, "it has others: unheard_of"),
        ({"mh_adapter": "yes"}, "mh_adapter of .* must be true or false, got 'yes'"),
        ({"mh_adapter": False, "output_adapter": False}, "must name a place for adapters"),
        ({"non_linearity": "xielu"}, "non_linearity of .* must be one of .*, got 'xielu'"),
        ({"scaling": "huge"}, "scaling must be one of"),
        ({"scaling": 10**400}, "scaling must be a finite number"),
        ({"dropout": 2}, r"dropout must be in \[0, 1\)"),
        ({"reduction_factor": 0}, "reduction_factor of .* must be a number above 0"),
        ({"reduction_factor": 1e-300}, "reduction_factor must be"),
        ({"reduction_factor": {"0": 2}}, "must be a number above 0 for each layer, got None"),
        ({"reduction_factor": 2}, r"must have the shape"),
        ({"leave_out": "all"}, "leave_out of .* must hold numbers of layers"),
        ({"leave_out": [0, 1]}, r"leave_out of .* must leave a layer, got \[0, 1\]"),
        ({"leave_out": [1]}, "holds tensors that its config or the model does not have"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln of .* must be true or false without"),
        ({"residual_before_ln": "never"}, "residual_before_ln of .* must be true, false or 'post_add'"),
        ({"original_ln_after": False}, "original_ln_after of .* must leave the residual stream in"),
        ({"is_parallel": True, "original_ln_after": False}, "original_ln_after of .* must be true where"),
        (LN_AFTER | {"original_ln_before": True}, "adapter_residual_before_ln of .* must be false"),
    ],
)  # fmt: skip
def test_options_are_refused_by_name(model, folder, options, words):
    edit(folder, **options)
    refused(model, folder, words)


def test_documents_of_others_and_of_other_models(model, folder):
    edit(folder, {"model_type": "gpt2"})
    refused(model, folder, "model must be of the type 'gpt2' that .* was trained on, got 'bert'")
    assert adapterhub.load_adapter(model, folder, "other", check_base=False).targets
    edit(folder, {"model_type": "bert", "name": "a.b"})
    refused(model, folder, "name of .* must be one without dots, got 'a.b'")
    edit(folder, {"name": "a", "peft_type": "LORA"})
    refused(model, folder, "must be of one library")
    (folder / CONFIG).write_text('{"peft_type": "LORA"}')
    refused(model, folder, "must be written by AdapterHub's adapters, it is that of peft")
    (folder / CONFIG).write_text("{}")
    refused(model, folder, "it has no 'config'")
    (folder / CONFIG).unlink()
    refused(model, folder, "adapter_config.json does not exist")


def test_names(model, folder):
    adapterhub.load_adapter(model, folder)
    with pytest.raises(ConfigError, match=r"^load_adapter: name must be new, got 'a'"):
        adapterhub.load_adapter(model, folder)
    assert adapterhub.load_adapter(model, folder, "b", active=False).name == "b"
    assert adapterx.active_adapters(model) == ("a",)


def test_a_gelu_without_a_version_is_the_approximate_one(model, folder):
    for version, activation in (("adapters.1.3.0", "gelu"), ("3.2.1", "gelu"), (None, "gelu_tanh")):
        edit(folder, {"version": version}, non_linearity="gelu")
        assert adapterhub.read_config(folder, model).activation == activation
    edit(folder, non_linearity="gelu_orig")
    assert adapterhub.read_config(folder, model).activation == "gelu"


@pytest.mark.parametrize("prefix", ["bert.", "model.encoder.", ""])
def test_files_of_the_first_versions(model, folder, golden, prefix):
    """Their modules had other names, their configurations fewer keys or only a name."""
    old = {"output.adapters": "output.layer_text_task_adapters"}
    old["attention.output.adapters"] = "attention.output.attention_text_task_adapters"
    tensors = {}
    for key, tensor in tensors_of(folder).items():
        for new in sorted(old, key=len, reverse=True):
            if new in key:
                key = key.replace(new, old[new])
                break
        tensors[prefix + key] = tensor
    torch.save(tensors, folder / PICKLE, _use_new_zipfile_serialization=False)
    edit(folder, {"version": "3.2.1", "model_class": None, "type": "text_task"})
    document = json.loads((folder / CONFIG).read_text())
    document["config"] = {
        "mh_adapter": True, "output_adapter": True, "reduction_factor": 4, "non_linearity": "swish",
        "invertible_adapter": None,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(document))
    adapterhub.load_adapter(model, folder)
    assert golden.difference(model, "double_seq_bn") < 1e-5
    document["config"] = "houlsby"  # a reduction of 16
    (folder / CONFIG).write_text(json.dumps(document))
    assert adapterhub.read_config(folder, model).reduction_factor == 16


def test_the_rule_that_a_bare_model_leaves_out(golden, model, folder):
    """`adapters` saves a compacter from a BertModel without the rules of its products, which it needs."""
    for name in (CONFIG, PICKLE):
        (folder / name).write_bytes((golden.path("compacter") / name).read_bytes())
    tensors = tensors_of(folder)
    assert "shared_parameters.a.phm_rule" in tensors
    torch.save({key: tensor for key, tensor in tensors.items() if "phm_rule" not in key}, folder / PICKLE)
    refused(model, folder, "lacks the phm_rule of its adapter, which adapters leaves out where")
    torch.save(tensors | {"shared_parameters.a.W_down": torch.ones(1)}, folder / PICKLE)
    refused(model, folder, "1 are none: shared_parameters.a.W_down")


def test_adapters_are_loaded_under_a_head_too(golden, folder):
    model = golden.base("BertForMaskedLM")
    model.bert.load_state_dict(golden.base().state_dict(), strict=False)  # it has no pooler
    adapterhub.load_adapter(model, folder)
    assert golden.difference(model.bert, "double_seq_bn") < 1e-5
    adapterhub.save_adapter(model, folder / "again")
    assert all(key.startswith("bert.encoder.") for key in tensors_of(folder / "again"))


def test_invertible_adapters_of_the_first_versions(golden, model, folder):
    """Their configurations for tasks name one that the files do not hold, since it was for languages only."""
    edit(folder, {"type": "text_task"}, invertible_adapter={"block_type": "nice", "reduction_factor": 2})
    assert adapterhub.load_adapter(model, folder).config.invertible is None
    edit(folder, {"type": "text_lang"}, invertible_adapter={"block_type": "nice", "reduction_factor": 2})
    assert adapterhub.read_config(folder, model).invertible == "nice"
    refused(model, folder, "the invertible adapter in .* must have the shapes .* got {}", name="b")
    edit(folder, {"type": "text_lang"}, invertible_adapter={"block_type": "glow", "reduction_factor": 2})
    refused(model, folder, "inv_adapter of .* must be None or 'nice', .* got 'glow'", name="b")
