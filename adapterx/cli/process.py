"""What the command does as a process: its streams, and the signals that end it. Needs the standard library only."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

PIPE_CLOSED = 141  # 128 and the number of SIGPIPE, as a shell tells it


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived. It passes through every `finally`: the cursor comes back, half-written files go."""


def is_main_process() -> bool:
    """Return whether this process writes files and talks (torchrun starts several)."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Run the command inside: streams that print everything, and an end without a traceback by signals and pipes."""
    _open_streams()
    try:
        try:
            yield
        finally:
            _flush()
    except KeyboardInterrupt:  # while the command was imported; later it tells so itself
        _leave("interrupted", 128 + signal.SIGINT)
    except Terminated as end:
        _leave("terminated", end.code)


def _flush() -> None:
    """Bring out what was printed while its failing can still be told."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        drop_output()
        _leave(f"standard output: {error.strerror}", 2)


def ready() -> None:
    """From now on end by exceptions at signals, so that every `finally` runs; what nohup ignores stays ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in _ending():
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)


def drop_output() -> None:
    """Send what is still to be printed nowhere: its reader has gone, and the end of the interpreter would try again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _ending() -> list[int]:
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    for other in _ending():
        signal.signal(other, signal.SIG_IGN)  # a second one would cut the tidying short
    raise Terminated(128 + number)


def _leave(word: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        print(f"error: {word}", file=sys.stderr, flush=True)
    sys.exit(code)


def _open_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed, so that the next file opened would take its place and be read or printed into
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - print would take standard output instead
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character gets its number
