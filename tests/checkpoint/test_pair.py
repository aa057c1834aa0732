"""The pair of files that adapters, heads and trained states share."""

import json
import random
import types

import pytest
import torch
from saved_adapters import CONFIG, WEIGHTS, adapted_plain, assert_refused, edit, to_version_1
from tiny_models import plain_model

from adapterx import CheckpointError, load_adapter, save_adapter, save_head
from adapterx.checkpoint import settled
from adapterx.checkpoint.document import MAX_DOCUMENT_BYTES
from adapterx.checkpoint.pair import read_document, read_pair, write_pair
from adapterx.heads import SequenceClassifier


def ring():
    values = {}
    values["self"] = values
    return values


def nested(depth, values=None):
    for _ in range(depth):
        values = {"inner": [values]}
    return values


REFUSED = {
    "a tensor": lambda: {"x": torch.ones(1)},
    "not a number": lambda: {"x": float("nan")},
    "infinity": lambda: {"x": [float("-inf")]},
    "a set": lambda: {"x": {1}},
    "bytes": lambda: {"x": b"1"},
    "a key that is none": lambda: {(1, 2): "x"},
    "one key twice, as number and as text": lambda: {1: "a", "1": "b"},
    "inside too": lambda: {"labels": {True: "a", "true": "b"}},
    "an integer that no reader takes": lambda: {"x": 10**5000},
    "itself": ring,
    "too deep for readers": lambda: nested(60),
    "too deep for writers": lambda: nested(100_000),
    "too large": lambda: {"x": "x" * MAX_DOCUMENT_BYTES},
    "too large in its final form": lambda: {"x": nested(30, [0] * 2**18)},
    "no mapping": lambda: ["x"],
    "a text": lambda: "x",
}


@pytest.mark.parametrize("name", REFUSED)
def test_metadata_that_no_reader_would_take_is_refused_and_the_old_pair_stays(saved, name):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    metadata = REFUSED[name]()
    with pytest.raises(CheckpointError, match=r"^save_adapter: metadata must be [^\n]*$") as error:
        save_adapter(adapted_plain(seed=2), saved, metadata=metadata)
    assert len(str(error.value)) < 2100
    with pytest.raises(CheckpointError, match=r"^save_head: metadata must be [^\n]*$"):
        save_head(SequenceClassifier(torch.nn.Linear(2, 2), 2, hidden_size=2), saved, metadata=metadata)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({"a": [None, True, 1.0, 1e-300, -0.0, 2**70]},) * 2,
        ({"labels": {10: "ten", 2: "two"}}, {"labels": {"10": "ten", "2": "two"}}),
        ({"text": "ü\u2028\x1b[0m\udce9\U0001f600"},) * 2,
        ({key: "x" for key in ("format", "format_version", "sha256", "tensors", "document_sha256", "name")},) * 2,
        (nested(40),) * 2,
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        ({"x": "x" * 2**20},) * 2,
        (None, {}),
    ],
)  # fmt: skip
def test_metadata_comes_back(saved, given, found):
    save_adapter(adapted_plain(), saved, metadata=given)
    load_adapter(plain_model(), saved)
    assert json.dumps(read_document(saved, "adapter")["metadata"]) == json.dumps(found, sort_keys=True)


def test_other_files_stay_and_permissions_are_ordinary(saved):
    (saved / "notes.txt").write_text("mine")
    save_adapter(adapted_plain(seed=2), saved)
    assert (saved / "notes.txt").read_text() == "mine"
    (saved / "plain.txt").write_text("")
    assert (saved / CONFIG).stat().st_mode == (saved / "plain.txt").stat().st_mode


def test_tensors_that_the_format_cannot_hold(tmp_path):
    with pytest.raises(CheckpointError, match=r"tensors must have dtypes that safetensors can hold: .*complex128"):
        write_pair(tmp_path, "adapter", {"x": torch.ones(1, dtype=torch.complex128)}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_flipped_bit_is_refused_wherever_it_is(saved, file, monkeypatch):
    """Or it changes nothing but the layout. All bits, and those of other pairs: tests/torture."""
    monkeypatch.setattr(settled, "_TICK", 0.0)
    document, _ = read_pair(saved, "adapter")
    whole, draw = (saved / file).read_bytes(), random.Random(1)
    for position in range(0, len(whole), 6):
        changed = bytearray(whole)
        changed[position] ^= 1 << draw.randrange(8)
        (saved / file).write_bytes(changed)
        try:
            found, _ = read_pair(saved, "adapter")
        except CheckpointError:
            continue
        assert file == CONFIG
        assert found == document


def test_values_that_were_changed_in_an_editor_are_refused(saved):
    text = (saved / CONFIG).read_text()
    for old, new in (('"down_bias": true', '"down_bias": false'), ('"scaling": "learned"', '"scaling": 9.0')):
        assert old in text
        (saved / CONFIG).write_text(text.replace(old, new))
        assert_refused(saved, r"adapter_config\.json is damaged or was changed since it was written")
    (saved / CONFIG).write_text("\n" + text.replace("  ", "\t"))  # its layout is no value
    load_adapter(plain_model(), saved)


def test_version_1_has_no_hash_and_version_2_must(saved):
    edit(saved, document_sha256=None)
    assert_refused(saved, "must hold 'document_sha256'")
    edit(saved, format_version=1)
    assert_refused(saved, "was changed since it was written: version 1 must have no format")
    edit(saved, format=None, document_sha256="0" * 64)
    assert_refused(saved, "version 1 must have no document_sha256")
    to_version_1(saved)
    load_adapter(plain_model(), saved)
