"""Tensors and a JSON document as one pair of files that is replaced in one step and checked when it is read.

The pair is `<stem>_config.json` and `<stem>_model.safetensors`; the document holds the SHA-256 of the tensors' file.
Two files cannot be renamed at once, so the new tensors wait beside the old ones under a name made of their hash until
the new document is in place: that rename is the moment of change, and a reader who finds it looks for either name. A
process killed at any moment therefore leaves the old pair or the new one.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adapterx.checkpoint.document import PACKAGE_VERSION, named_errors, read_json
from adapterx.checkpoint.folder import sync_folder, write_temporary
from adapterx.checkpoint.formats import OWN, check_own_format
from adapterx.errors import CheckpointError, speaker

FORMAT_VERSION = 1
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def write_pair(folder: str | Path, stem: str, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write or replace a pair of files.

    Args:
        folder: made if it is not there; other files in it stay.
        stem: first part of both file names, such as `"adapter"`.
        tensors: any shapes and dtypes; they are written contiguous and from the CPU.
        document: values for the JSON file. `format`, `format_version`, `adapterx_version`, `tensors` and `sha256` are
            added.

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
    added = {
        "format": OWN,
        "format_version": FORMAT_VERSION,
        "adapterx_version": PACKAGE_VERSION,
        "tensors": _listing(plain),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    try:
        text = json.dumps({**document, **added}, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{speaker()}: metadata must be values that JSON can hold ({error})") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace_pair(folder, stem, text.encode(), content, added["sha256"])
    except OSError as error:
        raise CheckpointError(f"{speaker()}: cannot write to {folder}: {error.strerror or error}") from error


def read_pair(folder: str | Path, stem: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a pair of files back.

    Returns:
        The document and the tensors, on the CPU.

    Raises:
        CheckpointError: a file is missing, damaged, of another format or version, or not of this pair.
    """
    folder = Path(folder)
    document = read_document(folder, stem)
    digest, listed = document.get("sha256"), document.get("tensors")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest) or not isinstance(listed, dict):
        raise CheckpointError(f"{speaker()}: {_document(folder, stem)} must hold 'sha256' and 'tensors'")
    path = _tensors(folder, stem)
    content = _content_with_hash(folder, stem, digest)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{speaker()}: {path} is not a valid safetensors file: {error}") from error
    found = _listing(tensors)
    if found != listed:
        wrong = sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
        raise CheckpointError(f"{speaker()}: {path} and {_document(folder, stem).name} disagree about {wrong}")
    return document, tensors


def read_document(folder: str | Path, stem: str) -> dict[str, Any]:
    """Read the JSON file of a pair alone; errors as in `read_pair`."""
    path = _document(Path(folder), stem)
    with named_errors(path):
        if not path.is_file():
            raise _missing(path)
    document = read_json(path)
    check_own_format(document, path)
    version = document.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{speaker()}: format_version of {path} must be {FORMAT_VERSION}, got {version!r}; "
            + ("adapterx did not write this file" if version is None else "a newer adapterx may have written it")
        )
    return document


def _content_with_hash(folder: Path, stem: str, digest: str) -> bytes:
    path, content = _tensors(folder, stem), None
    for candidate in (path, _pending(folder, stem, digest)):
        with named_errors(candidate):
            if candidate.is_file():
                content = candidate.read_bytes()
                if hashlib.sha256(content).hexdigest() == digest:
                    return content
    if content is None:
        raise _missing(path)
    raise CheckpointError(
        f"{speaker()}: {path} is damaged or belongs to another checkpoint: its SHA-256 is not the one in "
        f"{_document(folder, stem).name}"
    )


def _missing(path: Path) -> CheckpointError:
    """Say that a file is not there, and why what may stand beside it is no substitute."""
    folder = path.parent
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES) if folder.is_dir() else []
    refusal = f"; {', '.join(pickles)} will not be read, because a pickle file can run any program"
    return CheckpointError(f"{speaker()}: {path} does not exist{refusal if pickles else ''}")


def _document(folder: Path, stem: str) -> Path:
    return folder / f"{stem}_config.json"


def _tensors(folder: Path, stem: str) -> Path:
    return folder / f"{stem}_model.safetensors"


def _pending(folder: Path, stem: str, digest: str) -> Path:
    return folder / f".{stem}_model.{digest[:16]}.pending"


def _listing(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }


def _replace_pair(folder: Path, stem: str, document: bytes, content: bytes, digest: str) -> None:
    pending = _pending(folder, stem, digest)
    was_pending = pending.exists()  # an interrupted save of the same tensors, which the document may rely on
    temporary: list[Path] = []
    try:
        temporary.append(write_temporary(folder, stem, content))
        temporary.append(write_temporary(folder, stem, document))
        os.replace(temporary[0], pending)
        if not was_pending:
            temporary[0] = pending
        sync_folder(folder)
        os.replace(temporary[1], _document(folder, stem))  # from here on the new pair counts
        temporary.clear()
        sync_folder(folder)
        os.replace(pending, _tensors(folder, stem))
        sync_folder(folder)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    for path in [*folder.glob(f".{stem}_model.*.pending"), *folder.glob(f".{stem}_write.*.tmp")]:
        with contextlib.suppress(OSError):  # litter of processes that were killed; the pair is complete without it
            path.unlink()
