"""Tell by its content what kind of file a model is in; nothing in the file is executed, and no package is needed.

The file may be damaged or a stranger's: no more of it is read than a list of what it holds, and that up to a limit.
"""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from adapterx.errors import ExportError, speaker

TORCHSCRIPT, ONNX, PT2, TORCH_SAVE, ZIP = "torchscript", "onnx", "pt2", "torch.save", "zip"
# The numbers of the fields of an ONNX ModelProto, and which one is the graph.
MODEL_FIELDS, _GRAPH = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}, 7
_VARINT, _FIXED64, LENGTH, _FIXED32 = 0, 1, 2, 5
_ARCHIVE_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # of the first member, or of the end of an archive without any
_MAX_DIRECTORY = 4 * 2**20  # bytes of an archive's list of members: 50,000 tensors
_MAX_FIELDS = 100_000  # of a model, which has one for its graph and one per function, domain and property


def kind_of(path: Path) -> str | None:
    """Return what a file is.

    Returns:
        `"torchscript"`, `"onnx"`, `"pt2"` (torch.export or AOTInductor), `"torch.save"`, `"zip"` (another archive), or
        None: nothing that is known here.

    Raises:
        OSError: the file cannot be read.
        zipfile.BadZipFile: it is a damaged archive.
    """
    with path.open("rb") as file:
        if not is_archive(file):
            return ONNX if _is_onnx(file) else None
        with opened_archive(file) as archive:
            return _kind_of_archive(archive)


def is_archive(file: BinaryIO) -> bool:
    """Return whether an open file, read from its start, is a zip archive."""
    file.seek(0)
    return file.read(4) in _ARCHIVE_STARTS


@contextmanager
def opened_archive(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose list of members has a reasonable size.

    Raises:
        zipfile.BadZipFile: it has not, or is damaged; so too if the block raises what zipfile does for damaged members.
    """
    try:
        with zipfile.ZipFile(_Limited(file)) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile):
        raise
    except Exception as error:  # whatever zipfile and the decompressors make of a damaged or an encrypted member
        raise zipfile.BadZipFile(f"{type(error).__name__}: {error}") from error


class Field(NamedTuple):
    """One field of a protobuf message in a file: its number, its wire type, and where its content is, in bytes."""

    number: int
    wire_type: int
    start: int
    length: int


def fields_of(file: BinaryIO, start: int, end: int, *, most: int = _MAX_FIELDS) -> Iterator[Field]:
    """Walk over the outermost fields of a protobuf message, whose content is not read.

    Raises:
        ExportError: it is no such message, is cut short, or has more than `most` fields.
    """
    file.seek(start)
    for _ in range(most):
        if file.tell() == end:
            return
        number, wire_type = divmod(_read_varint(file), 8)
        length = {_VARINT: 0, _FIXED64: 8, _FIXED32: 4}.get(wire_type)
        if wire_type in (_VARINT, LENGTH):
            value = _read_varint(file)
            length = value if wire_type == LENGTH else 0
        place = file.tell()
        if length is None or length > end - place:
            raise _damaged(file)
        yield Field(number, wire_type, place, length)
        file.seek(place + length)
    raise ExportError(f"{speaker()}: cannot read {file.name}: a message in it has more than {most:,} fields")


class _Limited:
    """A file that gives no more at once than the list of an archive's members may take."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int | None = -1) -> bytes:
        content = self._file.read(_MAX_DIRECTORY + 1 if size is None or size < 0 else min(size, _MAX_DIRECTORY + 1))
        if len(content) > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a part of it is larger than {_MAX_DIRECTORY:,} bytes")
        return content


def _kind_of_archive(archive: zipfile.ZipFile) -> str:
    names = set(archive.namelist())
    root = next(iter(archive.namelist()), "").partition("/")[0]
    if f"{root}/archive_format" in names:
        return PT2
    if f"{root}/constants.pkl" in names and any(name.startswith(f"{root}/code/") for name in names):
        return TORCHSCRIPT
    return TORCH_SAVE if f"{root}/data.pkl" in names else ZIP


def _is_onnx(file: BinaryIO) -> bool:
    """Tell whether the outermost fields of a protobuf message are all a model's, and one of them is a graph."""
    found = set()
    try:
        for field in fields_of(file, 0, os.fstat(file.fileno()).st_size):
            found.add(field.number)
            if field.number not in MODEL_FIELDS:
                return False
    except ExportError:
        return False
    return _GRAPH in found


def _read_varint(file: BinaryIO) -> int:
    value = 0
    for position in range(10):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << (7 * position)
        if byte[0] < 0x80:
            return value
    raise _damaged(file)


def _damaged(file: BinaryIO) -> ExportError:
    return ExportError(f"{speaker()}: {file.name} is neither a TorchScript nor an ONNX file, or was cut short")
