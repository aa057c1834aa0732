"""Damaged and hostile files are refused in words, and the model stays as it was."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
from saved_adapters import CONFIG, WEIGHTS, adapted_plain, assert_refused, edit

from adapterx import CheckpointError, ConfigError, save_adapter
from adapterx.checkpoint.document import MAX_DOCUMENT_BYTES


@pytest.mark.parametrize("keep", [0, 1, 8, 100, -1])
def test_truncated_weights(saved, keep):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[:keep])
    assert_refused(saved, "damaged or belongs to another checkpoint: its SHA-256")


@pytest.mark.parametrize("position", [0, 7, 9, 60, -1])
def test_flipped_bit(saved, position):
    content = bytearray((saved / WEIGHTS).read_bytes())
    content[position] ^= 0x10
    (saved / WEIGHTS).write_bytes(content)
    assert_refused(saved, "damaged or belongs to another checkpoint")


def test_weights_of_another_checkpoint(saved, tmp_path):
    save_adapter(adapted_plain(seed=2), tmp_path / "other")
    (saved / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    assert_refused(saved, "damaged or belongs to another checkpoint")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}" + b"surplus",
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     ',
    ],
)
def test_hostile_weights_with_the_right_hash(saved, content):
    (saved / WEIGHTS).write_bytes(content)
    edit(saved, sha256=hashlib.sha256(content).hexdigest())
    assert_refused(saved, "is not a valid safetensors file")


def test_listing_and_tensors_must_agree(saved):
    listed = json.loads((saved / CONFIG).read_text())["tensors"]
    listed["classifier.bias"]["shape"] = [4]
    listed["surplus"] = {"dtype": "float32", "shape": []}
    edit(saved, tensors=listed)
    assert_refused(saved, r"disagree about \['classifier.bias', 'surplus'\]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object, got list"),
        ("null", "must hold a JSON object, got NoneType"),
        ("{}", "format_version of .* must be 1 or 2, got None"),
        ('{"format_version": 1}', "must hold 'sha256' and 'tensors'"),
        ('{"format_version": 1, "format_version": 1}', "an object repeats a key"),
        ('{"format_version": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "is not valid JSON"),
        ('"\udcff"', "is not valid JSON"),
        (" " * (MAX_DOCUMENT_BYTES + 1), "must not exceed 16777216 bytes"),
    ],
)
def test_bad_json(saved, text, message):
    (saved / CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert_refused(saved, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "format_version of .* must be 1 or 2, got 3; a newer adapterx may have written it"),
        ({"format_version": True}, "must be 1 or 2, got True"),
        ({"format_version": "1"}, "must be 1 or 2, got '1'"),
        ({"sha256": "0" * 63}, "must hold 'sha256'"),
        ({"sha256": "../../x" + "0" * 57}, "must hold 'sha256'"),
        ({"sha256": "0" * 64}, "damaged or belongs to another"),
        ({"tensors": []}, "must hold 'sha256' and 'tensors'"),
        *(
            ({"tensors": {"x": entry}}, "must hold 'sha256' and 'tensors'")
            for entry in (
                [],
                {"dtype": "float32", "shape": 3},
                {"dtype": "float32", "shape": [-1]},
                {"dtype": "float32", "shape": [True]},
                {"dtype": "float32", "shape": [10**400]},
                {"dtype": "float32", "shape": [2**60] * 10_000},
                {"dtype": "save", "shape": [1]},
                {"dtype": "_inductor", "shape": [1]},
                {"dtype": None, "shape": [1]},
            )
        ),
        ({"tensors": {"x": {"dtype": "float32", "shape": [2**60] * 8}}}, "disagree about"),
        ({"name": 5}, "must hold 'name', 'config' and 'modules'"),
        ({"modules": {}}, "must hold 'name', 'config' and 'modules'"),
        ({"modules": ["blocks.0"]}, "must hold 'name', 'config' and 'modules'"),
        ({"modules": {"": {}}}, r"chooses other modules: \['blocks.0.narrow', .*\] instead of \[''\]"),
        ({"config": None}, "no valid config: .*values must be a mapping, got NoneType"),
        ({"config": {"bottleneck_dim": 2, "evil": 1}}, "unknown keys: evil"),
        ({"config": {"bottleneck_dim": 0}}, "bottleneck_dim must be at least 1, got 0"),
        ({"config": {"bottleneck_dim": 2**40, "positions": ["feed_forward"]}}, "at most the hidden size"),
        ({"config": {"bottleneck_dim": 2, "positions": ["feed_forward"]}}, "unknown tensors"),
    ],
)
def test_bad_values(saved, changes, message):
    edit(saved, **changes)
    assert_refused(saved, message, error=(CheckpointError, ConfigError))


def test_missing_files(saved, tmp_path):
    assert_refused(tmp_path / "nowhere", "adapter_config.json does not exist")
    (saved / WEIGHTS).unlink()
    assert_refused(saved, "adapter_model.safetensors does not exist")
    (saved / CONFIG).unlink()
    (saved / CONFIG).mkdir()
    assert_refused(saved, "cannot read .*adapter_config.json: Is a directory")


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["ADAPTERX_TEST_FOLDER"]) / "executed"),)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_adapter.bin"])
def test_pickle_files_are_refused_unread(tmp_path, name, monkeypatch):
    monkeypatch.setenv("ADAPTERX_TEST_FOLDER", str(tmp_path))
    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    assert_refused(tmp_path, f"{name} will not be read, because a pickle file can run any program")
    assert not (tmp_path / "executed").exists()


def test_pickle_beside_a_valid_document_is_refused_in_words(saved):
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    assert_refused(saved, "adapter_model.bin will not be read, because a pickle file can run any program")


def test_pickle_under_the_name_of_safetensors_is_not_executed(saved, monkeypatch):
    monkeypatch.setenv("ADAPTERX_TEST_FOLDER", str(saved))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Evil()))
    for content in (pickle.dumps(Evil()), archive.getvalue()):
        (saved / WEIGHTS).write_bytes(content)
        edit(saved, sha256=hashlib.sha256(content).hexdigest())
        assert_refused(saved, "is not a valid safetensors file")
    assert not (saved / "executed").exists()
