"""What a person sees: progress, tables, the learning curve; and errors as one line."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from adapterx.cli.runs import is_main_process
from adapterx.errors import AdapterxError

EXTRAS = {
    "train": {"transformers", "accelerate", "datasets", "pyarrow", "matplotlib", "typer", "rich"},
    "onnx": {"onnx", "onnxscript", "onnxruntime", "onnx_ir"},
}


def say(message: str) -> None:
    """Print a line for a person, once on several devices."""
    if is_main_process():
        Console(soft_wrap=True, highlight=False, markup=False).print(message)


def fail(message: str, code: int = 2) -> None:
    """Print one line that says what is wrong, and end the command."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn what a user can cause into one line and exit code 2; what is our own fault keeps its traceback."""
    try:
        yield
    except AdapterxError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        fail(f"this command needs {package}: pip install 'adapterx[{extra}]'")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            raise
        fail(f"{error.strerror}: {error.filename or 'while writing'}")


def print_figures(title: str, figures: dict[str, object]) -> None:
    """Print a two-column table."""
    if not is_main_process():
        return
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)


def draw_learning_curve(history: list[dict[str, float]], path: Path) -> None:
    """Draw training loss and held-out accuracy over the epochs."""
    from matplotlib.figure import Figure  # not pyplot: it would look for a display and keep global state

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    left = figure.add_subplot(xlabel="epoch", ylabel="loss")
    curves = [(left, "loss", "training loss", "-", "C0"), (left, "eval_loss", "held-out loss", "o--", "C1")]
    if any("eval_accuracy" in entry for entry in history):
        right = left.twinx()
        right.set(ylabel="accuracy", ylim=(0, 1))
        curves.append((right, "eval_accuracy", "held-out accuracy", "s-", "tab:green"))
    lines = []
    for axes, key, label, style, color in curves:
        points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
        if points:
            lines += axes.plot(*zip(*points, strict=True), style, color=color, label=label)
    if lines:
        left.legend(handles=lines, loc="center right")
    figure.savefig(path)
