"""Write predictions: lines for a person, JSON Lines or CSV for programs. One answer is one line or one CSV record."""

import json
import sys
from pathlib import Path
from typing import Any

from adapterx.cli.reporting import printable
from adapterx.cli.tasks.task import Task
from adapterx.errors import DataError, speaker

FORMATS = ("text", "jsonl", "csv")  # lines for a person, JSON Lines with every probability, CSV
FORM_HELP = (
    "text, jsonl (with every probability), or csv. Default: what --output ends in; else text on a terminal, "
    "jsonl into a pipe or file."
)


def usual_form(output: Path | None) -> str:
    """Return the format that fits where the answers go."""
    if output is not None and output.suffix.lower() == ".csv":
        return "csv"
    if output is not None and output.suffix.lower() == ".txt":
        return "text"
    return "text" if output is None and sys.stdout is not None and sys.stdout.isatty() else "jsonl"


def render(predictions: list[dict[str, Any]], form: str, task: Task) -> str:
    """Write predictions as one of FORMATS.

    Raises:
        DataError: a value of the user's table cannot be written.
    """
    if form == "text":
        table = [[printable(cell) for cell in task.cells(each)] for each in predictions]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        widths[-1] = 0  # nothing stands behind the last column
        rows = [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in table]
        return "".join("  ".join(row) + "\n" for row in rows)
    if form == "jsonl":
        written = "".join(_json({name: _plain(value) for name, value in p.items()}) + "\n" for p in predictions)
    else:
        names = [name for name in predictions[0] if name not in task.nested]
        table = [names, *([_cell(p[name]) for name in names] for p in predictions)]
        written = "".join(",".join(map(_quoted, row)) + "\n" for row in table)
    return written.encode(
        "utf-8", "backslashreplace"
    ).decode()  # a table may hold half a surrogate pair: in JSON `\ud800`


def _json(value: object) -> str:
    # What Python's splitlines takes for the end of a line is escaped, so that it ends none.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    return (
        text.replace("\x7f", "\\u007f")
        .replace("\x85", "\\u0085")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _plain(value: object) -> object:
    """Return a value as JSON can hold it: NaN is none, other numbers that are not finite and dates are text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and value != value:
        return None
    try:
        _json(value)
    except ValueError:
        return str(value)
    except RecursionError:
        raise DataError(f"{speaker()}: a value of the table is nested too deeply to be written") from None
    return value


def _cell(value: object) -> str:
    """Return a value as CSV shows it."""
    plain = _plain(value)
    if plain is None:
        return ""
    return plain if isinstance(plain, str) else _json(plain).strip('"')


def _quoted(cell: str) -> str:
    # csv.writer leaves a bare carriage return unquoted, which every reader takes for the end of the row.
    return '"' + cell.replace('"', '""') + '"' if any(char in cell for char in ',"\r\n') else cell
