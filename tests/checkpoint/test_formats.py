"""Three libraries write `adapter_config.json`; each is told by what its document says of itself."""

import json
import os
import re
import shutil

import pytest
import recorded
import torch
from safetensors.torch import save_file
from saved_adapters import CONFIG, PLAIN, adapted_plain, assert_refused, edit, to_version_1

import adapterx
from adapterx import CheckpointError, attach, load_head, restore_adapter
from adapterx.checkpoint import format_of
from adapterx.heads import SequenceClassifier

PEFT = {
    "peft_type": "LORA",
    "r": 8,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "x",
    "inference_mode": True,
}
BN = {"mh_adapter": True, "output_adapter": True, "reduction_factor": 16, "non_linearity": "swish"}
HUB = {
    "config": BN,
    "hidden_size": 32,
    "model_class": "BertAdapterModel",
    "model_name": "bert-base-uncased",
    "model_type": "bert",
    "name": "sst-2",
    "version": "adapters.1.3.0",
}
OLD_HUB = HUB | {"version": "3.2.1"}  # adapter-transformers, before it was renamed
MINIMAL_HUB = {"config": "pfeiffer", "name": "mine", "version": "adapters.1.0.0"}
HUB_HEAD = {
    "config": {"head_type": "classification", "num_labels": 2},
    "hidden_size": 32,
    "model_class": "BertAdapterModel",
    "model_type": "bert",
    "name": "sst-2",
    "version": "adapters.1.3.0",
}
PEFT_WORDS = r"must be written by adapterx, it is PEFT's \(peft_type 'LORA'\); load it with peft: PeftModel"
HUB_WORDS = r"must be written by adapterx, it is AdapterHub's \(version '{}'\); the functions of adapterx\.integrations"


def write(folder, document, *tensors):
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(document))
    for name in tensors:
        if name.endswith(".bin"):
            torch.save({"x": torch.ones(1)}, folder / name)
        else:
            save_file({"x": torch.ones(1)}, folder / name)
    return folder


FOREIGN = [
    ("peft", PEFT, ("adapter_model.safetensors",), PEFT_WORDS),
    ("peft", PEFT, ("adapter_model.bin",), PEFT_WORDS),
    ("adapterhub", HUB, ("pytorch_adapter.bin",), HUB_WORDS.format(r"adapters\.1\.3\.0")),
    ("adapterhub", HUB, ("adapter.safetensors",), HUB_WORDS.format(r"adapters\.1\.3\.0")),
    ("adapterhub", OLD_HUB, ("pytorch_adapter.bin",), HUB_WORDS.format(r"3\.2\.1")),
    ("adapterhub", MINIMAL_HUB, ("pytorch_adapter.bin",), HUB_WORDS.format(r"adapters\.1\.0\.0")),
]


@pytest.mark.parametrize(("library", "document", "tensors", "words"), FOREIGN)
def test_folders_of_other_libraries_are_refused_in_words(library, document, tensors, words, tmp_path):
    folder = write(tmp_path / "theirs", document, *tensors)
    assert format_of(folder) == library
    assert_refused(folder, rf"^load_adapter: .*{words}")
    model = adapted_plain()
    with pytest.raises(CheckpointError, match=rf"^restore_adapter: .*{words}"):
        restore_adapter(model, folder)


def test_the_command_line_refuses_them_too(tmp_path):
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from adapterx.cli.app import app

    done = CliRunner().invoke(app, ["info", str(write(tmp_path / "theirs", PEFT))])
    assert done.exit_code == 2
    assert re.search(rf"^error: info: .*{PEFT_WORDS}", done.output)


def test_own_folders_say_so_and_those_of_0_1_0_are_known(saved):
    assert json.loads((saved / CONFIG).read_text())["format"] == "adapterx"
    assert format_of(saved) == "adapterx"
    old = recorded.FIXTURES / "0.1.0" / "adapters" / "learned"
    assert "format" not in json.loads((old / CONFIG).read_text())
    assert format_of(old) == "adapterx"


def test_what_is_recorded_beats_what_stands_beside_it(saved, tmp_path):
    """The words of the document decide, not the names of files, nor marks of others among its values."""
    (saved / "pytorch_adapter.bin").write_bytes(b"")
    edit(saved, peft_type="LORA", version="adapters.1.3.0")
    assert format_of(saved) == "adapterx"
    model = adapterx_model()
    adapterx.load_adapter(model, saved)


def adapterx_model():
    model = adapted_plain()
    adapterx.detach(model)
    return model


@pytest.mark.parametrize("document", [{}, {"version": "1.0"}, {"config": {}, "version": 3}, {"version": "adapters.1"}])
def test_nobodys_document(document, tmp_path):
    folder = write(tmp_path / "folder", document)
    assert format_of(folder) is None
    assert_refused(folder, r"format_version of .* must be 1 or 2, got None; adapterx did not write this file")


def test_what_is_no_file_is_no_document(saved):
    (saved / CONFIG).unlink()
    os.mkfifo(saved / CONFIG)
    with pytest.raises(CheckpointError, match=r"^format_of: .*adapter_config\.json must be a regular file"):
        format_of(saved)
    assert_refused(saved, r"adapter_config\.json must be a regular file")


def test_no_document(tmp_path):
    assert format_of(tmp_path) is None
    assert format_of(tmp_path / "absent") is None
    assert_refused(tmp_path, r"adapter_config\.json does not exist")


def test_contradicting_marks_are_not_guessed_about(tmp_path):
    folder = write(tmp_path / "both", HUB | PEFT)
    with pytest.raises(CheckpointError, match="must be of one library, it has the marks of peft and adapterhub"):
        format_of(folder)
    edit(folder, format_version=1)
    assert_refused(folder, "has the marks of adapterx and peft and adapterhub")
    edit(folder, format="other")
    assert_refused(folder, r"format of .* must be 'adapterx', got 'other'")


def test_heads_of_adapterhub(tmp_path):
    (tmp_path / "head_config.json").write_text(json.dumps(HUB_HEAD))
    words = HUB_WORDS.format(r"adapters\.1\.3\.0")
    with pytest.raises(CheckpointError, match=rf"^load_head: .*head_config\.json {words}"):
        load_head(tmp_path)
    with pytest.raises(CheckpointError, match=rf"^restore_head: .*head_config\.json {words}"):
        adapterx.restore_head(SequenceClassifier(torch.nn.Linear(2, 2), 2, hidden_size=32), tmp_path)


def test_a_document_without_its_format_is_that_of_0_1_0(saved, tmp_path):
    expected = adapted_plain()(torch.ones(2, 8))
    folder = shutil.copytree(saved, tmp_path / "old")
    to_version_1(folder)
    model = adapterx_model()
    adapterx.load_adapter(model, folder)
    assert torch.equal(model(torch.ones(2, 8)), expected)
    attach(model, PLAIN, "again")
    restore_adapter(model, folder, "again")
