"""What is to be predicted: texts, and the other columns of their rows under the names that an answer gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterx.cli.data.rows import listed
from adapterx.cli.data.sources import kind_of
from adapterx.cli.data.spool import changed
from adapterx.errors import ConfigError, DataError, speaker

ANSWER = ("text", "label", "probability", "probabilities")  # what a prediction adds to the columns of a table
PREFIX = "given_"


@dataclass(frozen=True)
class Wanted:
    """Texts to label, and for each the other columns of its row, under the names that they have in the answer."""

    texts: Sequence[Any]
    columns: Sequence[dict[str, object]]


def hold_lines(files: Sequence[Path] | None) -> bool:
    """Return whether there are files, and all of them texts without columns."""
    return bool(files) and all(kind_of(path) == ".txt" for path in files)


def are_lines(files: Sequence[Path] | None, text_column: str | None) -> bool:
    """Return whether files hold one text a line, and no table.

    Raises:
        ConfigError: they do, and a column is asked for.
    """
    of_lines = hold_lines(files)
    if of_lines and text_column is not None:
        raise no_column()
    return of_lines


def no_column() -> ConfigError:
    """Return the refusal of a column of what is no table."""
    return ConfigError(f"{speaker()}: --text-column must name a column of a table, lines and arguments have none")


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
