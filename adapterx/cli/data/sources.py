"""From what a user names to bytes: files, patterns, pipes, packed ones."""

import difflib
import glob
import io
import itertools
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from adapterx.cli.data.packing import CHUNK, PACKED, PieceReader, unpacked
from adapterx.errors import DataError, speaker

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather")
KNOWN = ", ".join(SUFFIXES)
WORDS = {  # why a known kind of file is none of data
    ".txt": "has no columns, so it can only be labelled, by `adapterx predict --file`",
    ".zip": "is an archive; unpack it",
    ".tar": "is an archive; unpack it",
    ".tgz": "is an archive; unpack it",
    ".xlsx": "is an Excel workbook; save the sheet as CSV",
    ".xls": "is an Excel workbook; save the sheet as CSV",
    ".ods": "is a workbook; save the sheet as CSV",
    ".pkl": "is a pickle, which can run any program when it is loaded; write the table as CSV or Parquet",
    ".pickle": "is a pickle, which can run any program when it is loaded; write the table as CSV or Parquet",
}
LARGEST_FILE = 8 * 2**30  # bytes: more does not fit a computer's memory as a table
LARGEST_STREAM = 2**30  # bytes read from a pipe, which does not say beforehand how much is to come
WAIT_FOR_WRITER = 1.0  # seconds in which somebody must have opened the other end of a named pipe
DATASET = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(:[^@]+)?(@.+)?", re.ASCII)  # as the hub allows them


class Sources(tuple[str, ...]):
    """What a user named as data, in the order in which it is read: files, patterns, folders, datasets."""

    def __str__(self) -> str:
        return ", ".join(self)


def find_files(source: str) -> list[Path] | None:
    """Return the files that a path or a pattern names, in order; None if it can only be the name of a dataset.

    Raises:
        DataError: there are none.
    """
    if "://" in source:
        raise DataError(f"{speaker()}: {source} is an address; download the file and give its path")
    if source == "-":
        return [Path("/dev/stdin")]
    try:
        path = Path(source).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such user's home
        raise DataError(f"{speaker()}: {source} cannot be a path: {getattr(error, 'strerror', error)}") from None
    if source and exists:
        return [path]
    dataset = DATASET.fullmatch(source)
    if dataset is None and glob.has_magic(source):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if not found:
            raise DataError(f"{speaker()}: no file matches {source}")
        return found
    if dataset is not None and dataset["name"] != source and Path(dataset["name"]).exists():
        raise DataError(f"{speaker()}: {source} must be a path; the file {dataset['name']} has no parts to choose from")
    if dataset is None or kind_of(Path(dataset["name"])) in (*SUFFIXES, *WORDS):
        raise DataError(f"{speaker()}: {source or repr(source)} does not exist{similar(path)}")
    return None


def similar(path: Path) -> str:
    """Return a question about a file beside it whose name is alike, to end a message with; empty if there is none."""
    names: list[str] = []
    with suppress(OSError), os.scandir(path.parent) as entries:
        names = [entry.name for entry in itertools.islice(entries, 1000)]
    alike = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; is {path.parent / alike[0]} meant?" if alike else ""


def kind_of(path: Path) -> str:
    """Return the suffix that tells what a file holds: `.csv` of `a.CSV` and of `a.csv.gz`."""
    inner = Path(path.stem) if path.suffix.lower() in PACKED else path
    return inner.suffix.lower()


def require_known_kind(path: Path) -> None:
    """Refuse a file whose name tells that it is none of data; what a pipe or a folder is shows later.

    Raises:
        DataError: it does.
    """
    kind = kind_of(path)
    if kind not in SUFFIXES and not is_stream(path) and not path.is_dir():
        reason = WORDS.get(kind) or f"has the unknown file type {kind or '(none)'}"
        raise DataError(f"{speaker()}: {path} {reason}; known are {KNOWN}")


def is_stream(path: Path) -> bool:
    """Return whether this is a pipe, such as `/dev/stdin` or a shell's `<(...)`, whose name tells nothing."""
    return str(path).startswith(("/dev/", "/proc/")) or not (path.is_file() or path.is_dir())


@contextmanager
def opened(path: Path, *, any_size: bool = False) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a file or a pipe; give it and its size (None of a pipe).

    Raises:
        DataError: it is neither, cannot be opened or read, or is too large to be kept in memory.
    """
    if path.is_dir():
        raise DataError(f"{speaker()}: {path} is a folder; give a file ({KNOWN}), or a pattern such as '{path}/*.csv'")
    try:
        # Without O_NONBLOCK the opening itself would wait for somebody who writes into a named pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            found = os.fstat(descriptor)
            if stat.S_ISFIFO(found.st_mode):
                begun = _wait_for_writer(descriptor, path)
                content = itertools.chain([begun], iter(lambda: file.read(CHUNK), b""))
                yield io.BufferedReader(PieceReader(content)), None
            elif not stat.S_ISREG(found.st_mode):
                raise DataError(f"{speaker()}: {path} is a device; give a file or a pipe")
            elif found.st_size > LARGEST_FILE and not any_size:
                raise DataError(f"{speaker()}: {path} must not exceed {LARGEST_FILE} bytes, it has {found.st_size}")
            else:
                yield io.BufferedReader(file), found.st_size
    except OSError as error:
        raise DataError(f"{speaker()}: {path} cannot be read: {error.strerror}") from error


def read_bytes(path: Path) -> bytes:
    """Read a file or a pipe to its end, and unpack it.

    Raises:
        DataError: it is neither, cannot be read, or is too large.
    """
    with opened(path) as (file, size):
        raw = read_stream(file, str(path)) if size is None else file.read()
    return unpacked(raw, str(path))


def _wait_for_writer(descriptor: int, path: Path) -> bytes:
    """Return the first bytes of a pipe; a pipe into which nobody writes would be waited for without end."""
    end = time.monotonic() + WAIT_FOR_WRITER
    while time.monotonic() < end:
        try:
            if first := os.read(descriptor, CHUNK):
                break
        except BlockingIOError:  # somebody is there, and has not written yet
            first = b""
            break
        time.sleep(0.01)
    else:
        raise DataError(f"{speaker()}: {path} is a pipe into which nothing is written")
    os.set_blocking(descriptor, True)
    return first


def read_stream(file: BinaryIO | io.RawIOBase, name: str) -> bytes:
    """Read to the end, as far as there can be one.

    Raises:
        DataError: there is more than fits a table, or it begins with nothing but NUL bytes, as `/dev/zero` does.
    """
    content = bytearray()
    while chunk := file.read(CHUNK):
        content += chunk
        if len(content) > LARGEST_STREAM:
            raise DataError(f"{speaker()}: {name} must not exceed {LARGEST_STREAM} bytes; write it to a file")
        if len(content) == len(chunk) and not chunk.strip(b"\0"):
            raise DataError(f"{speaker()}: {name} is not text: it begins with NUL bytes")
    return bytes(content)
