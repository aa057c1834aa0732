"""Gather the texts that `adapterx predict` labels: arguments, lines, or a column of a table whose others are kept."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adapterx.cli.data.encodings import decode, split_lines
from adapterx.cli.data.examples import find_column, require_encodable, texts_of
from adapterx.cli.data.packing import unpacked
from adapterx.cli.data.sources import SUFFIXES, find_files, kind_of, read_bytes, read_stream
from adapterx.cli.data.tables import Rows, read_rows
from adapterx.cli.data.wanted import ANSWER, Wanted, are_lines, names_in_answer, no_column, require_no_blank
from adapterx.errors import ConfigError, DataError, speaker


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
        raise no_column()
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


def other_columns(rows: Rows, read: Sequence[str], answer: Sequence[str]) -> list[dict[str, object]]:
    """Return the columns beside the texts, by the names of `names_in_answer`."""
    names = names_in_answer(rows.columns, read, answer)
    return [{name: value.get(column) for column, name in names.items()} for value in rows.values]
