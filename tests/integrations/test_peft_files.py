"""Converters between the files of adapterx and PEFT: the same tensors, bit for bit, and refusals by name."""

import json

import pytest
import torch
from command_line import invoke, refused
from hub_goldens import TOLERANCE, Golden
from peft_cases import PEFTS_OWN, bert, llama, logits, randomise
from safetensors.torch import load_file, save_file

import adapterx
from adapterx.errors import CheckpointError
from adapterx.integrations import adapterhub
from adapterx.integrations.peft_files import from_peft, to_peft

pytestmark = PEFTS_OWN
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Of every kind of tensor and of every kind of value that JSON holds otherwise than Python.
CONFIGS = {
    "plain": {"bottleneck_dim": 4},
    "parallel": {"reduction_factor": 4, "placement": "parallel", "scaling": "learned", "up_bias": False},
    "pfeiffer": {"bottleneck_dim": 4, "placement": "normed_sum", "positions": ("feed_forward",), "gating": True},
    "blocks": {
        "bottleneck_dim": {0: 2, "default": 4},
        "norm_before": True,
        "norm_after": "branch",
        "activation": "prelu",
    },
    "compacter": {"reduction_factor": 8, "phm": adapterx.PHMConfig(dim=2), "layers": (1,)},
    "norms": {"bottleneck_dim": 4, "train_norms": True, "modules_to_save": ("classifier",)},
    "names": {"bottleneck_dim": 4, "target_modules": ("output.dense",)},
    "expression": {"bottleneck_dim": 4, "target_modules": r".*\.1\.output\.dense"},
    "invertible": {"bottleneck_dim": 4, "invertible": "nice", "invertible_reduction_factor": 4},
}


def saved(folder, options, build=bert):
    model = build()
    adapterx.attach(model, adapterx.AdapterConfig(**options), "own")
    randomise(model)
    adapterx.save_adapter(model, folder)
    return model


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_to_peft_and_back_changes_no_bit(options, tmp_path):
    model = saved(tmp_path / "own", options)
    to_peft(tmp_path / "own", tmp_path / "peft")
    from_peft(tmp_path / "peft", tmp_path / "back", "own")
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("own", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    documents = [json.loads((tmp_path / name / CONFIG).read_text()) for name in ("own", "back")]
    for key in ("name", "config", "modules", "base_check", "sha256"):
        assert documents[0][key] == documents[1][key], key
    again = bert()
    adapterx.load_adapter(again, tmp_path / "back")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_peft_loads_and_saves_the_same(options, tmp_path):
    pytest.importorskip("peft", minversion="0.21")
    from peft import PeftModel

    model = saved(tmp_path / "own", options)
    to_peft(tmp_path / "own", tmp_path / "peft")
    loaded = PeftModel.from_pretrained(bert(), tmp_path / "peft").eval()
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "again")
    converted, again = (load_file(tmp_path / name / WEIGHTS) for name in ("peft", "again"))
    assert converted.keys() == again.keys()
    assert all(torch.equal(converted[name], again[name]) for name in again)
    from_peft(tmp_path / "again", tmp_path / "back")
    back = bert()
    adapterx.load_adapter(back, tmp_path / "back")
    assert torch.equal(logits(back), logits(model))
    assert adapterx.adapters(back)["default"].config == adapterx.AdapterConfig(**options)


def test_the_base_is_compared_where_it_was_recorded(tmp_path):
    pytest.importorskip("peft", minversion="0.21")
    from peft import PeftModel

    saved(tmp_path / "own", CONFIGS["plain"])
    to_peft(tmp_path / "own", tmp_path / "peft")
    other = bert()
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
    with pytest.raises(CheckpointError, match="got other weights in"):
        PeftModel.from_pretrained(other, tmp_path / "peft")


def test_what_peft_alone_has_is_turned_into_names(tmp_path):
    pytest.importorskip("peft", minversion="0.21")
    from peft import get_peft_model

    import adapterx.integrations.peft as plugin

    options = {"target_modules": "all-linear", "exclude_modules": ["query"], "task_type": "SEQ_CLS"}
    model = randomise(get_peft_model(bert(), plugin.BottleneckConfig(bottleneck_dim=2, **options))).eval()
    model.save_pretrained(tmp_path / "peft")
    from_peft(tmp_path / "peft", tmp_path / "own", "linear")
    own = bert()
    attachment = adapterx.load_adapter(own, tmp_path / "own")
    assert torch.equal(logits(own), logits(model))
    assert attachment.config.modules_to_save == ("classifier",)
    assert len(attachment.targets) == 11
    assert json.loads((tmp_path / "own" / CONFIG).read_text())["metadata"] == {"task_type": "SEQ_CLS"}


