"""The two files of a pair, the names under which new ones wait for their places, and how they take them.

The new tensors wait beside the old ones under a name made of their hash, and so does the new document. Renaming the
document is the moment of change; a reader who finds it looks for its tensors under either name. Several pairs that must
change together (`trained.py`) wait until one of them names the hashes of the others: who knows the hash reads a pair
that waits as if it were in its place. Writers hold the lock of the folder, so the unfinished files that they find are
those of dead processes.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from adapterx.checkpoint.document import read_json
from adapterx.checkpoint.folder import sync_folder, write_temporary
from adapterx.checkpoint.lock import locked
from adapterx.errors import CheckpointError, speaker

WAIT = 300.0  # seconds for other writers; every process of a large training may save here, one after the other


def document_file(folder: Path, stem: str) -> Path:
    """Return where the document of a pair stands."""
    return folder / f"{stem}_config.json"


def tensors_file(folder: Path, stem: str) -> Path:
    """Return where the tensors of a pair stand."""
    return folder / f"{stem}_model.safetensors"


def pending_file(folder: Path, stem: str, digest: str) -> Path:
    """Return where tensors of this SHA-256 wait."""
    return folder / f".{stem}_model.{digest[:16]}.pending"


def _all_pending(folder: Path, stem: str) -> list[Path]:
    return sorted(_matching(folder, rf"\.{re.escape(stem)}_model\.[0-9a-f]+\.pending"))


def waiting_file(folder: Path, stem: str, digest: str) -> Path:
    """Return where the document waits that belongs to tensors of this SHA-256."""
    return folder / f".{stem}_config.{digest[:16]}.pending"


def _all_waiting(folder: Path, stem: str) -> list[Path]:
    return sorted(_matching(folder, rf"\.{re.escape(stem)}_config\.[0-9a-f]+\.pending"))


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if re.fullmatch(pattern, name)]
    except (OSError, ValueError):  # there is no such folder
        return []


def pair_files(folder: Path, stem: str) -> list[Path]:
    """Return the files that a pair may be read from, whether they are there or not."""
    unfinished = [*_all_waiting(folder, stem), *_all_pending(folder, stem)]
    return [document_file(folder, stem), tensors_file(folder, stem), *unfinished]


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


def put_pair(folder: Path, stem: str, document: bytes, tensors: bytes, digest: str) -> str:
    """Write a pair that waits for `settle_pair`, under the lock of the folder; return the hash of its tensors."""
    _tidy(folder, stem)  # nobody alive needs what is unfinished here, and the disk may be full of it
    for content, path in (
        (tensors, pending_file(folder, stem, digest)),
        (document, waiting_file(folder, stem, digest)),
    ):
        os.replace(write_temporary(folder, stem, content), path)
        sync_folder(folder)
    return digest


def settle_pair(folder: str | Path, stem: str, digest: str | None) -> None:
    """Let the pair of this hash, if it waits, take its place; delete what else is left unfinished there.

    Raises:
        CheckpointError: it cannot be moved; it waits still.
    """
    folder = Path(folder)
    with writing(folder):
        try:
            if digest is not None and (waiting := waiting_file(folder, stem, digest)).is_file():
                os.replace(waiting, document_file(folder, stem))  # from here on the new pair counts
                sync_folder(folder)
                if (pending := pending_file(folder, stem, digest)).is_file():
                    os.replace(pending, tensors_file(folder, stem))
                    sync_folder(folder)
        finally:
            _tidy(folder, stem, keep=digest)


def _tidy(folder: Path, stem: str, *, keep: str | None = None) -> None:
    """Finish the save that the document in place is of, and delete what is left of others. Errors do not matter.

    `keep` is the hash of a pair that somebody names, so that it may go on waiting.
    """
    with contextlib.suppress(OSError):
        for path in _matching(folder, rf"\.{re.escape(stem)}_write\..*\.tmp"):
            path.unlink()
        kept = [] if keep is None else [waiting_file(folder, stem, keep), pending_file(folder, stem, keep)]
        for path in _all_waiting(folder, stem):
            if path not in kept:
                path.unlink()
        if not (pending := _all_pending(folder, stem)):
            return
        digest = None
        if document_file(folder, stem).exists():
            try:
                digest = read_json(document_file(folder, stem)).get("sha256")
            except CheckpointError:  # perhaps it can be read later, and relies on one of them
                return
        for path in pending:
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                os.replace(path, tensors_file(folder, stem))
                sync_folder(folder)
            elif not (path in kept and kept[0].exists()):
                path.unlink()
