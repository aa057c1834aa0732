"""Tensors and a JSON document as one pair of files that is replaced in one step and checked when it is read.

The pair is `<stem>_config.json` and `<stem>_model.safetensors`; the document holds the SHA-256 of the tensors' file and
of its own values. Two files cannot be renamed at once, so the new tensors wait beside the old ones under a name made of
their hash until the new document is in place: that rename is the moment of change, and a reader who finds it looks for
either name. A process killed at any moment therefore leaves the old pair or the new one.

Writers hold the lock of the folder, so the unfinished files that they find are those of dead processes. Readers hold
none, and begin again when the pair was replaced under their eyes.
"""

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
from adapterx.checkpoint.folder import sync_folder, write_temporary
from adapterx.checkpoint.formats import OWN, check_own_format
from adapterx.checkpoint.lock import locked
from adapterx.checkpoint.settled import settled
from adapterx.errors import CheckpointError, speaker

WAIT = 300.0  # seconds for other writers; every process of a large training may save here, one after the other
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
    text = json_document({**document, **added}, _document(folder, stem).name)
    with writing(folder):
        _replace_pair(folder, stem, text, content, digest)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make the folder if it is not there, and keep all other writers of pairs out of it.

    Raises:
        CheckpointError: it cannot be written, or others write to it for longer than `WAIT`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=WAIT):
            yield
    except OSError as error:
        raise CheckpointError(f"{speaker()}: cannot write to {folder}: {error.strerror or error}") from error


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


def pair_files(folder: Path, stem: str) -> list[Path]:
    """Return the files that a pair may be read from, whether they are there or not."""
    return [_document(folder, stem), _tensors(folder, stem), *_all_pending(folder, stem)]


def read_document(folder: str | Path, stem: str) -> dict[str, Any]:
    """Read the JSON file of a pair alone; errors as in `read_pair`."""
    path = _document(Path(folder), stem)
    with named_errors(path):
        if not path.exists():
            raise _missing(path)
    document = read_json(path)
    check_own_format(document, path)
    check_version(document, str(path))
    return document


def _read_once(folder: Path, stem: str, sha256: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    document = read_document(folder, stem)
    digest, listed = document.get("sha256"), document.get("tensors")
    size = _size_of(listed)
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest) or size is None:
        raise CheckpointError(f"{speaker()}: {_document(folder, stem)} must hold 'sha256' and 'tensors'")
    if sha256 not in (None, digest):
        raise CheckpointError(
            f"{speaker()}: {_document(folder, stem)} belongs to another checkpoint than its neighbours"
        )
    path = _tensors(folder, stem)
    content = _content_with_hash(folder, stem, digest, size + 2 * MAX_DOCUMENT_BYTES)  # the rest is a list of names
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{speaker()}: {path} is not a valid safetensors file: {error}") from error
    found = _listing(tensors)
    if found != listed:
        wrong = sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
        raise CheckpointError(f"{speaker()}: {path} and {_document(folder, stem).name} disagree about {wrong}")
    return document, tensors


def _content_with_hash(folder: Path, stem: str, digest: str, limit: int) -> bytes:
    path, found = _tensors(folder, stem), False
    for candidate in (path, _pending(folder, stem, digest)):
        with named_errors(candidate):
            if candidate.exists():
                content, found = read_file(candidate, limit), True
                if hashlib.sha256(content).hexdigest() == digest:
                    return content
    if not found:
        raise _missing(path)
    raise CheckpointError(
        f"{speaker()}: {path} is damaged or belongs to another checkpoint: its SHA-256 is not the one in "
        f"{_document(folder, stem).name}"
    )


def _missing(path: Path) -> CheckpointError:
    """Say that a file is not there, and why what may stand beside it is no substitute."""
    folder = path.parent
    with named_errors(folder):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES) if folder.is_dir() else []
    refusal = f"; {', '.join(pickles)} will not be read, because a pickle file can run any program"
    return CheckpointError(f"{speaker()}: {path} does not exist{refusal if pickles else ''}")


def _document(folder: Path, stem: str) -> Path:
    return folder / f"{stem}_config.json"


def _tensors(folder: Path, stem: str) -> Path:
    return folder / f"{stem}_model.safetensors"


def _pending(folder: Path, stem: str, digest: str) -> Path:
    return folder / f".{stem}_model.{digest[:16]}.pending"


def _all_pending(folder: Path, stem: str) -> list[Path]:
    return sorted(_matching(folder, rf"\.{re.escape(stem)}_model\.[0-9a-f]+\.pending"))


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if re.fullmatch(pattern, name)]
    except (OSError, ValueError):  # there is no such folder
        return []


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


def _replace_pair(folder: Path, stem: str, document: bytes, content: bytes, digest: str) -> None:
    """Do so under the lock of the folder: whatever unfinished files there are, nobody alive needs them."""
    _tidy(folder, stem)  # now, because the disk may be full of them
    try:
        pending = _pending(folder, stem, digest)
        os.replace(write_temporary(folder, stem, content), pending)
        new = write_temporary(folder, stem, document)
        sync_folder(folder)
        os.replace(new, _document(folder, stem))  # from here on the new pair counts
        sync_folder(folder)
        os.replace(pending, _tensors(folder, stem))
        sync_folder(folder)
    finally:
        _tidy(folder, stem)


def _tidy(folder: Path, stem: str) -> None:
    """Finish the save that the document in place is of, and delete what is left of others. Errors do not matter."""
    with contextlib.suppress(OSError):
        for path in _matching(folder, rf"\.{re.escape(stem)}_write\..*\.tmp"):
            path.unlink()
        if not (pending := _all_pending(folder, stem)):
            return
        digest = None
        if _document(folder, stem).exists():
            try:
                digest = read_json(_document(folder, stem)).get("sha256")
            except CheckpointError:  # perhaps it can be read later, and relies on one of them
                return
        for path in pending:
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                os.replace(path, _tensors(folder, stem))
                sync_folder(folder)
            else:
                path.unlink()