def edited(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type of .* must be 'ADAPTERX_BOTTLENECK', got 'LORA'"),
        ({"use_dora": True, "bias": "all"}, "must hold options that adapterx knows, got bias, use_dora"),
        ({"adapted_modules": None}, "must name the adapted_modules"),
        ({"dropout": 2}, "holds no valid config: AdapterConfig: dropout must"),
        ({"base_check": {"weights": 1}}, "base_check of .* must hold"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(changes, message, tmp_path):
    saved(tmp_path / "own", CONFIGS["plain"])
    to_peft(tmp_path / "own", tmp_path / "peft")
    with pytest.raises(CheckpointError, match=f"from_peft: .*{message}"):
        from_peft(edited(tmp_path / "peft", **changes), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_tensors_beyond_the_adapter_are_refused_by_name(tmp_path):
    saved(tmp_path / "own", CONFIGS["plain"])
    to_peft(tmp_path / "own", tmp_path / "peft")
    path = tmp_path / "peft" / WEIGHTS
    tensors = load_file(path)
    for name in (
        "base_model.model.bert.embeddings.weight",
        "base_model.model.x.adapterx.up_proj.weight",
        "head.weight",
    ):
        save_file({**tensors, name: torch.ones(1)}, path)
        with pytest.raises(CheckpointError, match=name.removeprefix("base_model.model.")):
            from_peft(tmp_path / "peft", tmp_path / "back")
    path.unlink()
    with pytest.raises(CheckpointError, match="pickles are not read"):
        from_peft(tmp_path / "peft", tmp_path / "back")


def test_each_library_refuses_the_folder_of_the_other(tmp_path):
    saved(tmp_path / "own", CONFIGS["plain"])
    to_peft(tmp_path / "own", tmp_path / "peft")
    with pytest.raises(CheckpointError, match=r"import adapterx\.integrations\.peft and load it with peft"):
        adapterx.load_adapter(bert(), tmp_path / "peft")
    with pytest.raises(CheckpointError, match="must be written by PEFT"):
        from_peft(tmp_path / "own", tmp_path / "back")
    with pytest.raises(CheckpointError, match="must not hold the files of another library"):
        to_peft(tmp_path / "own", tmp_path / "own")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_converts_without_a_base_model(tmp_path):
    model = saved(tmp_path / "own", CONFIGS["norms"])
    assert "peft" in invoke("convert", tmp_path / "own", tmp_path / "peft", "--to", "peft").stdout
    invoke("convert", tmp_path / "peft", tmp_path / "back", "--name", "again")
    again = bert()
    assert adapterx.load_adapter(again, tmp_path / "back").name == "again"
    assert torch.equal(logits(again), logits(model))


def test_the_command_converts_between_peft_and_adapterhub(tmp_path, monkeypatch):
    golden = Golden("bert", tmp_path / "bert")
    monkeypatch.chdir(golden.folder)
    base, case = golden.folder / "base", "double_seq_bn"
    invoke("convert", golden.path(case), tmp_path / "peft", "--to", "peft", "--base", base)
    invoke("convert", tmp_path / "peft", tmp_path / "hub", "--to", "adapterhub", "--base", base, "--name", "other")
    model = golden.base()
    assert adapterhub.load_adapter(model, tmp_path / "hub").name == "other"
    assert golden.difference(model, case) < TOLERANCE
    message = refused("convert", golden.path("head: one layer"), tmp_path / "to", "--to", "peft", "--base", base)
    assert "PEFT has no place for the head" in message
    assert not (tmp_path / "to").exists()


def test_the_command_refuses_what_is_of_no_use(tmp_path):
    saved(tmp_path / "own", CONFIGS["plain"])
    to_peft(tmp_path / "own", tmp_path / "peft")
    for arguments, message in (
        ((tmp_path / "peft", tmp_path / "to", "--to", "peft"), "to must be another library"),
        ((tmp_path / "own", tmp_path / "to", "--to", "peft", "--name", "a"), "name must not be given"),
        ((tmp_path / "own", tmp_path / "to", "--to", "peft", "--base", "b"), "base must not be given"),
        ((tmp_path, tmp_path / "to", "--to", "peft"), "source must hold an adapter"),
        ((tmp_path / "own", tmp_path / "own", "--to", "peft"), "target must be another folder"),
    ):
        assert message in refused("convert", *arguments)
        assert not (tmp_path / "to").exists()


def test_a_llama_goes_there_and_back(tmp_path):
    model = saved(tmp_path / "own", {"bottleneck_dim": 4, "placement": "residual_sum"}, llama)
    to_peft(tmp_path / "own", tmp_path / "peft")
    from_peft(tmp_path / "peft", tmp_path / "back")
    again = llama()
    adapterx.load_adapter(again, tmp_path / "back")
    assert torch.equal(logits(again), logits(model))
