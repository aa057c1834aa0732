"""JSON documents: read strictly, and what they tell of the package and the model that files come from."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from adapterx.errors import CheckpointError, speaker

MAX_DOCUMENT_BYTES = 16 * 2**20  # a thousand times what a large model's adapters need
HASH = "document_sha256"  # key of the hash of all other keys

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
    with named_errors(path):
        # Without O_NONBLOCK the opening itself would wait for somebody who writes into a named pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{speaker()}: {path} must be a regular file")
            content = file.read(limit + 1) if found.st_size <= limit else None
    if content is None or len(content) > limit:
        raise CheckpointError(f"{speaker()}: {path} must not exceed {limit} bytes")
    return content


def parse_json(content: bytes | str, source: str) -> dict[str, Any]:
    """Return the JSON object that `content` holds; `source` names it in messages. Errors as in `read_json`."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        document = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{speaker()}: {source} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{speaker()}: {source} must hold a JSON object, got {type(document).__name__}")
    return document


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
        "class": type(model).__name__,
    }


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
