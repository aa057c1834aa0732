"""First contact with a GPU: what matters most, within 200 seconds, each fact on the disk as soon as it is known.

    python tests/cuda/gpu_first.py --results runs/gpu-first

In this order: the machine and what its memory and tensor cores reach; the instructions of ptx.cuh on known integers and
every path against float64, side by side, a process each; the device alone: every path on the shapes of the targets, in
CUDA graphs; Nsight Compute on the headline; compute-sanitizer's memcheck, in the time that is left. Nothing that may
hang comes before something that cannot. RESULTS then holds facts.jsonl (one fact a line), log.txt (what all steps
printed) and a CSV file with the times. The exit status is 0 if all that could run was right.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from facts import write_fact
from gpu_machine import ROOT, find_tool
from gpu_stage import CARRIED, check_paths, have_machine_and_library, program, run_stage
from gpu_tools import in_short, ncu_step, read_counters, sanitizer_step
from step_runner import Runner, Step

SECONDS = 195.0
PATHS = (
    "auto",
    *(f"tile:{rows}x{blocks}" for rows in (16, 64) for blocks in (1, 8)),
    *(f"tile:32x{blocks}" for blocks in (1, 2, 4, 8)),
    "cublas",
    "plain",
    "segments",
)
PROFILED = ("tile:32x8", "tile:64x8", "cublas")
CHECKED_BY_MEMCHECK = "tile:32x8,tile:64x8,tile:16x8"
SELF_TEST = "ptx_self_test"
TIMES_S = 75.0
# Seconds that are left to later parts even where the library had to be built first.
CHECKS_LEAVE_S, TIMES_LEAVE_S = 45.0, 25.0


def check(runner: Runner, folder: Path) -> set[str]:
    """Check the instructions and every path; return the paths that break or hang their process."""
    broken = check_paths(runner, folder, PATHS, CHECKS_LEAVE_S, *self_test_steps(runner))
    for line in runner.results[SELF_TEST].output.splitlines():
        if line.startswith("{"):  # one a group of instructions
            write_fact("instructions", **json.loads(line))
    return broken


def self_test_steps(runner: Runner) -> list[Step]:
    """Return the step of the program that runs the instructions of ptx.cuh: carried beside the library, or built."""
    carried = Path(runner.environment.get(CARRIED) or ROOT / "nowhere").resolve().with_name(SELF_TEST)
    source, built = ROOT / "tests" / "cuda" / f"{SELF_TEST}.cu", ROOT / "build" / SELF_TEST
    nvcc = find_tool("nvcc")
    if carried.is_file():
        return [Step(SELF_TEST, lambda _: [str(carried)], 30.0)]
    if not source.is_file():
        return [Step(SELF_TEST, lambda _: [], 0.0, missing="this checkout has no program for it")]
    if nvcc is None:
        return [Step(SELF_TEST, lambda _: [], 0.0, missing="it was not carried, and there is no nvcc to build it")]
    built.parent.mkdir(exist_ok=True)
    build = f"'{nvcc}' -std=c++17 -arch=native -o '{built}' '{source}' && '{built}'"
    return [Step(SELF_TEST, lambda _: ["sh", "-c", build], 60.0, reserve_s=CHECKS_LEAVE_S)]


def time_paths(runner: Runner, folder: Path, without: set[str]) -> None:
    """Time all paths but those that would end the process."""

    def command(limit_s: float) -> list[str]:
        seconds = f"{max(5.0, limit_s - 12.0):.0f}"
        options = ["--results", str(folder), "--seconds", seconds, "--without", ",".join(sorted(without))]
        return program("time_paths.py", *options)(limit_s)

    runner.run(Step("times", command, TIMES_S, attempts=6, reserve_s=TIMES_LEAVE_S))


def profile(runner: Runner, without: set[str]) -> None:
    """Read the counters of the headline's kernels, path by path."""
    for path in PROFILED:
        step = ncu_step(path, 30.0, reserve_s=10.0)
        if path in without:
            runner.skip(step, "this path hung, or broke its process, before")
            continue
        for row in read_counters(runner.run(step)[0].output):
            write_fact("kernel", path=path, kernel=row["kernel"], **in_short(row))
            write_fact("counters", path=path, **row, shown=False)


def work(runner: Runner, folder: Path) -> None:
    """Find out everything, in the order of the head of this file."""
    have_machine_and_library(runner)
    broken = check(runner, folder)
    time_paths(runner, folder, broken)
    profile(runner, broken)
    runner.run(sanitizer_step("memcheck", 60.0, CHECKED_BY_MEMCHECK, required=False))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder for what comes out")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything (default %(default).0f)")
    options = parser.parse_args(arguments)
    return run_stage("gpu-first", options.seconds, options.results, work)


if __name__ == "__main__":
    sys.exit(main())
