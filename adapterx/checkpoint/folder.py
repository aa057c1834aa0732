"""The one place that puts files where readers look for them.

The guarantee, the same for everything that adapterx writes: at any moment, also after this process was killed or the
power failed, a reader finds under a name what stood there before or all of what was to stand there, never half of it
and never a mixture. For that, a file is written under another name in the same folder, gets the permissions of an
ordinary new file, is flushed to the disk and renamed; the rename is flushed before the next one begins. An error leaves
what was there. What a killed process leaves behind has a name that begins with a dot, and goes when the next writes.

Several files cannot be renamed at once. So one of them makes the others count, and it comes last: the document of a
pair (`pair.py`), the model of an ONNX export, the record of a run, the seal of a folder that other libraries write.
"""

import glob
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from adapterx.checkpoint.document import (
    check_version,
    describe_content,
    has_content,
    json_document,
    named_errors,
    open_regular,
    read_json,
)
from adapterx.checkpoint.lock import is_locked, locked
from adapterx.errors import CheckpointError, speaker, speaking_as

SEAL = "complete.json"
_STEP_FOLDER = re.compile(r"checkpoint-(\d+)")
_UMASK = threading.Lock()


def write_atomically(path: Path, content: bytes) -> None:
    """Write or replace one file.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    temporary = write_temporary(path.parent, path.stem, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_temporary(folder: Path, stem: str, content: bytes | Iterable[bytes]) -> Path:
    """Write a file `.<stem>_write.*.tmp` that is complete, flushed and only needs to be renamed; return its path."""
    descriptor, name = tempfile.mkstemp(prefix=f".{stem}_write.", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, ordinary_mode())  # mkstemp makes files that only their owner can read
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


@contextmanager
def staging(folder: Path, *, prefix: str) -> Iterator[Path]:
    """Give a folder to write into, inside `folder`, which is made if needed; it disappears with all that is left in it.

    It is locked meanwhile, so that `tidy`, which is called here first, knows those of killed processes by their locks.

    Args:
        folder: where the files are to stand in the end; `move_into_place` brings them there.
        prefix: how the temporary folder's name begins, with a dot.

    Raises:
        OSError: `folder` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy(folder, prefix=prefix)
    with _locked_new(folder, prefix) as temporary:
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def tidy(folder: Path, *, prefix: str) -> None:
    """Delete what processes that were killed inside `staging` left in a folder; those of the living stay.

    Without locks that end with their process, that is on systems other than POSIX, all of them stay. So do those that
    may not be deleted, and those in a folder that does not exist.
    """
    if os.name != "posix" or not folder.is_dir():
        return
    for path in folder.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError, CheckpointError):  # somebody holds it, or was faster to delete it
            if path.is_dir() and not path.is_symlink() and not is_locked(path):
                with locked(path, wait=0.0):
                    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked_new(folder: Path, prefix: str) -> Iterator[Path]:
    """Make a temporary folder and lock it; again if another process tidied it away before it was locked."""
    with ExitStack() as stack:
        while True:
            temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
            with suppress(FileNotFoundError):
                stack.enter_context(locked(temporary))
                break
        yield temporary


def move_into_place(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename finished files, in this order, each from the first path to the second; the last one makes all count.

    Raises:
        OSError: a file cannot be flushed or renamed; those that come later in the order are then where they were.
    """
    for source, _ in moves:
        os.chmod(source, ordinary_mode())  # some libraries write files that only their owner can read
        with source.open("rb") as file:
            os.fsync(file.fileno())
    for source, target in moves:
        os.replace(source, target)
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames so far outlive a power cut, in their order."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ordinary_mode() -> int:
    """Return the permissions of an ordinary new file."""
    with _UMASK:  # two threads between these lines would change the mask for good
        mask = os.umask(0o022)
        os.umask(mask)
    return 0o666 & ~mask


def seal(folder: Path) -> None:
    """Vouch for the files that stand in the folder now, whoever wrote them.

    Writes `complete.json` with the size in bytes and the SHA-256 of each, subfolders included, and a hash of its own
    values. Files that begin with a dot, and those of file managers, are nobody's and left out. A process killed before
    that leaves a folder that is recognised as incomplete.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    files = {path.relative_to(folder).as_posix(): path for path in found if not _is_nobodys(path.name)}
    digests = {name: _flushed_digest(path) for name, path in files.items()}
    for place in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync_folder(place)
    write_atomically(folder / SEAL, json_document({"files": digests}, SEAL))


@speaking_as("verify_seal")
def verify_seal(folder: Path) -> None:
    """Check that a sealed folder is whole; files that were added since are no business of the seal.

    Raises:
        CheckpointError: it has no seal, or a file is missing, or holds other bytes.
    """
    _check_seal(folder)


def newest_complete(run_folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint (None if there is none) and the reasons why newer ones were skipped."""
    skipped = []
    for folder in checkpoint_folders(run_folder):
        try:
            _check_seal(folder)
            return folder, skipped
        except CheckpointError as error:
            skipped.append(str(error).removeprefix(f"{speaker()}: "))
    return None, skipped


def checkpoint_folders(run_folder: Path) -> list[Path]:
    """Return the folders `checkpoint-<step>`, whole or not, the newest first."""
    if not run_folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in run_folder.iterdir() if (match := _STEP_FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def discard(folder: Path) -> None:
    """Delete a sealed folder, its seal first, so that a deletion cut short leaves nothing that looks whole."""
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _check_seal(folder: Path) -> None:
    with named_errors(folder):
        if not (folder / SEAL).exists():
            raise CheckpointError(
                f"{speaker()}: {folder} is incomplete: it has no {SEAL}, so its writing was cut short"
            )
    for name, digest in _sealed(folder / SEAL).items():
        path = folder / name
        with named_errors(path), open_regular(path) as file:
            if not has_content(file, digest):
                raise CheckpointError(f"{speaker()}: {path} is damaged: its bytes are not those that were saved")


def _sealed(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a seal says of each file."""
    document = read_json(path)
    check_version(document, str(path))
    files = document.get("files")
    if not isinstance(files, dict) or not files or not all(map(_is_entry, files, files.values())):
        raise CheckpointError(f"{speaker()}: {path} must list files inside its folder with their bytes and sha256")
    return {name: digest for name, digest in files.items() if not _is_nobodys(name)}


def _is_entry(name: str, digest: Any) -> bool:
    inside = "\0" not in name and not {"", ".", ".."} & set(
        name.split("/")
    )  # an absolute path begins with an empty part
    return inside and isinstance(digest, dict) and digest.keys() == {"bytes", "sha256"}


def _flushed_digest(path: Path) -> dict[str, int | str]:
    with open_regular(path) as file:
        os.fsync(file.fileno())  # the seal must not reach the disk before what it vouches for
        return describe_content(file)


def _is_nobodys(name: str) -> bool:
    """Return whether a file, by its name or path, is one of those that come and go in any folder."""
    name = name.rpartition("/")[2]
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")
