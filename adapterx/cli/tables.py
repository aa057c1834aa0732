"""Read rows from CSV, TSV, JSON Lines, JSON, Parquet, or a named dataset, and say exactly where a file is wrong."""

import json
from pathlib import Path

from adapterx.cli.columnar import ARROW_STREAM, is_columnar, read_columnar
from adapterx.cli.delimited import read_delimited
from adapterx.cli.folders import files_of_split, parted
from adapterx.cli.named import is_saved, read_named, read_saved
from adapterx.cli.rows import Rows, first_line, listed, require_same_columns, require_unique
from adapterx.cli.sources import (
    KNOWN,
    SUFFIXES,
    WORDS,
    Sources,
    decode,
    find_files,
    is_stream,
    kind_of,
    read_bytes,
    split_lines,
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
    if kind not in SUFFIXES and not is_stream(path) and not path.is_dir():
        reason = WORDS.get(kind) or f"has the unknown file type {kind or '(none)'}"
        raise DataError(f"{speaker()}: {source} {reason}; known are {KNOWN}")
    raw = read_bytes(path)
    if is_columnar(raw, kind) or (kind not in SUFFIXES and raw.startswith(ARROW_STREAM)):
        return _read_columnar(source, raw, kind)
    text = decode(raw, source)
    if kind not in SUFFIXES:  # a pipe has no suffix
        kind = {"{": ".jsonl", "[": ".json"}.get(text.lstrip()[0], ".csv")
    if kind in (".csv", ".tsv"):
        table = read_delimited(source, text, "," if kind == ".csv" else "\t")
        require_unique(source, table.columns, "the header")
        values: list[dict[str, object]] = [dict(zip(table.columns, row, strict=True)) for row in table.records]
        return Rows(source, table.columns, values, [f"line {line}" for line in table.lines])
    return _read_json(source, text, lines=_is_json_lines(text) if kind == ".json" else not _is_json_list(text))


def _read_json(source: str, text: str, *, lines: bool) -> Rows:
    if lines:
        parts = [(f"line {i}", line) for i, line in enumerate(split_lines(text), 1) if line.strip()]
        values, places = [_parsed(source, line, place) for place, line in parts], [place for place, _ in parts]
    else:
        values = _parsed(source, text, None)
        if not isinstance(values, list):
            raise DataError(f"{speaker()}: {source} must hold a list of objects, one for each row")
        places = [f"element {i}" for i in range(len(values))]
    for value, place in zip(values, places, strict=True):
        if not isinstance(value, dict):
            raise DataError(f'{speaker()}: {source}: {place} must be an object such as {{"text": ..., "label": ...}}')
    columns = list(dict.fromkeys(key for value in values for key in value))
    return Rows(source, columns, values, places)


def _is_json_lines(text: str) -> bool:
    """Return whether a .json file holds an object in each line, as pandas and others write it."""
    first, _, more = text.strip().partition("\n")
    try:
        return bool(more) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _is_json_list(text: str) -> bool:
    """Return whether a .jsonl file holds one list, as a .json file should."""
    try:
        return text.lstrip().startswith("[") and isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def _parsed(source: str, text: str, place: str | None) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        require_unique(source, [key for key, _ in pairs], place or "an object")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        where = place or f"line {error.lineno}"
        raise DataError(f"{speaker()}: {source}: {where} is not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{speaker()}: {source}: {place or 'its content'} is nested too deeply") from None
    except DataError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(
            f"{speaker()}: {source}: {place or 'its content'} cannot be read: {first_line(error)}"
        ) from None


def _read_columnar(source: str, raw: bytes, kind: str) -> Rows:
    import pyarrow

    return read_columnar(source, pyarrow.BufferReader(raw), raw[:8], kind, len(raw)).all()
