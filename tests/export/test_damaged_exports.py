"""`read_metadata` of whatever a folder can hold: one line, soon, and little memory."""

import contextlib
import json
import os
import random
import struct
import time
import tracemalloc
import zipfile

import pytest
import recorded
import torch

from adapterx import ExportError
from adapterx.checkpoint.document import hashed
from adapterx.export import read_metadata, validate
from adapterx.export.metadata import text_of

EXPORTS = recorded.FIXTURES / "0.1.0" / "export"
DOCUMENT = {"format_version": 2, "kind": "torchscript", "versions": {"adapterx": "0.2.0"}}
MEMBER = "model/extra/adapterx_export.json"


def write_archive(path, content=None, *, compression=zipfile.ZIP_STORED, name=MEMBER):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, text_of(DOCUMENT) if content is None else content)


def varint(value):
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def onnx_bytes(text, graph=b""):
    return b"\x08\x0a" + field(7, graph) + field(14, field(1, b"adapterx_export") + field(2, text))


def write_onnx(path, content):
    path.write_bytes(onnx_bytes(content))


def encrypt(path):
    write_archive(path)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[directory + 8] |= 1
    path.write_bytes(content)


def write_many_members(path):
    """As an archive of a million members would be listed; the members themselves are not there."""
    name = b"model/data/0"
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", len(name)) + bytes(16) + name
    count = 200_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(entry) * count, 4, 0)
    path.write_bytes(b"PK\x03\x04" + entry * count + end)


def write_twice(path):
    other = MEMBER.replace("model/", "other/")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, text_of(DOCUMENT))
        archive.writestr(other, text_of(DOCUMENT | {"kind": "onnx"}))


