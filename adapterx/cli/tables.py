"""Read rows from CSV, TSV, JSON Lines, JSON, Parquet, or a named dataset, and say exactly where a file is wrong."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adapterx.cli import hub
from adapterx.cli.delimited import read_delimited
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
    similar,
    split_lines,
)
from adapterx.errors import DataError, speaker

PARQUET = b"PAR1"  # how it begins
MOST_ROWS = (10**7, 100)  # of Parquet: above so many rows, at most so many in a byte of the file


@dataclass(frozen=True)
class Rows:
    """A table as it stands in its source.

    Attributes:
        source: how the user named it.
        columns: the column names in order.
        values: for each row, the value of every column (None where it has none).
        places: for each row, where it stands, such as `line 7`.
    """

    source: str
    columns: list[str]
    values: list[dict[str, object]]
    places: list[str]


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
        if different := set(table.columns) ^ set(first.columns):
            raise DataError(
                f"{speaker()}: {source}: the files must have the same columns; {first.source} and {table.source} "
                f"differ in {listed(sorted(different))}"
            )
    if len(tables) == 1:
        return Rows(str(source), first.columns, first.values, first.places)
    values = [value for table in tables for value in table.values]
    places = [f"{table.source} {place}" for table in tables for place in table.places]
    return Rows(str(source), first.columns, values, places)


def _read_source(source: str, default_split: str) -> list[Rows]:
    files = find_files(source)
    return [_read_named(source, default_split)] if files is None else [_read_file(path) for path in files]


def listed(names: Iterable[str]) -> str:
    """Return names as a message shows them: in quotes, and no more than 20."""
    names = list(names)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_file(path: Path) -> Rows:
    source, kind = str(path), kind_of(path)
    if kind not in SUFFIXES and not is_stream(path) and not path.is_dir():
        reason = WORDS.get(kind) or f"has the unknown file type {kind or '(none)'}"
        raise DataError(f"{speaker()}: {source} {reason}; known are {KNOWN}")
    raw = read_bytes(path)
    if raw.startswith(PARQUET) or kind == ".parquet":
        return _read_parquet(source, raw)
    text = decode(raw, source)
    if kind not in SUFFIXES:  # a pipe has no suffix
        kind = {"{": ".jsonl", "[": ".json"}.get(text.lstrip()[0], ".csv")
    if kind in (".csv", ".tsv"):
        table = read_delimited(source, text, "," if kind == ".csv" else "\t")
        _require_unique(source, table.columns, "the header")
        values: list[dict[str, object]] = [dict(zip(table.columns, row, strict=True)) for row in table.records]
        return Rows(source, table.columns, values, [f"line {line}" for line in table.lines])
    return _read_json(source, text, lines=_is_json_lines(text) if kind == ".json" else not _is_json_list(text))


def _require_unique(source: str, columns: Iterable[str], place: str) -> None:
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise DataError(f"{speaker()}: {source}: {place} has the column {column!r} twice")
        seen.add(column)


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
        _require_unique(source, [key for key, _ in pairs], place or "an object")
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


def _read_parquet(source: str, raw: bytes) -> Rows:
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(raw))
        rows = file.metadata.num_rows
        if rows > max(MOST_ROWS[0], MOST_ROWS[1] * len(raw)):
            raise DataError(f"{speaker()}: {source} has {rows} rows in {len(raw)} bytes, more than can be data")
        _require_unique(source, file.schema_arrow.names, "the schema")
        table = file.read()
        values = table.to_pylist()
    except DataError:
        raise
    except Exception as error:  # of many kinds: damage, dates outside of Python's, time zones that nobody knows
        raise DataError(f"{speaker()}: {source} cannot be read as Parquet: {first_line(error)}") from error
    return Rows(source, table.column_names, values, [f"row {i}" for i in range(table.num_rows)])


def _read_named(source: str, default_split: str) -> Rows:
    name, _, split = source.partition("@")
    name, _, configuration = name.partition(":")
    if not hub.reachable():
        if not hub.may_be_cached(name):
            raise _no_dataset(source, "the hub cannot be reached, and its cache has none")
        # The library, which is imported only now, would try for half a minute; like this it looks into its cache.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split or default_split)
    except Exception as error:  # of dozens of kinds; all mean that there is no such data
        raise _no_dataset(source, first_line(error)) from error
    names = {c: f.names for c, f in loaded.features.items() if isinstance(f, datasets.ClassLabel)}

    def named(column: str, value: object) -> object:
        return names[column][value] if column in names and isinstance(value, int) and value >= 0 else value

    values = [{column: named(column, value) for column, value in row.items()} for row in loaded]
    return Rows(source, list(loaded.column_names), values, [f"row {i}" for i in range(len(values))])


def _no_dataset(source: str, reason: str) -> DataError:
    return DataError(
        f"{speaker()}: {source} is no file, and no dataset of that name could be loaded ({reason}); "
        f"a file ends in {KNOWN}, a dataset is written name:configuration@split{similar(Path(source))}"
    )
