"""Read several files that belong together while others may be replacing them, without a lock and without waiting."""

import itertools
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from adapterx.errors import CheckpointError, speaker

_T = TypeVar("_T")
_TICK = 0.02  # seconds; file systems count time in ticks of up to 0.01 s, within which a change may not show
_TRIES, _PATIENCE = 200, 30.0  # both are to be used up, the second in seconds


def settled(read: Callable[[], _T], watched: Callable[[], Iterable[Path]]) -> _T:
    """Return what `read` returns; if it fails while others replace the files, it begins again.

    Damage is believed only when two attempts in a row, a tick of the clock apart, met the same files.

    Args:
        read: opens the files anew each time.
        watched: returns the files that it may read, whether they are there or not.

    Raises:
        CheckpointError: what `read` raised; or the files never stood still.
    """
    failed: list[object] | None = None
    started = time.monotonic()
    for attempt in itertools.count(1):
        before = [_state(path) for path in watched()]
        try:
            return read()
        except CheckpointError as error:
            reason = error
        if before != [_state(path) for path in watched()]:
            failed = None
        elif before == failed:
            raise reason
        else:
            failed = before
            time.sleep(_TICK)
        if attempt >= _TRIES and time.monotonic() - started >= _PATIENCE:
            break
    raise CheckpointError(f"{speaker()}: files must not be replaced again and again while they are read: {reason}")


def _state(path: Path) -> tuple[str, tuple[int, ...] | None]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # absent, or no path at all
        return str(path), None
    return str(path), (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
