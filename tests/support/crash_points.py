"""Stop a process that writes files at every moment at which it could die, and see what a reader finds."""

import io
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path


class NotReached(Exception):
    """The call that was to fail did not come."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be tidied up afterwards."""


STEPS = ("open", "write", "fsync", "chmod", "replace")


def run_killed(save, step, count, monkeypatch):
    """Call `save`, but stop dead before the `count`-th call of one system function; tell whether it came to that."""
    calls = {"left": count, "dead": False}

    def guard(name, function):
        def guarded(*args, **kwargs):
            if calls["dead"]:
                raise Killed  # a dead process cleans nothing up
            if name == step:
                calls["left"] -= 1
                if calls["left"] == 0:
                    calls["dead"] = True
                    raise Killed
            return function(*args, **kwargs)

        return guarded

    class GuardedFile(io.FileIO):
        def write(self, content):
            half = guard("write", super().write)
            if step == "write" and calls["left"] == 1:
                super().write(bytes(content)[: len(content) // 2])  # torn in the middle
            return half(content)

    with monkeypatch.context() as patch:
        for name in ("fsync", "chmod", "replace", "unlink", "open"):
            patch.setattr(os, name, guard(name, getattr(os, name)))
        patch.setattr(os, "fdopen", lambda descriptor, mode: GuardedFile(descriptor, mode))
        patch.setattr(Path, "unlink", guard("unlink", Path.unlink))
        try:
            save()
        except Killed:
            return True
    return False


class Moments:
    """What a reader could find while a folder was written.

    Attributes:
        copies: the folder just before each operation on a file inside it, and at the end: what a process that is
            killed there leaves behind.
        faults: operations that break the guarantee of `adapterx.checkpoint.folder`: a file written under its final
            name, or renamed before its content or the rename before it had reached the disk.
    """

    def __init__(self, folder, target):
        self.folder, self.target, self.copies, self.faults = folder, target, [], []
        self.flushed, self.unflushed_rename, self.busy = {}, None, False

    def observe(self, event, args):
        if self.busy or event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"):
            return
        self.busy = True
        try:
            paths = [Path(os.fsdecode(a)) for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
            inside = [path for path in paths if self.folder in path.parents]
            reading = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
            if inside and not reading:
                self.copy()
                public = [path for path in inside if not self.hidden(path)]
                # To open for writing, and no more, is how the system is asked whether it may be written.
                if event == "open" and public and args[2] & (os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
                    self.faults.append(f"{public[0].name} is written in place")
                if event == "os.rename" and not self.hidden(paths[1].parent):
                    self.check_rename(*paths[:2])
        finally:
            self.busy = False

    def hidden(self, path):
        return any(part.startswith(".") for part in path.relative_to(self.folder).parts)

    def copy(self):
        self.copies.append(self.target / f"{len(self.copies):03}")
        shutil.copytree(self.folder, self.copies[-1])

    def check_rename(self, source, target):
        now = source.stat()
        if self.flushed.get(now.st_ino) != (now.st_size, now.st_mtime_ns):
            self.faults.append(f"{target.name} is renamed before it is on the disk")
        self.check_last_rename()
        self.unflushed_rename = target

    def check_last_rename(self):
        if self.unflushed_rename is not None:
            self.faults.append(f"the rename of {self.unflushed_rename.name} is not flushed")

    def note_fsync(self, descriptor):
        now = os.fstat(descriptor)
        self.flushed[now.st_ino] = (now.st_size, now.st_mtime_ns)
        if self.unflushed_rename is not None and now.st_ino == self.unflushed_rename.parent.stat().st_ino:
            self.unflushed_rename = None


_watched: list[Moments] = []


@contextmanager
def moments(folder, target):
    """Watch everything that happens to files in `folder` inside the block; copies go to `target`. Yields `Moments`."""
    if not hasattr(moments, "hook"):  # there is no way to take an audit hook off again
        moments.hook = lambda event, args: [each.observe(event, args) for each in _watched]
        sys.addaudithook(moments.hook)
    seen, fsync = Moments(folder, target), os.fsync

    def noting(descriptor):
        fsync(descriptor)
        seen.note_fsync(descriptor if isinstance(descriptor, int) else descriptor.fileno())

    os.fsync = noting
    _watched.append(seen)
    try:
        yield seen
    finally:
        _watched.remove(seen)
        os.fsync = fsync
    seen.check_last_rename()
    seen.copy()
