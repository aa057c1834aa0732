"""JSON documents: read strictly, and what they tell of the package and the model that files come from."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

from adapterx.errors import CheckpointError, speaker
from adapterx.sharding import own_class

MAX_DOCUMENT_BYTES = 16 * 2**20  # a thousand times what a large model's adapters need
MAX_VALUES = 400_000  # a value in a list takes up to a hundred times the memory of its two characters
MAX_DEPTH = 100  # of objects and lists in each other; Python's own limits depend on who calls
HASH = "document_sha256"  # key of the hash of all other keys
FORMAT_VERSION = 2  # 1 is that of adapterx 0.1.0, whose documents have no hash

try:
    PACKAGE_VERSION = importlib.metadata.version("adapterx")
except importlib.metadata.PackageNotFoundError:  # used from its source folder
    PACKAGE_VERSION = "not installed"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, refusing what careless readers let pass: repeated keys, NaN, files without end.

    Raises:
        CheckpointError: the file cannot be read or is no such object.
    """
    return parse_json(read_file(path, MAX_DOCUMENT_BYTES), str(path))


def read_file(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; a pipe or a device is refused, not waited for.

    Raises:
        CheckpointError: it cannot be read, is of another kind, or larger.
    """
    with open_regular(path) as file:
        content = file.read() if os.fstat(file.fileno()).st_size <= limit else None
    if content is None or len(content) > limit:
        raise CheckpointError(f"{speaker()}: {path} must not exceed {limit} bytes")
    return content


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading. Errors as in `read_file`, also of what is read inside the block."""
    with named_errors(path):
        # Without O_NONBLOCK the opening itself would wait for somebody who writes into a named pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"{speaker()}: {path} must be a regular file")
            yield file


def describe_content(file: BinaryIO) -> dict[str, int | str]:
    """Return size in bytes and SHA-256 of what an open file holds from here on."""
    digest = hashlib.sha256()
    size = 0
    while block := file.read(1 << 20):
        digest.update(block)
        size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def has_content(file: BinaryIO, described: Mapping[str, Any]) -> bool:
    """Return whether an open file holds what `describe_content` described; one of another size is not read."""
    return os.fstat(file.fileno()).st_size == described["bytes"] and describe_content(file) == described


def parse_json(content: bytes | str, source: str) -> dict[str, Any]:
    """Return the JSON object that `content` holds; `source` names it in messages. Errors as in `read_json`."""
    try:
        document = _parsed(content.decode("utf-8") if isinstance(content, bytes) else content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{speaker()}: {source} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{speaker()}: {source} must hold a JSON object, got {type(document).__name__}")
    return document


def json_document(values: Mapping[str, Any], source: str) -> bytes:
    """Return the content of a file with these values and their hash, which `read_json` and `check_version` will take.

    What JSON has no types for becomes what it has: tuples become lists, keys that are numbers become text.

    Args:
        values: what users added stands under `"metadata"`; messages name it.
        source: the file's name, for messages.

    Raises:
        CheckpointError: a value cannot be held, or a reader would refuse the file.
    """
    try:
        # Written and read back once before it is hashed, so that the hash is of what a reader finds.
        document = hashed({**_parsed(json.dumps(values, allow_nan=False)), "format_version": FORMAT_VERSION})
        content = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{speaker()}: metadata must be values that JSON can hold ({error})") from error
    if len(content) > MAX_DOCUMENT_BYTES:
        raise CheckpointError(
            f"{speaker()}: metadata must be small enough for {source} not to exceed {MAX_DOCUMENT_BYTES} bytes, it "
            f"would have {len(content)}"
        )
    return content


def check_version(document: Mapping[str, Any], source: str) -> None:
    """Refuse a document that neither `json_document` wrote, or that was changed since, nor adapterx 0.1.0.

    Raises:
        CheckpointError: the format version is another, the hash is not that of the values, or the document is of
            version 1 and has what only later ones have.
    """
    version = document.get("format_version")
    if type(version) is not int or version not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"{speaker()}: format_version of {source} must be 1 or {FORMAT_VERSION}, got {version!r}; "
            + ("adapterx did not write this file" if version is None else "a newer adapterx may have written it")
        )
    if version == FORMAT_VERSION:
        check_hash(document, source)
    elif later := sorted({HASH, "format"} & document.keys()):
        raise CheckpointError(
            f"{speaker()}: {source} was changed since it was written: version 1 must have no {' and no '.join(later)}"
        )


def hashed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with the SHA-256 of its other keys under `document_sha256`.

    The hash is that of the values, however they are laid out in the file.

    Raises:
        TypeError: a value is none that JSON can hold.
        ValueError: a number is not finite.
    """
    return {**document, HASH: _hash_of(document)}


def check_hash(document: Mapping[str, Any], source: str) -> None:
    """Refuse a document of which `hashed` made something else.

    Raises:
        CheckpointError: it has no hash, or a value was changed since.
    """
    found = document.get(HASH)
    if found is None:
        raise CheckpointError(f"{speaker()}: {source} must hold {HASH!r}; it was changed since it was written")
    if found != _hash_of(document):
        raise CheckpointError(
            f"{speaker()}: {source} is damaged or was changed since it was written: the hash of its values is not the "
            f"one under {HASH!r}"
        )


def _hash_of(document: Mapping[str, Any]) -> str:
    values = {key: value for key, value in document.items() if key != HASH}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a CheckpointError that says which file cannot be read."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{speaker()}: cannot read {path}: {error.strerror or error}") from error


def public_name(name: str) -> str:
    """Keep a hub id such as `organisation/model`; of a local path keep the last part, the rest is private."""
    is_path = Path(name).exists() or name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_path else name


def describe_base(model: nn.Module) -> dict[str, Any]:
    """Return name, commit, type and class of the model that an adapter belongs to; None for what it does not tell."""
    config = getattr(model, "config", None)
    name = getattr(model, "name_or_path", None) or getattr(config, "_name_or_path", None)
    commit = getattr(config, "_commit_hash", None)
    return {
        "name": public_name(name) if isinstance(name, str) and name else None,
        "commit": commit if isinstance(commit, str) else None,
        "model_type": getattr(config, "model_type", None),
        "class": own_class(model).__name__,
    }


def _parsed(text: str) -> Any:
    _check_extent(text)
    document = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite)
    _check_depth(document)
    return document


def _check_extent(text: str) -> None:
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES} values")
    if not text.isascii() and len(text) > MAX_DOCUMENT_BYTES // 4:  # one such character makes all take four bytes
        raise ValueError(f"it holds more than {MAX_DOCUMENT_BYTES // 4} characters, and not ASCII alone")


def _check_depth(document: Any) -> None:
    level = [document] if isinstance(document, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        children = [child for value in level for child in (value.values() if isinstance(value, dict) else value)]
        level = [child for child in children if isinstance(child, (dict, list))]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is larger than any number that can be held")
    return number
