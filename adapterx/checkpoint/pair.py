"""Tensors and a JSON document as one pair of files that is replaced in one step and checked when it is read.

The pair is `<stem>_config.json` and `<stem>_model.safetensors`; the document holds the SHA-256 of the tensors' file and
of its own values. Two files cannot be renamed at once: `waiting.py` tells how a process that is killed at any moment
leaves the old pair or the new one all the same. Readers hold no lock, and begin again when the pair was replaced under
their eyes.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adapterx.checkpoint.document import (
    MAX_DOCUMENT_BYTES,
    PACKAGE_VERSION,
    check_version,
    json_document,
    named_errors,
    read_file,
    read_json,
)
from adapterx.checkpoint.formats import OWN, check_own_format
from adapterx.checkpoint.settled import settled
from adapterx.checkpoint.waiting import (
    document_file,
    pair_files,
    pending_file,
    put_pair,
    settle_pair,
    tensors_file,
    waiting_file,
    writing,
)
from adapterx.errors import CheckpointError, speaker

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def write_pair(folder: str | Path, stem: str, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write or replace a pair of files.

    Args:
        folder: made if it is not there; other files in it stay.
        stem: first part of both file names, such as `"adapter"`.
        tensors: any shapes and dtypes; they are written contiguous and from the CPU.
        document: values for the JSON file. `format`, `format_version`, `adapterx_version`, `tensors`, `sha256` and
            `document_sha256` are added.

    Raises:
        CheckpointError: the folder cannot be written, or a value cannot be stored. What was there is still there.
    """
    folder = Path(folder)
    encoded = _encode(tensors, document, document_file(folder, stem).name)
    with writing(folder):
        try:
            settle_pair(folder, stem, put_pair(folder, stem, *encoded))
        except BaseException:
            settle_pair(folder, stem, None)
            raise


def prepare_pair(folder: str | Path, stem: str, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> str:
    """Write a pair that waits for `settle_pair`; return its hash. Arguments and errors as in `write_pair`."""
    folder = Path(folder)
    encoded = _encode(tensors, document, document_file(folder, stem).name)
    with writing(folder):
        return put_pair(folder, stem, *encoded)


def stored_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the values that a user adds to a document.

    Raises:
        CheckpointError: they are no mapping.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise CheckpointError(f"{speaker()}: metadata must be a mapping, got {type(metadata).__name__}")
    return dict(metadata or {})


def read_pair(folder: str | Path, stem: str, *, sha256: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a pair of files back.

    Args:
        folder: what `write_pair` wrote to; others may be writing to it now.
        stem: as in `write_pair`.
        sha256: the hash that the tensors' file must have, if that is known from elsewhere.

    Returns:
        The document and the tensors, on the CPU.

    Raises:
        CheckpointError: a file is missing, damaged, of another format or version, or not of this pair.
    """
    folder = Path(folder)
    return settled(lambda: _read_once(folder, stem, sha256), lambda: pair_files(folder, stem))


def read_document(folder: str | Path, stem: str, *, sha256: str | None = None) -> dict[str, Any]:
    """Read the JSON file of a pair alone; arguments and errors as in `read_pair`."""
    path = document_file(Path(folder), stem)
    with named_errors(path):
        if sha256 is not None and waiting_file(path.parent, stem, sha256).exists():
            path = waiting_file(path.parent, stem, sha256)
        if not path.exists():
            raise _missing(path)
    document = read_json(path)
    check_own_format(document, path)
    check_version(document, str(path))
    return document


def _read_once(folder: Path, stem: str, sha256: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    document = read_document(folder, stem, sha256=sha256)
    digest, listed = document.get("sha256"), document.get("tensors")
    size = _size_of(listed)
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest) or size is None:
        raise CheckpointError(f"{speaker()}: {document_file(folder, stem)} must hold 'sha256' and 'tensors'")
    if sha256 not in (None, digest):
        raise CheckpointError(
            f"{speaker()}: {document_file(folder, stem)} belongs to another checkpoint than its neighbours"
        )
    path = tensors_file(folder, stem)
    content = _content_with_hash(folder, stem, digest, size + 2 * MAX_DOCUMENT_BYTES)  # the rest is a list of names
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{speaker()}: {path} is not a valid safetensors file: {error}") from error
    found = _listing(tensors)
    if found != listed:
        wrong = sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
        raise CheckpointError(f"{speaker()}: {path} and {document_file(folder, stem).name} disagree about {wrong}")
    return document, tensors


def _content_with_hash(folder: Path, stem: str, digest: str, limit: int) -> bytes:
    path, found = tensors_file(folder, stem), False
    for candidate in (path, pending_file(folder, stem, digest)):
        with named_errors(candidate):
            if candidate.exists():
                content, found = read_file(candidate, limit), True
                if hashlib.sha256(content).hexdigest() == digest:
                    return content
    if not found:
        raise _missing(path)
    raise CheckpointError(
        f"{speaker()}: {path} is damaged or belongs to another checkpoint: its SHA-256 is not the one in "
        f"{document_file(folder, stem).name}"
    )


def _missing(path: Path) -> CheckpointError:
    """Say that a file is not there, and why what may stand beside it is no substitute."""
    folder = path.parent
    with named_errors(folder):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES) if folder.is_dir() else []
    refusal = f"; {', '.join(pickles)} will not be read, because a pickle file can run any program"
    return CheckpointError(f"{speaker()}: {path} does not exist{refusal if pickles else ''}")


def _listing(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }


def _size_of(listed: Any) -> int | None:
    """Return how many bytes the listed tensors have together; None: it is no listing."""
    total = 0
    for entry in listed.values() if isinstance(listed, dict) else [None]:
        dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        known = vars(torch).get(dtype) if isinstance(dtype, str) else None
        whole = isinstance(shape, list) and len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in shape)
        if not isinstance(known, torch.dtype) or not whole:
            return None
        total += math.prod(shape) * known.itemsize
    return total


class _Encoded(NamedTuple):
    """The content of the two files of a pair, and the hash of the tensors' file."""

    document: bytes
    tensors: bytes
    digest: str


def _encode(tensors: Mapping[str, Tensor], document: Mapping[str, Any], name: str) -> _Encoded:
    if on_meta := sorted(name for name, tensor in tensors.items() if tensor.is_meta):
        raise CheckpointError(f"{speaker()}: the model must hold real weights, these are on the meta device: {on_meta}")
    # Cloned, because safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    try:
        content = save(plain, metadata={"format": "pt"})
    except (SafetensorError, KeyError, ValueError) as error:  # a dtype that the format does not know
        raise CheckpointError(f"{speaker()}: tensors must have dtypes that safetensors can hold: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    added = {"format": OWN, "adapterx_version": PACKAGE_VERSION, "tensors": _listing(plain), "sha256": digest}
    return _Encoded(json_document({**document, **added}, name), content, digest)
