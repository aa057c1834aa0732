"""Tell by its content what kind of file a model is in; nothing in the file is executed, and no package is needed."""

import os
import zipfile
from pathlib import Path
from typing import BinaryIO

TORCHSCRIPT, ONNX, PT2, TORCH_SAVE, ZIP = "torchscript", "onnx", "pt2", "torch.save", "zip"
# The numbers of the fields of an ONNX ModelProto, and which one is the graph.
_MODEL_FIELDS, _GRAPH = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}, 7
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def kind_of(path: Path) -> str | None:
    """Return what a file is.

    Returns:
        `"torchscript"`, `"onnx"`, `"pt2"` (torch.export or AOTInductor), `"torch.save"`, `"zip"` (another archive), or
        None: nothing that is known here.

    Raises:
        OSError: the file cannot be read.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _kind_of_archive(archive)
    with path.open("rb") as file:
        return ONNX if _is_onnx(file, path.stat().st_size) else None


def _kind_of_archive(archive: zipfile.ZipFile) -> str:
    names = set(archive.namelist())
    root = next(iter(archive.namelist()), "").partition("/")[0]
    if f"{root}/archive_format" in names:
        return PT2
    if f"{root}/constants.pkl" in names and any(name.startswith(f"{root}/code/") for name in names):
        return TORCHSCRIPT
    return TORCH_SAVE if f"{root}/data.pkl" in names else ZIP


def _is_onnx(file: BinaryIO, size: int) -> bool:
    """Walk over the outermost fields of a protobuf message: all must be a model's, and one of them a graph."""
    found = set()
    while file.tell() < size:
        tag = _read_varint(file)
        if tag is None or tag >> 3 not in _MODEL_FIELDS:
            return False
        found.add(tag >> 3)
        wire_type = tag & 7
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire_type, 0)
        if wire_type in (_VARINT, _LENGTH):
            value = _read_varint(file)
            if value is None:
                return False
            length = value if wire_type == _LENGTH else 0
        elif not length:
            return False
        if length > size - file.tell():
            return False  # cut short
        file.seek(length, os.SEEK_CUR)
    return _GRAPH in found


def _read_varint(file: BinaryIO) -> int | None:
    value = 0
    for position in range(10):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << (7 * position)
        if byte[0] < 0x80:
            return value
    return None
