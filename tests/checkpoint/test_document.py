"""JSON is read strictly, from regular files of bounded size only, and its hash is over its values."""

import json
import os

import pytest

from adapterx.checkpoint.document import MAX_DOCUMENT_BYTES, check_hash, hashed, parse_json, read_json
from adapterx.errors import CheckpointError


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def too_large(path):
    with path.open("wb") as file:
        file.truncate(MAX_DOCUMENT_BYTES + 1)


@pytest.mark.parametrize("make", [fifo, device, os.mkdir, too_large, lambda path: path.symlink_to(path)])
def test_what_is_no_file_of_that_size_is_refused_at_once(make, tmp_path):
    path = tmp_path / "document.json"
    make(path)
    with pytest.raises(CheckpointError, match=r"document\.json"):
        read_json(path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"1", b"null", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b'{"a": "\xe9"}', b"[" * 100_000,
        b'{"a":' * 100_000, b'{"a": 1e400}', b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"a": ' + b"9" * 10_000 + b"}", b"\xff\xfe{\x00}\x00",
    ],
)  # fmt: skip
def test_what_is_no_strict_json_object_is_refused(content):
    with pytest.raises(CheckpointError) as error:
        parse_json(content, "the document")
    assert len(str(error.value)) < 2100


def test_the_hash_is_over_values_not_over_their_layout():
    document = hashed({"name": "a", "values": [1, 2.5, None, True], "inner": {"b": "ü", "a": {}}})
    shuffled = json.loads(json.dumps(dict(reversed(document.items())), indent=7))
    check_hash(shuffled, "the document")


@pytest.mark.parametrize(
    "change",
    [{"name": "b"}, {"values": [1, 2.5]}, {"values": [True, 2.5, None]}, {"new": 1}, {"document_sha256": "0" * 64}],
)
def test_a_changed_value_is_noticed(change):
    document = hashed({"name": "a", "values": [1, 2.5, None]})
    with pytest.raises(CheckpointError, match="damaged or was changed"):
        check_hash(document | change, "the document")


def test_a_missing_hash_is_noticed():
    with pytest.raises(CheckpointError, match="document_sha256"):
        check_hash({"name": "a"}, "the document")