FILES = {
    "absent": (lambda path: None, "there is no such file"),
    "empty": (lambda path: path.touch(), "has no metadata|is neither"),
    "pipe": (os.mkfifo, "no regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    "loop": (lambda path: path.symlink_to(path), "cannot read"),
    "text": (lambda path: path.write_text("hello"), "is neither a TorchScript nor an ONNX file"),
    "zeros": (lambda path: path.write_bytes(bytes(10**6)), "is neither"),
    "list": (lambda path: write_archive(path, "[]"), "must hold a JSON object, got list"),
    "deep": (lambda path: write_archive(path, "[" * 10**6), "is not valid JSON"),
    "deep object": (lambda path: write_onnx(path, b'{"a":' * 10**5), "is not valid JSON"),
    "latin-1": (lambda path: write_archive(path, '{"format_version": "é"}'.encode("latin-1")), "is not valid JSON"),
    "bad member": (lambda path: write_archive(path, b"\xff\xfe{}"), "is not valid JSON"),
    "long number": (lambda path: write_archive(path, '{"format_version": 1' + "0" * 10**5 + "}"), "is not valid JSON"),
    "long text": (
        lambda path: write_archive(path, json.dumps({"format_version": "x" * 10**7})),
        "must be 1 or 2, got 'xx",
    ),
    "true": (lambda path: write_archive(path, '{"format_version": true}'), "must be 1 or 2, got True"),
    "no hash": (lambda path: write_archive(path, json.dumps(DOCUMENT)), "document_sha256"),
    "other value": (lambda path: write_archive(path, json.dumps(hashed(DOCUMENT) | {"kind": "onnx"})), "was changed"),
    "bomb": (lambda path: write_archive(path, bytes(10**8), compression=zipfile.ZIP_DEFLATED), "larger than"),
    "bzip2": (lambda path: write_archive(path, compression=zipfile.ZIP_BZIP2), "stored or deflated"),
    "encrypted": (encrypt, "is encrypted"),
    "many members": (write_many_members, "larger than"),
    "twice": (write_twice, "must hold one"),
    "other member": (lambda path: write_archive(path, name="model/data.pkl"), "has no metadata of adapterx"),
    "deep protobuf": (lambda path: path.write_bytes(onnx_bytes(b"[]", nested(50_000))), "must hold a JSON object"),
    "many fields": (lambda path: path.write_bytes(b"\x08\x0a" * 200_000), "more than 100,000 fields"),
    "many parts": (lambda path: path.write_bytes(field(14, b"\x08\x0a" * 10**6) * 3), "more than 8 fields"),
    "endless property": (lambda path: path.write_bytes(b"\x08\x0a\x72" + b"\xff" * 9 + b"\x01"), "is neither"),
    "two properties": (lambda path: path.write_bytes(onnx_bytes(b"{}") + onnx_bytes(b"{}")), "must hold one property"),
}


def nested(depth):
    content = b""
    for _ in range(depth):
        content = b"\x0a" + varint(len(content)) + content if len(content) < 10**6 else content
    return content


@pytest.mark.parametrize("name", FILES)
def test_one_line_soon_and_little_memory(name, tmp_path):
    write, message = FILES[name]
    path = tmp_path / "model"
    write(path)
    tracemalloc.start()
    begun = time.monotonic()
    try:
        with pytest.raises(ExportError, match=rf"^read_metadata: .*({message})") as caught:
            read_metadata(path)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - begun < 20  # under the eyes of tracemalloc
    assert len(str(caught.value)) <= 2100
    assert "\n" not in str(caught.value).replace(str(path), "")


INDEXES = {
    "pipe": (os.mkfifo, "must be a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "must be a regular file"),
    "folder": (lambda path: path.mkdir(), "cannot read|regular file"),
    "list": (lambda path: path.write_text("[1]"), "must hold a JSON object, got list"),
    "deep": (lambda path: path.write_text("[" * 10**5), "is not valid JSON"),
    "large": (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**40), "must not exceed"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_is_none(name, tmp_path):
    write, message = INDEXES[name]
    write(tmp_path / "adapterx_export.json")
    with pytest.raises(ExportError, match=rf"^read_metadata: .*({message})"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_is_whole_is_read(compression, tmp_path):
    write_archive(tmp_path / "model", compression=compression)
    assert read_metadata(tmp_path / "model") == DOCUMENT
    write_onnx(tmp_path / "model", text_of(DOCUMENT).encode())
    assert read_metadata(tmp_path / "model") == DOCUMENT


def test_onnx_is_read_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert read_metadata(EXPORTS / "model.onnx")["kind"] == "onnx"


def test_no_flipped_bit_of_the_metadata_is_believed(tmp_path):
    """Nor does any damage do worse than to be refused."""
    path, text = tmp_path / "model", text_of(DOCUMENT).encode()
    for place in range(0, 8 * len(text), 7):
        changed = bytearray(text)
        changed[place // 8] ^= 1 << place % 8
        write_onnx(path, bytes(changed))
        with contextlib.suppress(ExportError):
            assert read_metadata(path) == DOCUMENT  # only white space was changed


@pytest.mark.parametrize("name", ["model.pt", "model.onnx"])
def test_damage_of_any_kind(name, tmp_path):
    whole, random_ = (EXPORTS / name).read_bytes(), random.Random(3)
    path = tmp_path / name
    for _ in range(100):
        path.write_bytes(damaged(whole, random_))
        with contextlib.suppress(ExportError):
            read_metadata(path)


def damaged(content, random_):
    changed = bytearray(content)
    kind = random_.randrange(4)
    if kind == 0:
        return bytes(changed[: random_.randrange(len(changed))])
    if kind == 1:
        place = random_.randrange(len(changed))
        changed[place : place + random_.randrange(1, 2000)] = random_.randbytes(random_.randrange(2000))
        return bytes(changed)
    for _ in range(random_.randrange(1, 50)):  # near the ends, where the structure is
        place = random_.choice([random_.randrange(len(changed)), random_.randrange(-3000, 0), random_.randrange(200)])
        changed[place] = random_.randrange(256) if kind == 2 else changed[place] ^ (1 << random_.randrange(8))
    return bytes(changed)


def test_metadata_that_name_no_inputs_are_not_validated(tmp_path):
    text = (EXPORTS / "model.onnx").read_bytes().replace(b'"inputs"', b'"inpuds"')
    (tmp_path / "model.onnx").write_bytes(text)
    assert read_metadata(tmp_path / "model.onnx")["inpuds"]
    with pytest.raises(ExportError, match=r"^validate: the metadata in .* must name inputs among .*, got None"):
        validate(torch.nn.Linear(1, 1), tmp_path / "model.onnx")
