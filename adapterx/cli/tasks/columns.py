"""Columns of a table in which tasks find more than a text and a class: lists, numbers, several columns as one."""

import ast
import json
from collections.abc import Sequence

from adapterx.cli.data.examples import USUAL_COLUMNS, find_column
from adapterx.cli.data.tables import Rows
from adapterx.errors import DataError, speaker

BETWEEN = ","  # of the names of several columns, on the command line and in `run.json`


def find_columns(
    rows: Rows, asked: str | None, recorded: str | None, kind: str, usual: Sequence[str] = ()
) -> list[str]:
    """Return the columns of texts or labels: one, or those whose names stand in a list such as `toxic,insult`.

    Args:
        rows: of the table.
        asked: a name, or names with commas between them; None takes the recorded ones, or a usual name.
        recorded: likewise, what the training read.
        kind: `"text"` or `"label"`.
        usual: names to look for, in order, where they differ from those of classification.

    Raises:
        DataError: see `find_column`.
    """
    for names in (asked, recorded if asked is None else None):
        if names is not None and names not in rows.columns and BETWEEN in names:
            return [find_column(rows, name.strip(), None, kind) for name in names.split(BETWEEN)]
    return [find_column(rows, asked, recorded, kind, tuple(usual) or USUAL_COLUMNS[kind])]


def as_list(value: object) -> list[object] | None:
    """Return the list that a cell holds, in JSON or as Python writes it where the cell is text; None: it holds none."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, str) or not value.strip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list) else None
    return None


def require_different(rows: Rows, texts: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse a column that is to be read as a text and as a label, or twice.

    Raises:
        DataError: there is one.
    """
    names = [*texts, *labels]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{speaker()}: {rows.source}: text column and label column must differ, both are {', '.join(twice)!r}"
        )
