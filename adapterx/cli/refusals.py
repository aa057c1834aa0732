"""How a command ends when it cannot go on: one line, which says what is wrong, and an exit code."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from adapterx.cli.process import PIPE_CLOSED, drop_output
from adapterx.cli.reporting import printable
from adapterx.errors import AdapterxError

EXTRAS = {
    "train": {"transformers", "accelerate", "datasets", "pyarrow", "matplotlib", "typer", "rich"},
    "onnx": {"onnx", "onnxscript", "onnxruntime", "onnx_ir"},
}
WRONG, INTERRUPTED = 2, 130  # exit codes
LONGEST = 2500  # characters of a line: an argument may be as long as the system lets it
_UsageError = typer.BadParameter.__bases__[0]  # typer has its own or click's, depending on its version


def complain(message: str) -> None:
    """Print one line that says what is wrong."""
    line = printable(" ".join(message.split()))
    if len(line) > LONGEST:
        line = f"{line[:LONGEST]} [... {len(line) - LONGEST:,} characters ...]"
    with suppress(OSError):  # nobody may be listening
        print(f"error: {line}", file=sys.stderr, flush=True)


def fail(message: str, code: int = WRONG) -> NoReturn:
    """Print one line that says what is wrong, and end the command."""
    complain(message)
    raise SystemExit(code)


@contextmanager
def errors_in_one_line(command: str) -> Iterator[None]:
    """Turn what a user or a machine can cause into one line; what is our own fault keeps its traceback."""
    try:
        yield
    except AdapterxError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", code=INTERRUPTED)
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        fail(f"this command needs {package}: pip install 'adapterx[{extra}]'")
    except BrokenPipeError:
        drop_output()
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        fail(f"{command}: {where}{error.strerror or error}")
    except (MemoryError, RuntimeError) as error:  # RecursionError is a RuntimeError
        if reason := _too_large(error):
            fail(f"{command}: {reason}")
        raise


def _too_large(error: Exception) -> str | None:
    """Return in words which limit of the machine was met; None: it was something else."""
    said = str(error)
    if isinstance(error, RecursionError):
        return "what was to be read is nested too deeply"
    if isinstance(error, MemoryError) or "can't allocate memory" in said or "out of memory" in said:
        return f"there must be more memory for this ({(said.splitlines() or ['MemoryError'])[0]})"
    return None


class CommandLine(TyperGroup):
    """The commands; a misspelt option or value ends in one line too, and nothing that was typed is read as markup."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command and exit."""
        with errors_in_one_line("adapterx"):  # what a command does not catch itself, such as a full disk under --help
            try:
                sys.exit(super().main(*args, **kwargs | {"standalone_mode": False}) or 0)
            except _UsageError as error:
                sys.exit(_misused(error))
            except typer.Abort:
                raise KeyboardInterrupt from None


def _misused(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return WRONG
    command = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else ""
    path = f"adapterx {command}".strip()
    said = error.format_message().rstrip(".")
    complain(f"{command or 'adapterx'}: {said[:1].lower()}{said[1:]}; see `{path} --help`")
    return WRONG
