"""What a run on a GPU finds out: one JSON object a line, in one file, on the disk as soon as it is known.

Several processes write into the file that ADAPTERX_FACTS names; each line is one write at its end, so whichever of them
is killed, the lines of the others stay whole. Most are printed as well.
"""

import fcntl
import json
import math
import os
import sys
import time
from pathlib import Path

PLACE = "ADAPTERX_FACTS"
BEGIN = "ADAPTERX_FACTS_BEGIN"  # seconds since the epoch, from which the times of the lines count
PRINTED = 700  # characters of a line that are shown


def plain(value: object) -> object:
    """Return a value that JSON has: what is not finite becomes a word, what it does not know its own text.

    Six digits are kept of a number.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def write_fact(kind: str, *, shown: bool = True, **values: object) -> None:
    """Write one fact, and print it if it is to be shown; without a file it is only printed."""
    now = time.time()
    seconds = round(now - float(os.environ.get(BEGIN) or now), 1)
    line = json.dumps({"fact": kind, "at_s": seconds, **plain(values)})
    if shown:
        print(line if len(line) <= PRINTED else line[:PRINTED] + " ...", flush=True)
    if not os.environ.get(PLACE):
        return
    try:
        file = os.open(os.environ[PLACE], os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file).st_size
            whole = size == 0 or os.pread(file, 1, size - 1) in (b"\n", b"")  # else a full disk has cut a line off
            os.write(file, (b"" if whole else b"\n") + line.encode() + b"\n")
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:  # a full disk must not end what can still be printed
        print(f"facts: not written: {error}", file=sys.stderr, flush=True)


def read_facts(path: Path, kind: str | None = None) -> list[dict]:
    """Return the facts of a file, of one kind or all; a line that was cut off is none."""
    found = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    for line in lines:
        try:
            fact = json.loads(line)
        except ValueError:
            continue
        if isinstance(fact, dict) and kind in (None, fact.get("fact")):
            found.append(fact)
    return found
