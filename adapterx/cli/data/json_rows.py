"""Read rows from JSON Lines and JSON lists."""

import itertools
import json
from collections.abc import Iterator

from adapterx.cli.data.encodings import split_lines
from adapterx.cli.data.rows import Row, Rows, RowStream, first_line, require_unique
from adapterx.errors import DataError, speaker


def read_json(source: str, text: str, kind: str) -> Rows:
    """Read the whole text of a file; its kind is `.json` or `.jsonl`, either of which may hold what the other should.

    Raises:
        DataError: it is no JSON, or no rows.
    """
    lines = _is_json_lines(text) if kind == ".json" else not _is_json_list(text)
    if lines:
        return _lines(source, iter(split_lines(text))).all()
    values = _parsed(source, text, None)
    if not isinstance(values, list):
        raise DataError(f"{speaker()}: {source} must hold a list of objects, one for each row")
    places = [f"element {i}" for i in range(len(values))]
    for value, place in zip(values, places, strict=True):
        _require_object(source, value, place)
    return Rows(source, list(dict.fromkeys(key for value in values for key in value)), values, places)


def stream_json(source: str, lines: Iterator[str], kind: str) -> RowStream:
    """Read JSON Lines row by row.

    Raises:
        DataError: it is no JSON Lines, now or when the rows are read.
    """
    begin, told = [], 0
    for line in lines:
        begin.append(line)
        told += bool(line.strip())
        if told == (2 if kind == ".json" else 1):
            break
    text = "".join(begin)
    if text.lstrip().startswith("[") or (kind == ".json" and not _is_json_lines(text)):
        raise DataError(
            f"{speaker()}: {source} must have an object in each line for --streaming; write it as .jsonl, or leave out "
            "--streaming"
        )
    return _lines(source, itertools.chain(begin, lines))


def _lines(source: str, lines: Iterator[str]) -> RowStream:
    columns: list[str] = []

    def rows() -> Iterator[tuple[str, Row]]:
        known: set[str] = set()
        for i, line in enumerate(lines, 1):
            if line.strip():
                place = f"line {i}"
                value = _require_object(source, _parsed(source, line, place), place)
                if not known.issuperset(value):
                    columns.extend(key for key in value if key not in known)
                    known.update(value)
                yield place, value

    return RowStream(source, columns, rows())


def _require_object(source: str, value: object, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{speaker()}: {source}: {place} must be an object such as {{"text": ..., "label": ...}}')
    return value


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
