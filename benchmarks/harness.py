"""Timing that can be trusted on a noisy machine: implementations take turns, ratios are formed round by round.

One CSV row is one number with all that is needed to repeat it (`COLUMNS`). A `Machine` says where functions run and how
their time is read; `cuda_timing.py` makes that of a GPU.
"""

import contextlib
import csv
import datetime
import faulthandler
import functools
import itertools
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adapterx import build_info

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    *("benchmark", "implementation", "mode", "metric", "unit"),
    *("num_tokens", "hidden_size", "bottleneck_dim", "dtype"),
    *("median", "p20", "p80", "repeats", "threads"),
    *("device", "torch", "adapterx", "commit", "date"),
)
MAX_COPIES = 128  # of a case's tensors, where they are small

Sampler = Callable[[Callable[[], object], int], float]  # (function, number of calls) -> milliseconds per call


@dataclass(frozen=True)
class Case:
    """One shape and mode; sizes in elements."""

    mode: str
    num_tokens: int
    hidden_size: int
    bottleneck_dim: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Machine:
    """Where functions run, and how their time is read.

    Args:
        device: as PyTorch names it.
        name: what the rows call it.
        slug: its name in the names of files; empty for the processor.
        sample: reads the time of some calls.
        cache_bytes: of the last-level cache that repeated calls shall not find their inputs in; 0 lets them.
    """

    device: str
    name: str
    slug: str
    sample: Sampler
    cache_bytes: int = 0

    def results(self, folder: Path, benchmark: str, kind: str = "") -> Path:
        """Return the file that the rows of a benchmark belong into."""
        return folder / ("_".join(filter(None, (benchmark, self.device, kind, self.slug))) + ".csv")

    def copies(self, input_bytes: int) -> int:
        """Return how many sets of inputs of this size are more than twice the cache."""
        return min(MAX_COPIES, 1 + 2 * self.cache_bytes // max(input_bytes, 1))


class Deadline:
    """The time that a benchmark may take; it skips the rest then, and says so."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.end = None if seconds is None else clock() + seconds

    def passed(self) -> bool:
        return self.end is not None and self.clock() >= self.end


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """End the process where what is inside takes longer: a kernel that hangs holds the thread that waits for it."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def host_sampler(clock: Callable[[], float] = time.perf_counter) -> Sampler:
    """Return a sampler that reads a clock of the host, in seconds, before and after."""

    def sample(function: Callable[[], object], calls: int) -> float:
        start = clock()
        for _ in range(calls):
            function()
        return (clock() - start) * 1e3 / calls

    return sample


def cpu_machine(clock: Callable[[], float] = time.perf_counter) -> Machine:
    """Return the processor; its caches are left as they are."""
    return Machine("cpu", cpu_label(), "", host_sampler(clock))


@contextlib.contextmanager
def pinned(path: str) -> Iterator[None]:
    """Pin the path that the operators take on a GPU (ADAPTERX_CUDA_PATH, which is read at every call)."""
    before = os.environ.get("ADAPTERX_CUDA_PATH")
    os.environ["ADAPTERX_CUDA_PATH"] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ["ADAPTERX_CUDA_PATH"]
        else:
            os.environ["ADAPTERX_CUDA_PATH"] = before


def rotate(functions: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a function that calls the given ones one after the other, a call each, round and round."""
    turns = itertools.cycle(functions)
    return lambda: next(turns)()


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the 20th and 80th percentile."""
    ordered = sorted(values)
    pick = [ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.8)]
    return {"median": statistics.median(ordered), "p20": pick[0], "p80": pick[1]}


def time_in_turns(
    implementations: dict[str, Callable[[], object]],
    *,
    repeats: int,
    min_sample_ms: float = 5.0,
    sample: Sampler | None = None,
    contexts: dict[str, Callable[[], contextlib.AbstractContextManager]] | None = None,
) -> dict[str, list[float]]:
    """Time each function `repeats` times, one after the other in every round, after a warm-up.

    A sample runs the function often enough to last `min_sample_ms`. Every second round goes backwards, so that no
    implementation always runs in the wake of the same neighbour. `contexts` are entered around the samples of some.

    Returns:
        Milliseconds per call, one list per implementation, in the order of the rounds.
    """
    sample = sample or host_sampler()
    contexts = contexts or {}
    calls = {}
    for name, function in implementations.items():
        with contexts.get(name, contextlib.nullcontext)():
            function()  # the first call compiles and allocates
            calls[name] = max(1, round(min_sample_ms / max(sample(function, 1), 1e-4)))
    samples: dict[str, list[float]] = {name: [] for name in implementations}
    for turn in range(repeats):
        order = list(implementations.items())
        for name, function in order if turn % 2 == 0 else reversed(order):
            with contexts.get(name, contextlib.nullcontext)():
                samples[name].append(sample(function, calls[name]))
    return samples


def ratio_rows(samples: dict[str, list[float]], metric: str, subject: str, limit: str | None) -> list[dict]:
    """Return the ratios, formed round by round: of the others to the subject, and of all to the limit."""
    rows = []

    def add(name: str, other: str) -> None:
        ratios = [one / two for one, two in zip(samples[name], samples[other], strict=True)]
        rows.append({"implementation": name, "metric": f"{metric} / {other}", "unit": "ratio", **quantiles(ratios)})

    for name in samples:
        if name not in (subject, limit):
            add(name, subject)
        if limit in samples and name != limit:
            add(name, limit)
    return rows


def rows_of(
    benchmark: str,
    case: Case,
    samples: dict[str, list[float]],
    *,
    subject: str,
    flop: float | None = None,
    moved_bytes: float | None = None,
    limit: str | None = None,
    metric: str = "time",
    machine: Machine | None = None,
) -> list[dict[str, object]]:
    """Turn samples into CSV rows: the time of each, ratios round by round, GFLOP/s and GB/s.

    Args:
        benchmark: name of the benchmark.
        case: shape and mode.
        samples: milliseconds per call.
        subject: the implementation that the others are divided by.
        flop: operations of one call.
        moved_bytes: bytes that one call at least reads and writes.
        limit: the implementation that all others are divided by, such as a copy of these bytes.
        metric: which clock was read: "time", or "cpu time" (of all threads).
        machine: where it ran; the processor unless given.
    """
    rows: list[dict[str, object]] = []
    for name, times in samples.items():
        rows.append({"implementation": name, "metric": metric, "unit": "ms", **quantiles(times)})
        if flop is not None and name != limit:
            rates = quantiles([flop / time_ms / 1e6 for time_ms in times])
            rows.append({"implementation": name, "metric": "throughput", "unit": "GFLOP/s", **rates})
        if moved_bytes is not None:
            rates = quantiles([moved_bytes / time_ms / 1e6 for time_ms in times])
            rows.append({"implementation": name, "metric": "bandwidth", "unit": "GB/s", **rates})
    rows += ratio_rows(samples, metric, subject, limit)
    common = describe(benchmark, case, len(next(iter(samples.values()))), machine)
    return [{**common, **row} for row in rows]


def describe(benchmark: str, case: Case, repeats: int, machine: Machine | None = None) -> dict[str, object]:
    """Return the columns that all rows of a case share."""
    return {
        "benchmark": benchmark,
        "mode": case.mode,
        "num_tokens": case.num_tokens,
        "hidden_size": case.hidden_size,
        "bottleneck_dim": case.bottleneck_dim,
        "dtype": str(case.dtype).removeprefix("torch."),
        "repeats": repeats,
        **environment(machine),
    }


def environment(machine: Machine | None = None) -> dict[str, object]:
    """Describe what the numbers depend on."""
    return {
        "threads": torch.get_num_threads(),
        "device": cpu_label() if machine is None else machine.name,
        "torch": torch.__version__,
        "adapterx": build_info()["version"],
        "commit": commit(),
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
    }


@functools.cache
def commit() -> str:
    """Return the commit that is measured; where there is no repository, ADAPTERX_COMMIT says it."""
    if "ADAPTERX_COMMIT" in os.environ:
        return os.environ["ADAPTERX_COMMIT"]
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def cpu_label() -> str:
    """Return the processor's name and the instruction set in use."""
    return f"{cpu_name()} ({build_info()['cpu_capability']})"


def cpu_name() -> str:
    """Return the processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def append_rows(path: Path, rows: list[dict[str, object]], columns: Sequence[str] = COLUMNS) -> None:
    """Append rows to a CSV file, with the header where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
