"""Gather the texts that `adapterx predict` labels: arguments, lines, or a column of a table whose others are kept."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterx.cli.data.encodings import decode, split_lines
from adapterx.cli.data.examples import find_column, require_encodable, texts_of
from adapterx.cli.data.packing import unpacked
from adapterx.cli.data.sources import SUFFIXES, find_files, kind_of, read_bytes, read_stream
from adapterx.cli.data.spool import changed
from adapterx.cli.data.tables import Rows, listed, read_rows
from adapterx.errors import ConfigError, DataError, speaker

ANSWER = ("text", "label", "probability", "probabilities")  # what a prediction adds to the columns of a table
PREFIX = "given_"
NO_COLUMN = "{}: --text-column must name a column of a table, lines and arguments have none"


@dataclass(frozen=True)
class Wanted:
    """Texts to label, and for each the other columns of its row, under the names that they have in the answer."""

    texts: Sequence[Any]
    columns: Sequence[dict[str, object]]


def texts_to_label(
    texts: list[str],
    file: str | None,
    text_column: str | None,
    *,
    recorded: str | None,
    answer: Sequence[str] = ANSWER,
) -> Wanted:
    """Gather the texts from arguments, a file, or standard input (`-`, one text a line).

    Args:
        texts: the arguments.
        file: a table, or .txt with one text a line.
        text_column: column of the table; None takes the recorded one.
        recorded: the column that the training read.
        answer: what a prediction adds to the columns of a table.

    Raises:
        ConfigError: there is no text, or more than one source.
        DataError: the source cannot be used, or a text or line is empty.
    """
    if bool(texts) == (file is not None):
        raise ConfigError(f"{speaker()}: give texts, or --file, or - for standard input (exactly one of them)")
    files = None if file is None else find_files(file)
    of_lines = are_lines(files, text_column)
    if text_column is not None and file is None:
        raise ConfigError(NO_COLUMN.format(speaker()))
    if file is not None and not of_lines:
        rows = read_rows(file, default_split="test")
        column = find_column(rows, text_column, recorded, "text")
        return Wanted(texts_of(rows, column), other_columns(rows, [column], answer))
    if file is not None:
        texts = [line for path in files for line in _lines(read_bytes(path), str(path))]
    elif texts == ["-"]:
        texts = _lines(_standard_input(), "standard input")
    elif named := [text for text in texts if kind_of(Path(text)) in (*SUFFIXES, ".txt") and os.path.isfile(text)]:
        raise ConfigError(f"{speaker()}: the file {named[0]} must be named by --file; alone it would be a text")
    for i, text in enumerate(texts, 1):
        if not text.strip():
            raise DataError(f"{speaker()}: text {i} must not be empty, got {text!r}")
        require_encodable(text, f"text {i}")
    return Wanted(texts, [{} for _ in texts])


def are_lines(files: Sequence[Path] | None, text_column: str | None) -> bool:
    """Return whether files hold one text a line, and no table.

    Raises:
        ConfigError: they do, and a column is asked for.
    """
    of_lines = bool(files) and all(kind_of(path) == ".txt" for path in files)
    if of_lines and text_column is not None:
        raise ConfigError(NO_COLUMN.format(speaker()))
    return of_lines


def with_ids_first(wanted: Wanted, column: str, answer: Sequence[str]) -> Wanted:
    """Return the texts with the column of their ids before the others.

    Args:
        wanted: of a table.
        column: as it is called in the table.
        answer: what a prediction adds, whose names no ids can have.

    Raises:
        DataError: there is no such column, a value is missing, or stands twice, so that answers could be confused.
    """
    known = wanted.columns[0] if len(wanted.columns) else {}
    if column not in known or column in answer:
        raise DataError(
            f"{speaker()}: id_column must name a column beside the texts, one of {listed(known)}, got {column!r}"
        )
    seen: dict[str, int] = {}
    for i, values in enumerate(wanted.columns, 1):
        key = "" if values[column] is None or values[column] != values[column] else str(values[column]).strip()
        if not key or key in seen:
            told = f"text {i} has none" if not key else f"texts {seen[key]} and {i} both have {key!r}"
            raise DataError(f"{speaker()}: id_column {column!r} must tell the texts apart, {told}")
        seen[key] = i
    return Wanted(wanted.texts, changed(wanted.columns, lambda values: {column: values[column], **values}))


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise DataError(f"{speaker()}: standard input is closed")
    try:
        return unpacked(read_stream(sys.stdin.buffer, "standard input"), "standard input")
    except OSError as error:
        raise DataError(f"{speaker()}: standard input cannot be read: {error.strerror}") from error


def _lines(raw: bytes, name: str) -> list[str]:
    """Return the lines of a text. A blank one would get no answer, and the answers not stand beside their lines."""
    lines = split_lines(decode(raw, name))
    while not lines[-1].strip():  # behind the last text they shift no answer
        lines.pop()
    require_no_blank(name, [i for i, line in enumerate(lines, 1) if not line.strip()])
    return lines


def require_no_blank(name: str, blank: Sequence[int]) -> None:
    """Refuse blank lines before the last text.

    Args:
        name: of the file.
        blank: which lines are.

    Raises:
        DataError: there is one.
    """
    if blank:
        shown = ", ".join(map(str, blank[:3])) + (f" and {len(blank) - 3} more" if len(blank) > 3 else "")
        raise DataError(f"{speaker()}: {name}: a line must hold a text, blank: {shown}; fill or delete them")


def other_columns(rows: Rows, read: Sequence[str], answer: Sequence[str]) -> list[dict[str, object]]:
    """Return the columns beside the texts, by the names of `names_in_answer`."""
    names = names_in_answer(rows.columns, read, answer)
    return [{name: value.get(column) for column, name in names.items()} for value in rows.values]


def names_in_answer(columns: Sequence[str], read: Sequence[str], answer: Sequence[str]) -> dict[str, str]:
    """Return the columns beside the texts, with the names that they have in an answer.

    One whose name the answer itself has is kept as `given_...`: what is called `label` is always what the model says.

    Args:
        columns: of the table.
        read: the columns that the texts come from; under the name that they have in the answer they are left out.
        answer: what a prediction adds.
    """
    names = {}
    for column in columns:
        name = column
        while name in answer or (name != column and name in columns):
            name = PREFIX + name
        names[column] = name
    for column in read:
        if column in answer:
            del names[column]
    return names
