"""Read rows from CSV, TSV, JSON Lines, JSON, Parquet, or a named dataset, and say exactly where a file is wrong."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adapterx.errors import DataError, speaker

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
KNOWN = ", ".join(SUFFIXES)


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


def read_rows(source: str, *, default_split: str = "train") -> Rows:
    """Read a file, or a dataset called `name[:configuration][@split]`.

    Raises:
        DataError: the file is missing, empty, damaged, of an unknown type, or not UTF-8.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError(f"{speaker()}: {source} is a folder; give a file ({KNOWN}) or the name of a dataset")
    if not path.exists() and suffix not in SUFFIXES:
        return _read_named(source, default_split)
    if not path.exists():
        raise DataError(f"{speaker()}: {source} does not exist")
    if suffix not in SUFFIXES:
        raise DataError(f"{speaker()}: {source} has the unknown file type {suffix or '(none)'}; known are {KNOWN}")
    if suffix == ".parquet":
        rows = _read_parquet(path)
    elif suffix in (".csv", ".tsv"):
        rows = _read_csv(source, read_text(path), "," if suffix == ".csv" else "\t")
    else:
        rows = _read_json(source, read_text(path), lines=suffix != ".json")
    if not rows.values:
        raise DataError(f"{speaker()}: {source} is empty: it has no rows")
    return rows


def read_text(path: Path) -> str:
    """Read a text file as UTF-8, with or without a byte order mark.

    Raises:
        DataError: it is not UTF-8 (the text names the line and the byte), or it is empty.
    """
    raw = path.read_bytes()
    skipped = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = raw[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        byte = skipped + error.start
        line = raw.count(b"\n", 0, byte) + 1
        raise DataError(
            f"{speaker()}: {path} is not UTF-8: line {line}, byte {byte} of the file is 0x{raw[byte]:02x}; "
            "convert it, for example with `iconv -f latin1 -t utf-8`"
        ) from None
    if not text.strip():
        raise DataError(f"{speaker()}: {path} is empty")
    return text


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _require_unique(source: str, columns: Iterable[str], place: str) -> None:
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise DataError(f"{speaker()}: {source}: {place} has the column {column!r} twice")
        seen.add(column)


def _read_csv(source: str, text: str, delimiter: str) -> Rows:
    csv.field_size_limit(2**31 - 1)  # documents are longer than csv's 128 KiB
    # strict: a quote that is never closed would otherwise swallow the rest of the file without a word.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    values, places = [], []
    start = 1
    try:
        for row in reader:
            place, start = f"line {start}", reader.line_num + 1
            if not row:
                continue
            if not columns:
                columns = [name.strip() for name in row]
                _require_unique(source, columns, place)
                continue
            if len(row) != len(columns):
                raise DataError(f"{speaker()}: {source}: {place} has {len(row)} fields, the header has {len(columns)}")
            values.append(dict(zip(columns, row, strict=True)))
            places.append(place)
    except csv.Error as error:
        raise DataError(f"{speaker()}: {source}: the row that begins in line {start} is malformed: {error}") from None
    return Rows(source, columns, values, places)


def _read_json(source: str, text: str, *, lines: bool) -> Rows:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        _require_unique(source, [key for key, _ in pairs], "an object")
        return dict(pairs)

    parts = [(f"line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()] if lines else []
    values, places = [], []
    try:
        if not lines:
            loaded = json.loads(text, object_pairs_hook=unique)
            if not isinstance(loaded, list):
                raise DataError(f"{speaker()}: {source} must hold a list; one object in each line is a .jsonl file")
            values, places = loaded, [f"element {i}" for i in range(len(loaded))]
        for place, line in parts:
            values.append(json.loads(line, object_pairs_hook=unique))
            places.append(place)
    except json.JSONDecodeError as error:
        where = parts[len(places)][0] if lines else f"line {error.lineno}"
        raise DataError(f"{speaker()}: {source}: {where} is not JSON: {error.msg} (column {error.colno})") from None
    for value, place in zip(values, places, strict=True):
        if not isinstance(value, dict):
            raise DataError(f'{speaker()}: {source}: {place} must be an object such as {{"text": ..., "label": ...}}')
    columns = list(dict.fromkeys(key for value in values for key in value))
    return Rows(source, columns, values, places)


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{speaker()}: {path} cannot be read as Parquet: {error}") from error
    _require_unique(str(path), table.column_names, "the schema")
    return Rows(str(path), table.column_names, table.to_pylist(), [f"row {i}" for i in range(table.num_rows)])


def _read_named(source: str, default_split: str) -> Rows:
    import datasets

    name, _, split = source.partition("@")
    name, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split or default_split)
    except Exception as error:  # of dozens of kinds; all mean that there is no such data
        raise DataError(
            f"{speaker()}: {source} is no file, and no dataset of that name could be loaded ({first_line(error)}); "
            f"a file ends in {KNOWN}, a dataset is written name:configuration@split"
        ) from error
    names = {c: f.names for c, f in loaded.features.items() if isinstance(f, datasets.ClassLabel)}

    def named(column: str, value: object) -> object:
        return names[column][value] if column in names and isinstance(value, int) and value >= 0 else value

    values = [{column: named(column, value) for column, value in row.items()} for row in loaded]
    return Rows(source, list(loaded.column_names), values, [f"row {i}" for i in range(len(values))])
