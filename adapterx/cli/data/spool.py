"""Lists that lie on a disk, for what is larger than memory."""

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapterx.errors import speaker


class Spool(Sequence[Any]):
    """A list of JSON values in a file without a name, which is gone when the process ends, however it ends.

    In memory is where each value ends, 8 bytes. Values are read one by one, by their position. What JSON has no form
    for, such as a date, comes back as its text.

    Args:
        folder: on whose disk the file lies; there may be no room in the usual place for temporary files, or it may be
            memory itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it is closed with the list
        weakref.finalize(self, self._file.close)
        self._ends, self._written = array("Q"), True

    def append(self, value: Any) -> None:
        """Add a value."""
        content = json.dumps(value, default=str).encode()
        self._file.write(content)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(content))
        self._written = False

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, position: Any) -> Any:
        if not -len(self) <= position < len(self):
            raise IndexError(f"{speaker()}: position must lie between {-len(self)} and {len(self) - 1}, got {position}")
        position %= len(self)
        if not self._written:
            self._file.flush()
            self._written = True
        start = self._ends[position - 1] if position else 0
        # Not seek and read: a process that was forked shares the place in the file.
        return json.loads(os.pread(self._file.fileno(), self._ends[position] - start, start))


class Chosen(Sequence[Any]):
    """Values of another list, by their positions there."""

    def __init__(self, values: "OnDisk", positions: Sequence[int]) -> None:
        self.folder: Path = values.folder
        self._values, self._positions = values, array("Q", positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: Any) -> Any:
        return self._values[self._positions[position]]


class Changed(Sequence[Any]):
    """What becomes of the values of another list, each when it is asked for."""

    def __init__(self, values: "OnDisk", change: Callable[[Any], Any]) -> None:
        self.folder: Path = values.folder
        self._values, self._change = values, change

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, position: Any) -> Any:
        return self._change(self._values[position])


OnDisk = Spool | Chosen | Changed


def chosen(values: Sequence[Any], positions: Sequence[int]) -> Sequence[Any]:
    """Return the values at these positions: a list of a list, else what reads them when they are asked for."""
    return Chosen(values, positions) if isinstance(values, OnDisk) else [values[i] for i in positions]


def changed(values: Sequence[Any], change: Callable[[Any], Any]) -> Sequence[Any]:
    """Return what becomes of values: a list of a list, else what makes them when they are asked for."""
    return Changed(values, change) if isinstance(values, OnDisk) else [change(value) for value in values]


def empty_like(values: Sequence[Any]) -> "list[Any] | Spool":
    """Return an empty list where values are in memory, and one on the same disk where they are on a disk."""
    return Spool(values.folder) if isinstance(values, OnDisk) else []
