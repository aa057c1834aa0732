"""A lock on a folder, for whoever writes several files that belong together; it ends when its process does.

The lock is on the folder itself, so nothing is left behind. It keeps out others who ask for it, in this process and on
this machine; readers need none, and do not wait. Where the file system locks no folders, as over NFS, a file `.lock` in
the folder is locked and stays. Systems other than POSIX keep out only the threads of one process.
"""

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

from adapterx.errors import CheckpointError, speaker

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

LOCK_FILE = ".lock"
_NO_FOLDER_LOCKS = (errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class _Lock:
    """What this process knows about the lock of one folder."""

    def __init__(self) -> None:
        self.threads = threading.RLock()
        self.depth = 0
        self.descriptor: int | None = None


_LOCKS: WeakValueDictionary[tuple[int, int], _Lock] = WeakValueDictionary()  # by device and inode
_GUARD = threading.Lock()


@contextmanager
def locked(folder: Path, *, wait: float = 30.0) -> Iterator[None]:
    """Keep everybody else who asks for this lock out of the folder; the same thread may ask for it again.

    Args:
        folder: must exist.
        wait: how long to wait for another holder, in seconds.

    Raises:
        CheckpointError: another process or thread holds it still.
        OSError: the folder cannot be opened.
    """
    deadline = time.monotonic() + wait
    lock = _acquired(folder, deadline)
    try:
        yield
    finally:
        _release(lock)


def is_locked(folder: Path) -> bool:
    """Return whether somebody, this thread too, holds the lock of the folder now.

    Raises:
        OSError: the folder cannot be opened.
    """
    lock = _LOCKS.get(_identity(folder))
    if lock is not None and lock.depth:
        return True
    try:
        with locked(folder, wait=0.0):
            return False
    except CheckpointError:
        return True


def _acquired(folder: Path, deadline: float) -> _Lock:
    while True:
        identity = _identity(folder)
        with _GUARD:
            lock = _LOCKS.setdefault(identity, _Lock())
        if not lock.threads.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise _busy(folder)
        try:
            if lock.depth == 0:
                lock.descriptor = _flocked(folder, deadline)
            lock.depth += 1
        except BaseException:
            lock.threads.release()
            raise
        with suppress(OSError):
            if _identity(folder) == identity:
                return lock
        # While this thread waited, the folder was deleted, and perhaps made anew: that one is to be locked.
        _release(lock)


def _release(lock: _Lock) -> None:
    lock.depth -= 1
    if lock.depth == 0 and lock.descriptor is not None:
        os.close(lock.descriptor)  # which unlocks
        lock.descriptor = None
    lock.threads.release()


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _flocked(folder: Path, deadline: float) -> int | None:
    """Return a descriptor that holds the lock; None where there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _busy(folder) from None
                time.sleep(0.005)
            except OSError as error:
                if error.errno not in _NO_FOLDER_LOCKS or not os.path.isdir(f"/dev/fd/{descriptor}"):
                    raise
                file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
                os.close(descriptor)
                descriptor = file
    except BaseException:
        os.close(descriptor)
        raise


def _busy(folder: Path) -> CheckpointError:
    return CheckpointError(f"{speaker()}: {folder} must not be in use, another process or thread is writing to it")


def _forget_in_child() -> None:
    """Close the copies of the descriptors that a forked process got: the lock is its parent's alone."""
    global _GUARD
    _GUARD = threading.Lock()
    for lock in list(_LOCKS.values()):
        if lock.descriptor is not None:
            os.close(lock.descriptor)
            lock.descriptor = None
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
