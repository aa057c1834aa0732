"""Read rows from CSV, TSV, JSON Lines, JSON, Parquet, or a named dataset, and say exactly where a file is wrong."""

from pathlib import Path

from adapterx.cli.data.columnar import is_columnar, read_columnar
from adapterx.cli.data.delimited import read_delimited
from adapterx.cli.data.encodings import decode
from adapterx.cli.data.folders import files_of_split, parted
from adapterx.cli.data.json_rows import read_json
from adapterx.cli.data.named import is_saved, read_named, read_saved
from adapterx.cli.data.rows import Rows, first_line, listed, require_same_columns, require_unique
from adapterx.cli.data.sources import (
    SUFFIXES,
    Sources,
    find_files,
    kind_of,
    read_bytes,
    require_known_kind,
)
from adapterx.errors import DataError, speaker

__all__ = ["Rows", "first_line", "listed", "read_rows"]


def read_rows(source: str | Sources, *, default_split: str = "train") -> Rows:
    """Read files, pipes, all files of a pattern, or datasets called `name[:configuration][@split]`, as one table.

    Raises:
        DataError: one is missing, empty, damaged, of an unknown type or encoding, or they have different columns.
    """
    sources = (source,) if isinstance(source, str) else source
    tables = [table for each in sources for table in _read_source(each, default_split)]
    first = tables[0]
    for table in tables:
        if not table.values:
            raise DataError(f"{speaker()}: {table.source} is empty: it has no rows")
        require_same_columns(source, first, table)
    if len(tables) == 1:
        return Rows(str(source), first.columns, first.values, first.places)
    values = [value for table in tables for value in table.values]
    places = [f"{table.source} {place}" for table in tables for place in table.places]
    return Rows(str(source), first.columns, values, places)


def _read_source(source: str, default_split: str) -> list[Rows]:
    folder, split = parted(source)
    if folder is not None and is_saved(folder):
        return [read_saved(folder, split, default_split).all()]
    files = find_files(source) if folder is None else files_of_split(folder, split, default_split)
    return [read_named(source, default_split).all()] if files is None else [_read_file(path) for path in files]


def _read_file(path: Path) -> Rows:
    source, kind = str(path), kind_of(path)
    require_known_kind(path)
    raw = read_bytes(path)
    if is_columnar(raw, kind):
        return _read_columnar(source, raw, kind)
    text = decode(raw, source)
    if kind not in SUFFIXES:  # a pipe has no suffix
        kind = {"{": ".jsonl", "[": ".json"}.get(text.lstrip()[0], ".csv")
    if kind in (".csv", ".tsv"):
        table = read_delimited(source, text, "," if kind == ".csv" else "\t")
        require_unique(source, table.columns, "the header")
        values: list[dict[str, object]] = [dict(zip(table.columns, row, strict=True)) for row in table.records]
        return Rows(source, table.columns, values, [f"line {line}" for line in table.lines])
    return read_json(source, text, kind)


def _read_columnar(source: str, raw: bytes, kind: str) -> Rows:
    import pyarrow

    return read_columnar(source, pyarrow.BufferReader(raw), raw[:8], kind, len(raw)).all()
