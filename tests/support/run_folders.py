"""Run folders as strangers find them: copied, damaged, interrupted, in use by another process."""

import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
DEEP = b"[" * 100_000 + b"]" * 100_000


@contextmanager
def held_elsewhere(folder):
    """Let another process hold the lock of a folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-S", "-c", HOLDER, str(folder)], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.stdin.close()


def content_of(folder):
    """Return the bytes of every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digest_of(folder):
    """Return one hash of everything below a folder."""
    digest = hashlib.sha256()
    for name, content in sorted(content_of(folder).items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def replace_by(path: Path, what: str) -> None:
    """Put something else in a file's place: bytes, or what is no regular file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(path)
    elif what == "endless":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "dangling":
        path.symlink_to(path.parent / "nowhere")
    else:
        path.write_bytes(HOSTILE[what])


HOSTILE = {
    "list": b"[]",
    "null": b"null",
    "empty": b"",
    "deep": DEEP,
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "latin-1": '{"labels": ["café"]}'.encode("latin-1"),
    "huge number": b'{"format_version": 1' + b"0" * 5000 + b"}",
    "float version": b'{"format_version": 1e400}',
    "no version": b"{}",
    "later": b'{"format_version": 3}',
    "NaN": b'{"format_version": NaN}',
}
KINDS = (*HOSTILE, "fifo", "endless", "folder", "dangling")
