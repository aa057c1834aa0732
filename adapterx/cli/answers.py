"""Write predictions: lines for a person, JSON Lines or CSV for programs. One answer is one line or one CSV record."""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from adapterx.cli.reporting import printable
from adapterx.cli.tasks.task import Task
from adapterx.errors import ConfigError, DataError, speaker

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


def render(
    predictions: Iterable[dict[str, Any]], form: str, task: Task, *, all_probabilities: bool = False
) -> Iterator[str]:
    """Write predictions as one of FORMATS, line by line; in CSV with a column for each probability if they are wanted.

    A table may hold half a surrogate pair: lines are to be encoded with `errors="backslashreplace"`, as JSON writes it.

    Raises:
        ConfigError: the task has no probabilities.
        DataError: a value of the user's table cannot be written, or a column would have the name of another.
    """
    predictions = iter(predictions)
    first = next(predictions)
    predictions = itertools.chain([first], predictions)
    if all_probabilities:
        if not isinstance(first.get("probabilities"), dict):
            raise ConfigError(f"{speaker()}: --all-probabilities needs a task with labels, the run's is {task.name}")
        if form == "csv":
            first, predictions = _spread(first), map(_spread, predictions)
    if form == "text":
        yield from _aligned([[printable(cell) for cell in task.cells(each)] for each in predictions])
    elif form == "jsonl":
        for each in predictions:
            yield _json({name: _plain(value) for name, value in each.items()}) + "\n"
    else:
        names = [name for name in first if name not in task.nested]
        for row in itertools.chain([names], ([_cell(each[name]) for name in names] for each in predictions)):
            yield ",".join(map(_quoted, row)) + "\n"


def _aligned(table: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    widths[-1] = 0  # nothing stands behind the last column
    for row in table:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + "\n"


def _spread(prediction: dict[str, Any]) -> dict[str, Any]:
    """Return a prediction with its probabilities as values of their own."""
    spread = {f"probabilities.{label}": value for label, value in prediction["probabilities"].items()}
    if same := sorted(spread.keys() & prediction.keys()):
        raise DataError(f"{speaker()}: the table has a column {same[0]!r} already; rename it for --all-probabilities")
    return prediction | spread


def matrix(metrics: dict[str, Any]) -> str:
    """Return the confusion matrix of an evaluation as CSV: a row for each true label, a column for each predicted one.

    Raises:
        ConfigError: there is none.
    """
    counts = metrics.get("confusion_matrix")
    if counts is None:
        raise ConfigError(f"{speaker()}: --confusion-matrix needs a run that gives each text one label")
    rows = [["true", *counts], *([true, *(str(row.get(guess, 0)) for guess in counts)] for true, row in counts.items())]
    return "".join(",".join(map(_quoted, row)) + "\n" for row in rows)


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
    if not isinstance(value, (float, list, tuple, dict)):  # a date, a decimal number, bytes
        return str(value)
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
