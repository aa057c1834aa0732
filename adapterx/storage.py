"""Tensors and a JSON document as one pair of files that is replaced in one step and checked when it is read.

The pair is `<stem>_config.json` and `<stem>_model.safetensors`; the document holds the SHA-256 of the tensors' file.
Two files cannot be renamed at once, so the new tensors wait beside the old ones under a name made of their hash until
the new document is in place: that rename is the moment of change, and a reader who finds it looks for either name. A
process killed at any moment therefore leaves the old pair or the new one.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adapterx.errors import CheckpointError

FORMAT_VERSION = 1
MAX_DOCUMENT_BYTES = 16 * 2**20  # a thousand times what a large model's adapters need
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

try:
    PACKAGE_VERSION = importlib.metadata.version("adapterx")
except importlib.metadata.PackageNotFoundError:  # used from its source folder
    PACKAGE_VERSION = "not installed"


def write_tensors(
    folder: str | Path, stem: str, tensors: Mapping[str, Tensor], document: Mapping[str, Any], *, function: str
) -> None:
    """Write or replace a pair of files.

    Args:
        folder: made if it is not there; other files in it stay.
        stem: first part of both file names, such as `"adapter"`.
        tensors: any shapes and dtypes; they are written contiguous and from the CPU.
        document: values for the JSON file. `format_version`, `adapterx_version`, `tensors` and `sha256` are added.
        function: who writes, for the error messages.

    Raises:
        CheckpointError: the folder cannot be written, or a value cannot be stored. What was there is still there.
    """
    folder = Path(folder)
    if on_meta := sorted(name for name, tensor in tensors.items() if tensor.is_meta):
        raise CheckpointError(f"{function}: the model must hold real weights, these are on the meta device: {on_meta}")
    # Cloned, because safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    content = save(plain, metadata={"format": "pt"})
    added = {
        "format_version": FORMAT_VERSION,
        "adapterx_version": PACKAGE_VERSION,
        "tensors": {name: {"dtype": _dtype_name(t), "shape": list(t.shape)} for name, t in plain.items()},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    try:
        text = json.dumps({**document, **added}, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{function}: metadata must be values that JSON can hold ({error})") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace_pair(folder, stem, text.encode(), content, added["sha256"])
    except OSError as error:
        raise CheckpointError(f"{function}: cannot write to {folder}: {error.strerror or error}") from error


def read_tensors(folder: str | Path, stem: str, *, function: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a pair of files back.

    Returns:
        The document and the tensors, on the CPU.

    Raises:
        CheckpointError: a file is missing, damaged, of another format or version, or not of this pair.
    """
    folder = Path(folder)
    document = read_document(folder, stem, function=function)
    digest, listed = document.get("sha256"), document.get("tensors")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest) or not isinstance(listed, dict):
        raise CheckpointError(f"{function}: {_document(folder, stem)} must hold 'sha256' and 'tensors'")
    path = _tensors(folder, stem)
    content = None
    for candidate in (path, _pending(folder, stem, digest)):
        with _named_errors(candidate, function):
            if candidate.is_file():
                content = candidate.read_bytes()
                if hashlib.sha256(content).hexdigest() == digest:
                    break
    else:
        if content is None:
            raise _missing(path, function)
        raise CheckpointError(
            f"{function}: {path} is damaged or belongs to another checkpoint: its SHA-256 is not the one in "
            f"{_document(folder, stem).name}"
        )
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{function}: {path} is not a valid safetensors file: {error}") from error
    found = {name: {"dtype": _dtype_name(tensor), "shape": list(tensor.shape)} for name, tensor in tensors.items()}
    if found != listed:
        wrong = sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
        raise CheckpointError(f"{function}: {path} and {_document(folder, stem).name} disagree about {wrong}")
    return document, tensors


def read_document(folder: str | Path, stem: str, *, function: str) -> dict[str, Any]:
    """Read the JSON file of a pair alone; errors as in `read_tensors`."""
    folder = Path(folder)
    path = _document(folder, stem)
    with _named_errors(path, function):
        if not path.is_file():
            raise _missing(path, function)
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise CheckpointError(f"{function}: {path} must not exceed {MAX_DOCUMENT_BYTES} bytes")
        raw = path.read_bytes()
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{function}: {path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{function}: {path} must hold a JSON object, got {type(document).__name__}")
    version = document.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{function}: format_version of {path} must be {FORMAT_VERSION}, got {version!r}; "
            "a newer adapterx may have written it"
        )
    return document


def _missing(path: Path, function: str) -> CheckpointError:
    """Say that a file is not there, and why what may stand beside it is no substitute."""
    folder = path.parent
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES) if folder.is_dir() else []
    refusal = f"; {', '.join(pickles)} will not be read, because a pickle file can run any program"
    return CheckpointError(f"{function}: {path} does not exist{refusal if pickles else ''}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its name holds the old bytes or the new ones, whatever happens meanwhile."""
    temporary = _write_temporary(path.parent, path.stem, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames so far outlive a power cut, in their order."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def public_name(name: str) -> str:
    """Keep a hub id such as `organisation/model`; of a local path keep the last part, the rest is private."""
    is_path = Path(name).exists() or name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_path else name


def _document(folder: Path, stem: str) -> Path:
    return folder / f"{stem}_config.json"


def _tensors(folder: Path, stem: str) -> Path:
    return folder / f"{stem}_model.safetensors"


def _pending(folder: Path, stem: str, digest: str) -> Path:
    return folder / f".{stem}_model.{digest[:16]}.pending"


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _replace_pair(folder: Path, stem: str, document: bytes, content: bytes, digest: str) -> None:
    pending = _pending(folder, stem, digest)
    was_pending = pending.exists()  # an interrupted save of the same tensors, which the document may rely on
    temporary: list[Path] = []
    try:
        temporary.append(_write_temporary(folder, stem, content))
        temporary.append(_write_temporary(folder, stem, document))
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


def _write_temporary(folder: Path, stem: str, content: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{stem}_write.", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _named_errors(path: Path, function: str) -> Any:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{function}: cannot read {path}: {error.strerror or error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
