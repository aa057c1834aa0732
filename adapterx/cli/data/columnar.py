"""Read tables that are stored by columns: Parquet, and Arrow's own files (Feather among them)."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from adapterx.cli.data.rows import Row, RowStream, first_line, require_unique
from adapterx.errors import DataError, speaker

PARQUET, ARROW, ARROW_STREAM, FEATHER_1 = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"FEA1"  # how they begin
MOST_ROWS = (10**7, 100)  # above so many rows, at most so many in a byte of the file
BATCH = 1000  # rows in memory at a time


def is_columnar(start: bytes, kind: str) -> bool:
    """Return whether a file is one of these, by its first bytes and its suffix."""
    known = start.startswith((PARQUET, ARROW, FEATHER_1)) or kind in (".parquet", ".arrow", ".feather")
    return known or (not kind and start.startswith(ARROW_STREAM))  # a pipe has no suffix


def read_columnar(source: str, file: Any, start: bytes, kind: str, size: int) -> RowStream:
    """Read a table row by row.

    Args:
        source: how the user named it.
        file: a path, or the bytes as a buffer of pyarrow's.
        start: the first bytes, which tell what it is.
        kind: its suffix, which tells it where the first bytes do not.
        size: of the file, in bytes.

    Raises:
        DataError: it is damaged, now or when the rows are read.
    """
    parquet = start.startswith(PARQUET) or (kind == ".parquet" and not start.startswith(ARROW))
    name = "Parquet" if parquet else "Arrow"
    if start.startswith(FEATHER_1):
        raise DataError(f"{speaker()}: {source} is Feather of version 1; write it as version 2 or as Parquet")
    try:
        schema, count, batches = (_parquet if parquet else _arrow)(file, start)
    except Exception as error:  # of many kinds
        raise DataError(f"{speaker()}: {source} cannot be read as {name}: {first_line(error)}") from error
    require_unique(source, schema.names, "the schema")
    _check_count(source, count, size)
    return RowStream(source, list(schema.names), _rows(source, name, batches, class_names(schema.metadata), size))


def _check_count(source: str, count: int, size: int) -> None:
    if count > max(MOST_ROWS[0], MOST_ROWS[1] * size):
        raise DataError(f"{speaker()}: {source} has {count} rows in {size} bytes, more than can be data")


def _parquet(file: Any, start: bytes) -> tuple[Any, int, Iterable[Any]]:
    import pyarrow.parquet

    opened = pyarrow.parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
    return opened.schema_arrow, opened.metadata.num_rows, opened.iter_batches(BATCH)


def _arrow(file: Any, start: bytes) -> tuple[Any, int, Iterable[Any]]:
    import pyarrow

    source = pyarrow.memory_map(file) if isinstance(file, str) else file
    if start.startswith(ARROW):
        opened = pyarrow.ipc.open_file(source)
        return opened.schema, 0, (opened.get_batch(i) for i in range(opened.num_record_batches))
    opened = pyarrow.ipc.open_stream(source)
    return opened.schema, 0, opened


def _rows(
    source: str, name: str, batches: Iterable[Any], names: dict[str, list[str]], size: int
) -> Iterator[tuple[str, Row]]:
    count = 0
    try:
        for batch in batches:
            batch.validate(full=True)  # what a damaged file says about its own lengths is not believed
            for part in range(0, batch.num_rows, BATCH):
                for row in batch.slice(part, BATCH).to_pylist():
                    yield f"row {count}", named(row, names)
                    count += 1
            _check_count(source, count, size)
    except DataError:
        raise
    except Exception as error:  # of many kinds: damage, dates outside of Python's, time zones that nobody knows
        raise DataError(f"{speaker()}: {source} cannot be read as {name}: {first_line(error)}") from error


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of classes by column, where `datasets` noted them in the schema of a file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        found = {}
        for column, feature in features.items():
            feature = feature.get("feature", feature)  # of each value, where the column holds lists
            if feature.get("_type") == "ClassLabel" and isinstance(feature["names"], list):
                found[column] = feature["names"]
        return found
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):  # another program's, or damaged
        return {}


def named(row: Row, names: dict[str, list[str]]) -> Row:
    """Return a row with the names of classes in place of their numbers; -1, which stands for none, becomes None."""

    def name(value: object, known: list[str]) -> object:
        if isinstance(value, list):
            return [name(each, known) for each in value]
        if isinstance(value, int) and value < len(known):
            return known[value] if value >= 0 else None
        return value

    for column, known in names.items():
        row[column] = name(row.get(column), known)
    return row
