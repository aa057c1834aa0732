"""JSON documents: read strictly, and what they tell of the package and the model that files come from."""

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from adapterx.errors import CheckpointError, speaker

MAX_DOCUMENT_BYTES = 16 * 2**20  # a thousand times what a large model's adapters need

try:
    PACKAGE_VERSION = importlib.metadata.version("adapterx")
except importlib.metadata.PackageNotFoundError:  # used from its source folder
    PACKAGE_VERSION = "not installed"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, refusing what careless readers let pass: repeated keys, NaN, files without end.

    Raises:
        CheckpointError: the file cannot be read or is no such object.
    """
    with named_errors(path):
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise CheckpointError(f"{speaker()}: {path} must not exceed {MAX_DOCUMENT_BYTES} bytes")
        raw = path.read_bytes()
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{speaker()}: {path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{speaker()}: {path} must hold a JSON object, got {type(document).__name__}")
    return document


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
