"""Read the rows that `read_rows` reads from files that are larger than memory: once, and one row after the other.

What only a whole file could tell is refused in words: JSON lists, quotes in TSV, spaces before quotes in CSV.
"""

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapterx.cli.data.columnar import is_columnar, read_columnar
from adapterx.cli.data.delimited import stream_delimited
from adapterx.cli.data.encodings import encoding_of, require_text
from adapterx.cli.data.folders import files_of_split, parted
from adapterx.cli.data.json_rows import stream_json
from adapterx.cli.data.named import is_saved, read_named, read_saved
from adapterx.cli.data.packing import PieceReader, pieces, suffix_of
from adapterx.cli.data.rows import Row, RowStream, require_same_columns, require_unique
from adapterx.cli.data.sources import SUFFIXES, Sources, find_files, kind_of, opened, require_known_kind
from adapterx.errors import DataError, speaker

START = 4096  # bytes by which the encoding is told


def stream_rows(source: str | Sources, *, default_split: str = "train") -> RowStream:
    """Read files, pipes, patterns, folders or datasets as one table, row by row.

    Raises:
        DataError: as in `read_rows`, most of it while rows are read; or only the whole file could tell what is meant.
    """
    sources = (source,) if isinstance(source, str) else source
    parts = [part for each in sources for part in _parts(each, default_split)]
    columns: list[str] = []

    def rows() -> Iterator[tuple[str, Row]]:
        first = None
        for part in parts:
            stream = _file(part) if isinstance(part, Path) else part
            first = first or stream
            known, empty = -1, True
            for place, value in stream.rows:
                if known != len(stream.columns):  # a row of JSON may bring new ones
                    known = len(stream.columns)
                    columns.extend(column for column in stream.columns if column not in columns)
                yield place if len(parts) == 1 else f"{stream.source} {place}", value
                empty = False
            if empty:
                raise DataError(f"{speaker()}: {stream.source} is empty: it has no rows")
            require_same_columns(source, first, stream)

    return RowStream(str(source), columns, rows())


def _parts(source: str, default_split: str) -> list[Path | RowStream]:
    folder, split = parted(source)
    if folder is not None and is_saved(folder):
        return [read_saved(folder, split, default_split)]
    files = find_files(source) if folder is None else files_of_split(folder, split, default_split)
    return [read_named(source, default_split)] if files is None else list(files)


def stream_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text without their ends.

    Raises:
        DataError: it is no text.
    """
    with _begun(path) as (start, content, _):
        require_text(start, str(path))
        for line in _lines(str(path), start, content):
            yield line.removesuffix("\n").removesuffix("\r")


@contextmanager
def _begun(path: Path) -> Iterator[tuple[bytes, Iterator[bytes], int | None]]:
    """Open a file, and give its first bytes, its pieces from the beginning, and its size (None: it is packed)."""
    with opened(path, any_size=True) as (file, size):
        packed = suffix_of(file.peek(8)) is not None
        content = pieces(file, str(path), size=size)
        start = b""
        while len(start) < START and (piece := next(content, None)) is not None:
            start += piece
        yield start, itertools.chain([start], content), None if packed else size


def _file(path: Path) -> RowStream:
    """Return the rows of a file, which is opened when the first of them is asked for."""
    require_known_kind(path)
    columns: list[str] = []

    def rows() -> Iterator[tuple[str, Row]]:
        with _begun(path) as (start, content, size):
            columnar = is_columnar(start, kind_of(path))
            stream = _columnar(path, start, size) if columnar else _text(path, start, content)
            for place, value in stream.rows:
                if len(columns) != len(stream.columns):
                    columns[:] = stream.columns
                yield place, value

    return RowStream(str(path), columns, rows())


def _columnar(path: Path, start: bytes, size: int | None) -> RowStream:
    if size is None:  # these files are read from their end, or here and there
        raise DataError(f"{speaker()}: {path} must be a file that is not packed for --streaming; unpack it first")
    return read_columnar(str(path), str(path), start, kind_of(path), size)


def _text(path: Path, start: bytes, content: Iterator[bytes]) -> RowStream:
    source, kind = str(path), kind_of(path)
    require_text(start, source)
    lines = _lines(source, start, content)
    begin: list[str] = []
    while not begin or not begin[-1].strip():
        line = next(lines, None)
        if line is None:
            raise DataError(f"{speaker()}: {source} is empty")
        begin.append(line)
    lines = itertools.chain(begin, lines)
    if kind not in SUFFIXES:  # a pipe has no suffix
        kind = {"{": ".jsonl", "[": ".json"}.get(begin[-1].lstrip()[0], ".csv")
    if kind not in (".csv", ".tsv"):
        return stream_json(source, lines, kind)
    columns, records = stream_delimited(source, lines, "," if kind == ".csv" else "\t")
    require_unique(source, columns, "the header")
    return RowStream(source, columns, ((f"line {i}", dict(zip(columns, row, strict=True))) for i, row in records))


def _lines(source: str, start: bytes, content: Iterator[bytes]) -> Iterator[str]:
    r"""Yield lines with their ends, `\n`, `\r\n` or `\r`; a line may be as long as memory allows."""
    encoding, _ = encoding_of(start)
    text = io.TextIOWrapper(io.BufferedReader(PieceReader(content)), encoding, newline="")
    count = 0
    try:
        for count, line in enumerate(text, 1):
            if "\0" in line:
                raise DataError(f"{speaker()}: {source} is not text: line {count} holds a NUL byte")
            yield line[1:] if line[0] == "\ufeff" else line  # the mark of a file that was joined to another
    except UnicodeDecodeError as error:
        raise DataError(
            f"{speaker()}: {source} is not {encoding.upper()}: a byte behind line {count}, within the next 8 KiB, is "
            f"0x{error.object[error.start]:02x}; convert it with `iconv -f ENCODING -t utf-8`"
        ) from None
