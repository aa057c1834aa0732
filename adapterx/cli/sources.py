"""From what a user names to text: files, patterns, pipes, compressed ones, in the encodings that programs write."""

import codecs
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

from adapterx.cli.packing import CHUNK, PACKED, PieceReader, unpacked
from adapterx.errors import DataError, speaker

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather")
KNOWN = ", ".join(SUFFIXES)
FOREIGN = {  # what else a file of a known name may turn out to be, by its first bytes
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"%PDF": "a PDF",
    b"\x93NUMPY": "a NumPy array; write a table",
    b"SQLite format 3": "a database; write the table as CSV",
}
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


def decode(raw: bytes, name: str) -> str:
    """Return the text that bytes hold: UTF-8, or UTF-16 or UTF-32 that can be told by its mark or its NUL bytes.

    Raises:
        DataError: it is in no such encoding (the text names the line and the byte), not text, or empty.
    """
    foreign = next((told for magic, told in FOREIGN.items() if raw.startswith(magic)), None)
    if foreign is not None:
        raise DataError(f"{speaker()}: {name} is not text but {foreign}")
    encoding, skipped = _encoding_of(raw)
    try:
        text = raw[skipped:].decode(encoding)
    except UnicodeDecodeError as error:
        byte = skipped + error.start
        line = raw.count(b"\n", 0, byte) + 1
        raise DataError(
            f"{speaker()}: {name} is not {encoding.upper()}: line {line}, byte {byte} of the file is 0x{raw[byte]:02x}"
            f"; {_advice(raw, byte, error)}"
        ) from None
    if "\ufeff" in text:  # the mark of a file that was joined to another
        text = re.sub(r"(?<![^\r\n])\ufeff", "", text)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{speaker()}: {name} is not text: line {line} holds a NUL byte")
    if not text.strip():
        raise DataError(f"{speaker()}: {name} is empty")
    return text


def _encoding_of(raw: bytes) -> tuple[str, int]:
    """Return the encoding and the length of the byte order mark."""
    marks = (  # UTF-32's begins with UTF-16's
        ("utf-8", codecs.BOM_UTF8),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
    )
    for encoding, mark in marks:
        if raw.startswith(mark):
            return encoding, len(mark)
    start = raw[:4096]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) * 10 > len(start) and not min(even, odd):  # ASCII in UTF-16: every other byte is NUL
        return ("utf-16-le" if odd else "utf-16-be"), 0
    return "utf-8", 0


def _advice(raw: bytes, byte: int, error: UnicodeDecodeError) -> str:
    if error.reason in ("unexpected end of data", "truncated data"):
        return "the file ends in the middle of a character: it may be cut off"
    if error.encoding != "utf-8":
        return "the file is damaged"
    if not raw[:byte].isascii():
        return "what stands before is UTF-8, so mend or delete this line"
    with suppress(UnicodeDecodeError):
        raw.decode("cp1252")
        return "if western Windows wrote it, convert it with `iconv -f cp1252 -t utf-8`, else from its own encoding"
    return "convert it with `iconv -f ENCODING -t utf-8` from the encoding that it is in"


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text. Only `\n`, `\r\n` and `\r` end one, not U+2028 and what else `splitlines` takes."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
