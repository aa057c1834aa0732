"""Find the document of adapterx in an exported file, of which nothing else is read: it may be damaged, or hostile."""

import os
import zipfile
from pathlib import Path
from typing import BinaryIO

from adapterx.checkpoint.document import MAX_DOCUMENT_BYTES, read_file
from adapterx.errors import ExportError, speaker
from adapterx.export.kinds import LENGTH, MODEL_FIELDS, Field, fields_of, is_archive, opened_archive

DOCUMENT = "adapterx_export.json"  # beside ONNX files, and inside TorchScript files
PROPERTY = "adapterx_export"  # among the properties of an ONNX file
_PROPERTIES, _KEY, _VALUE = 14, 1, 2  # numbers of fields: in an ONNX ModelProto, and in each of its properties
_MAX_KEY = 1000  # bytes


def document_in(path: Path) -> bytes | None:
    """Return the document's text; None: it has none.

    Args:
        path: a TorchScript or an ONNX file, or the document itself, a file that ends in `.json`.

    Raises:
        OSError: it cannot be read.
        zipfile.BadZipFile: it is a damaged archive, or the document in it is too large.
        ExportError: it is neither an archive nor an ONNX file, or a damaged one.
        CheckpointError: the document itself is no regular file, or too large.
    """
    if path.suffix == ".json":
        return read_file(path, MAX_DOCUMENT_BYTES)
    if path.exists() and not path.is_file():
        raise ExportError(f"{speaker()}: cannot read {path}: it is no regular file")
    with path.open("rb") as file:
        return _in_archive(file) if is_archive(file) else _in_onnx(file)


def _in_archive(file: BinaryIO) -> bytes | None:
    with opened_archive(file) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(f"/extra/{DOCUMENT}")]
        if not members:
            return None
        if len(members) > 1 or members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(f"it must hold one {DOCUMENT}, stored or deflated")
        content = b""
        with archive.open(members[0]) as member:
            while len(content) <= MAX_DOCUMENT_BYTES and (block := member.read(1 << 20)):
                content += block
    if len(content) > MAX_DOCUMENT_BYTES:
        raise zipfile.BadZipFile(f"its {DOCUMENT} is larger than {MAX_DOCUMENT_BYTES} bytes")
    return content


def _in_onnx(file: BinaryIO) -> bytes | None:
    found = []
    for field in fields_of(file, 0, os.fstat(file.fileno()).st_size):
        if field.number not in MODEL_FIELDS:
            raise ExportError(f"{speaker()}: {file.name} is neither a TorchScript nor an ONNX file")
        if field.number == _PROPERTIES and field.wire_type == LENGTH:
            parts = {part.number: part for part in fields_of(file, field.start, field.start + field.length, most=8)}
            key = parts.get(_KEY)
            if key and _VALUE in parts and key.length <= _MAX_KEY and _content(file, key) == PROPERTY.encode():
                found.append(parts[_VALUE])
    if len(found) > 1 or (found and found[0].length > MAX_DOCUMENT_BYTES):
        raise ExportError(
            f"{speaker()}: {file.name} must hold one property {PROPERTY} of at most {MAX_DOCUMENT_BYTES} bytes"
        )
    return _content(file, found[0]) if found else None


def _content(file: BinaryIO, field: Field) -> bytes:
    file.seek(field.start)
    return file.read(field.length)
