"""Write to a file that the user named, which may be a link, a pipe or a device, as a shell's `>` would."""

import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from adapterx.checkpoint.folder import ordinary_mode, sync_folder, write_temporary


def write_output(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write to a file that a user named; a regular one is replaced in one step, when the last piece is there.

    A link is followed, and the mode of what is there is kept. What is no regular file, such as a pipe or a device, is
    written into, never replaced.

    Raises:
        OSError: it cannot be written; a regular file that was there is still there.
    """
    with _opened_output(path) as file:
        if file is not None:
            file.writelines([content] if isinstance(content, bytes) else content)
            return
    target = Path(os.path.realpath(path))
    _place(write_temporary(target.parent, target.stem, content), target)


def place_output(source: Path, path: Path) -> None:
    """Bring a finished file to where a user wants it, as `write_output` does; `source` is gone afterwards.

    Raises:
        OSError: it cannot be written; a regular file that was there is still there.
    """
    with _opened_output(path) as file:
        if file is not None:
            with source.open("rb") as content:
                shutil.copyfileobj(content, file)
            source.unlink()
            return
    target = Path(os.path.realpath(path))
    if source.stat().st_dev != target.parent.stat().st_dev:  # a link to another file system
        nearby = write_temporary(target.parent, target.stem, b"")
        shutil.move(source, nearby)
        source = nearby
    os.chmod(source, ordinary_mode())
    with source.open("rb") as file:
        os.fsync(file.fileno())
    _place(source, target)


@contextmanager
def _opened_output(path: Path) -> Iterator[BinaryIO | None]:
    """Open what is there for writing if it is no regular file; None: it is one, or there is nothing."""
    descriptor = _open_descriptor(path)
    if descriptor is not None:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            yield file
        return
    try:
        found = path.stat()
    except FileNotFoundError:
        yield None
        return
    if stat.S_ISREG(found.st_mode):
        os.close(os.open(path, os.O_WRONLY))  # an error where it is read-only: a rename would not ask
        yield None
        return
    with path.open("wb") as file:
        yield file


def _open_descriptor(path: Path) -> int | None:
    """Return the number of the open file of this process that a path such as `/dev/stdout` or `/dev/fd/63` means."""
    for _ in range(40):  # links, as many as a kernel follows
        folder = os.path.realpath(path.parent)
        if re.fullmatch(rf"/dev/fd|/proc/{os.getpid()}(/task/\d+)?/fd", folder) and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, os.readlink(path))
    return None


def _place(source: Path, target: Path) -> None:
    """Rename a finished file over one that is to keep its mode and its owner."""
    try:
        with suppress(FileNotFoundError):
            found = target.stat()
            with suppress(PermissionError):  # only root gives files away
                os.chown(source, found.st_uid, found.st_gid)
            os.chmod(source, stat.S_IMODE(found.st_mode))
        os.replace(source, target)
    except BaseException:
        source.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
