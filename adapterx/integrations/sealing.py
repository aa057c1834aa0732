"""Seal a checkpoint folder so that a half-written one can never be taken for a whole one.

A folder is sealed by the file `complete.json`, written last and atomically, with the size and SHA-256 of every other
file. A process killed at any moment leaves either a sealed folder or one that is recognised as incomplete.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from adapterx.errors import CheckpointError
from adapterx.storage import sync_folder, write_atomically

SEAL = "complete.json"
_FOLDER = re.compile(r"checkpoint-(\d+)")


def _digest(path: Path, *, flush: bool = False) -> dict[str, int | str]:
    with path.open("rb") as file:
        if flush:  # the seal must not reach the disk before what it vouches for
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _sha256(file)
        return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sha256(file: Iterator[bytes]) -> "hashlib._Hash":  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


def _contents(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def seal(folder: Path) -> None:
    """Vouch for everything that stands in the folder now."""
    files = {str(path.relative_to(folder)): _digest(path, flush=True) for path in _contents(folder)}
    sync_folder(folder)
    write_atomically(folder / SEAL, json.dumps({"format_version": 1, "files": files}, indent=1).encode())


def verify_seal(folder: Path) -> None:
    """Check that a checkpoint folder is whole.

    Raises:
        CheckpointError: it has no seal, or a file is missing, was added since, or holds other bytes.
    """
    try:
        files = json.loads((folder / SEAL).read_bytes())["files"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is incomplete: it has no {SEAL}, so its writing was cut short") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder / SEAL} is damaged") from None
    present = {str(path.relative_to(folder)) for path in _contents(folder)}
    if present != set(files):
        raise CheckpointError(f"{folder} does not hold the files it was sealed with: {sorted(present ^ set(files))}")
    for name, expected in files.items():
        if _digest(folder / name) != expected:
            raise CheckpointError(f"{folder / name} is damaged: its bytes are not those that were saved")


def checkpoint_folders(run_folder: Path) -> list[Path]:
    """Return the folders `checkpoint-<step>`, whole or not, the newest first."""
    if not run_folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in run_folder.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_complete(run_folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint (None if there is none) and the reasons why newer ones were skipped."""
    skipped = []
    for folder in checkpoint_folders(run_folder):
        try:
            verify_seal(folder)
        except CheckpointError as error:
            skipped.append(str(error))
        else:
            return folder, skipped
    return None, skipped


def discard(folder: Path) -> None:
    """Delete a checkpoint folder, its seal first, so that a deletion cut short leaves nothing that looks whole."""
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
