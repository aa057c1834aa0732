"""What a command prints: lines and tables for a person, exact output for a program, and the learning curve."""

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapterx.cli.process import is_main_process
from adapterx.errors import ConfigError, speaker

LINES = "\n\t"  # what may move the cursor where whole lines are printed
_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of characters, separators of lines and paragraphs
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they change the order of what follows


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text as a terminal may show it: what would command the terminal is written as an escape such as `\x1b`.

    Labels, names and texts come from files of strangers; none of them may move the cursor or rename a window.
    """
    if text.isprintable():
        return text

    def shown(character: str) -> str:
        harmless = character in keep or (unicodedata.category(character) not in _UNSEEN and character not in _TURNING)
        return character if harmless else character.encode("unicode_escape").decode("ascii")

    return "".join(map(shown, text))


_silent = False


@contextmanager
def silence(silent: bool) -> Iterator[None]:
    """Inside, `say` and `print_figures` print nothing if `silent`; what a program reads and errors are printed."""
    global _silent
    before, _silent = _silent, silent
    try:
        yield
    finally:
        _silent = before


def is_silent() -> bool:
    """Return whether nothing is said for a person: because it is to be quiet, or another process speaks."""
    return _silent or not is_main_process()


def say(message: str) -> None:
    """Print a line for a person, once on several devices."""
    if not is_silent():
        Console(soft_wrap=True, highlight=False, markup=False, emoji=False).print(printable(message, keep=LINES))


def put(content: str) -> None:
    """Print what a program may read: exact and in UTF-8 in a file or a pipe, harmless on a terminal.

    Raises:
        ConfigError: standard output is closed.
    """
    if sys.stdout is None:
        raise ConfigError(f"{speaker()}: standard output is closed; give --output")
    if sys.stdout.isatty():
        sys.stdout.write(printable(content, keep=LINES))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(content.encode("utf-8", "backslashreplace"))
    sys.stdout.flush()


def print_figures(title: str, figures: dict[str, object]) -> None:
    """Print a two-column table."""
    if is_silent():
        return
    table = Table(title=_cell(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, value in figures.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(_cell(name.replace("_", " ")), _cell(shown))
    Console(highlight=False).print(table)


def print_table(rows: list[dict[str, object]]) -> None:
    """Print a table with a column for every key, and what is wide cut over several lines."""
    table = Table()
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(_cell(name), overflow="fold")
    for row in rows:
        values = (row.get(name) for name in names)
        shown = (
            "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value) for value in values
        )
        table.add_row(*map(_cell, shown))
    Console(highlight=False).print(table)


def print_matrix(title: str, matrix: dict[str, dict[str, int]]) -> None:
    """Print counts with a row and a column for each name."""
    if is_silent():
        return
    table = Table(title=_cell(title), title_justify="left")
    for name in ("", *matrix):
        table.add_column(_cell(name), justify="right" if name else "left")
    for name, counts in matrix.items():
        table.add_row(_cell(name), *(str(counts.get(other, 0)) for other in matrix))
    Console(highlight=False).print(table)


def _cell(text: str) -> Text:
    return Text(printable(text))  # a plain str would be read as rich's markup: a label `[neg]` would vanish


def draw_learning_curve(history: list[dict[str, float]], path: Path, metric: str = "accuracy") -> None:
    """Draw training loss and a held-out metric over the epochs."""
    from matplotlib.figure import Figure  # not pyplot: it would look for a display and keep global state

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    left = figure.add_subplot(xlabel="epoch", ylabel="loss")
    curves = [(left, "loss", "training loss", "-", "C0"), (left, "eval_loss", "held-out loss", "o--", "C1")]
    scores = [entry[f"eval_{metric}"] for entry in history if entry.get(f"eval_{metric}") is not None]
    if scores and metric != "loss":
        right, name = left.twinx(), metric.replace("_", " ")
        right.set(ylabel=name)
        if 0 <= min(scores) <= max(scores) <= 1:
            right.set(ylim=(0, 1))
        curves.append((right, f"eval_{metric}", f"held-out {name}", "s-", "tab:green"))
    lines = []
    for axes, key, label, style, color in curves:
        points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
        if points:
            lines += axes.plot(*zip(*points, strict=True), style, color=color, label=label)
    if lines:
        left.legend(handles=lines, loc="center right")
    figure.savefig(path)
