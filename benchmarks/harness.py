"""Timing that can be trusted on a noisy machine: implementations take turns, ratios are formed round by round.

One CSV row is one number with all that is needed to repeat it (`COLUMNS`).
"""

import csv
import datetime
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Case:
    """One shape and mode; sizes in elements."""

    mode: str
    num_tokens: int
    hidden_size: int
    bottleneck_dim: int
    dtype: torch.dtype


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
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each function `repeats` times, one after the other in every round, after a warm-up.

    A sample runs the function often enough to last `min_sample_ms`. Every second round goes backwards, so that no
    implementation always runs in the wake of the same neighbour.

    Returns:
        Milliseconds per call, one list per implementation, in the order of the rounds.
    """
    calls = {}
    for name, function in implementations.items():
        function()  # the first call compiles and allocates
        start = clock()
        function()
        once_ms = max((clock() - start) * 1e3, 1e-4)
        calls[name] = max(1, round(min_sample_ms / once_ms))
    samples: dict[str, list[float]] = {name: [] for name in implementations}
    for turn in range(repeats):
        order = list(implementations.items())
        for name, function in order if turn % 2 == 0 else reversed(order):
            start = clock()
            for _ in range(calls[name]):
                function()
            samples[name].append((clock() - start) * 1e3 / calls[name])
    return samples


def rows_of(
    benchmark: str,
    case: Case,
    samples: dict[str, list[float]],
    *,
    subject: str,
    flop: float | None = None,
    metric: str = "time",
) -> list[dict[str, object]]:
    """Turn samples into CSV rows: the time of each, its ratio to `subject` round by round, and GFLOP/s.

    `metric` says which clock was read: "time" (wall) or "cpu time" (of all threads).
    """
    rows = []
    for name, times in samples.items():
        rows.append({"implementation": name, "metric": metric, "unit": "ms", **quantiles(times)})
        if name != subject:
            ratios = [other / own for other, own in zip(times, samples[subject], strict=True)]
            rows.append(
                {"implementation": name, "metric": f"{metric} / {subject}", "unit": "ratio", **quantiles(ratios)}
            )
        if flop is not None:
            rates = quantiles([flop / time_ms / 1e6 for time_ms in times])
            rows.append({"implementation": name, "metric": "throughput", "unit": "GFLOP/s", **rates})
    common = {
        "benchmark": benchmark,
        "mode": case.mode,
        "num_tokens": case.num_tokens,
        "hidden_size": case.hidden_size,
        "bottleneck_dim": case.bottleneck_dim,
        "dtype": str(case.dtype).removeprefix("torch."),
        "repeats": len(samples[subject]),
        **environment(),
    }
    return [{**common, **row} for row in rows]


def environment() -> dict[str, object]:
    """Describe what the numbers depend on."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    build = build_info()
    return {
        "threads": torch.get_num_threads(),
        "device": f"{cpu_name()} ({build['cpu_capability']})",
        "torch": torch.__version__,
        "adapterx": build["version"],
        "commit": head.stdout.strip(),
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
    }


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


def append_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Append rows to a CSV file, with the header where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
