"""Everything about adapterx on a machine with a GPU, within 500 seconds: tests, benchmarks, sanitizers.

    python tests/cuda/gpu_check.py --results runs/gpu-check

In this order: the machine and its library (the one that ADAPTERX_LIBRARY names, else one built in place); every path
against float64, a process each; the tests of tests/cuda in parts, side by side, those of more than 2^31 elements
alone; the sweep behind the plan table; the benchmarks of the operator, of many adapters, of a model; which kernels no
problem of the driver has launched; compute-sanitizer, two tools at a time. A step that fails does not stop the others;
one that this machine has no tool for is "not run". RESULTS then holds facts.jsonl (one fact a line, each test too),
log.txt and the CSV files of the benchmarks, ready for benchmarks/results/. The exit status is 0 only if tests and
sanitizers have passed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from facts import write_fact
from gpu_first import PATHS
from gpu_machine import ROOT, python
from gpu_stage import check_paths, facts_of, have_machine_and_library, run_stage
from gpu_tools import DRIVER, SANITIZERS, count_hazards, sanitizer_step
from step_runner import Runner, Step

SECONDS = 490.0
# The parts in their order, and the seconds that each must find however long those before it take.
NEEDED_S = {
    **{"paths": 20.0, "tests": 70.0, "sweep": 70.0, "operator": 50.0, "grouped": 15.0, "model": 25.0},
    **{"coverage": 15.0, "sanitizers": 90.0},
}
ORDER = tuple(NEEDED_S)
# So many processes share the tests of a file.
PARTS = {"test_cuda_operator": 4, "test_cuda_grouped": 2, "test_cuda_runtime": 2}
LARGE = "two_to_the_31"  # these tests need the memory for themselves
TESTS_S, LARGE_S = 110.0, 45.0
# The project's pytest turns warnings into errors, which other versions of its libraries may raise on import.
PYTEST = ("-W", "default", "--continue-on-collection-errors", "-q", "--tb=short", "-p", "no:cacheprovider")
# Programs of benchmarks/ with their options, and the seconds that they may take at most.
BENCHMARKS = {
    "sweep": (("bench_op", "--sweep", "--resume"), 150.0),
    "operator": (("bench_op", "--repeats", "21"), 110.0),
    "grouped": (("bench_grouped", "--repeats", "11"), 40.0),
    "model": (("bench_model",), 60.0),
}


def step_of_tests(file: str, part: int, parts: int, reserve_s: float = 0.0) -> Step:
    """Return the step of a part of a file of tests, in a process of its own: a broken context breaks later tests."""
    options = [*PYTEST, "-o", "faulthandler_timeout=60", "-k", f"not {LARGE}"]
    environment = {"ADAPTERX_TEST_PART": f"{part}/{parts}"}
    name = file if parts == 1 else f"{file} {part}/{parts}"
    command = python("-m", "pytest", f"tests/cuda/{file}.py", *options)
    return Step(name, lambda _: command, TESTS_S, environment=environment, judge=judge_tests, reserve_s=reserve_s)


def large_step(reserve_s: float = 0.0) -> Step:
    """Return the step of the tests that need the memory for themselves."""
    command = python("-m", "pytest", "tests/cuda", *PYTEST, "-k", LARGE)
    return Step("large tensors", lambda _: command, LARGE_S, judge=judge_tests, reserve_s=reserve_s)


def judge_tests(code: int, output: str) -> str | None:
    """Return what is wrong with a run of pytest; that a part has no test is not."""
    return None if code in (0, 5) else f"exit status {code}: {output[-400:]}"


def run_tests(runner: Runner, folder: Path, reserve_s: float) -> None:
    """Run the tests of tests/cuda side by side, then the large ones alone, and count."""
    if find_spec("pytest") is None:
        runner.start(Step("tests", lambda _: [], 0.0, missing="pytest is not installed here"))
        return
    files = sorted(path.stem for path in (ROOT / "tests" / "cuda").glob("test_*.py"))
    parts = [(file, part, PARTS.get(file, 1)) for file in files for part in range(PARTS.get(file, 1))]
    runner.run(*(step_of_tests(*part, reserve_s) for part in parts))
    runner.run(large_step(reserve_s))
    write_fact("tests", **count_tests(folder))


def count_tests(folder: Path) -> dict[str, int]:
    """Return how many tests passed, failed, were skipped."""
    outcomes = [fact["outcome"] for fact in facts_of(folder, "test")]
    return {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")}


def benchmark_command(name: str, results: Path, without: set[str]) -> Callable[[float], list[str]]:
    """Return the command of a benchmark, which stops in time by itself: it must import, and may overshoot by a case."""
    file, *options = BENCHMARKS[name][0]
    options += ["--without", ",".join(sorted(without))] if name == "sweep" else []

    def command(limit_s: float) -> list[str]:
        seconds = f"{max(5.0, limit_s - 20.0):.0f}"
        place = ["--device", "cuda", "--results", str(results), "--seconds", seconds]
        return python(f"benchmarks/{file}.py", *place, *options)

    return command


def run_benchmark(runner: Runner, name: str, folder: Path, without: set[str], reserve_s: float) -> None:
    """Measure, the device alone, without the paths that break or hang their process."""
    command, limit = benchmark_command(name, folder, without), BENCHMARKS[name][1]
    attempts = 3 if name == "sweep" else 1  # the others would measure everything again
    runner.run(Step(f"bench {name}", command, limit, required=False, attempts=attempts, reserve_s=reserve_s))


def run_sanitizers(runner: Runner) -> None:
    """Run the sanitizers, two at a time, and count hazards."""
    tools = list(SANITIZERS)
    for pair, reserve in ((tools[:2], runner.left() / 2), (tools[2:], 0.0)):
        for result in runner.run(*(sanitizer_step(tool, SANITIZERS[tool], reserve_s=reserve) for tool in pair)):
            if result.output:
                write_fact("sanitizer", tool=result.name, status=result.status, reports=count_hazards(result.output))


def work(runner: Runner, folder: Path, wanted: Sequence[str]) -> None:
    """Find out what is wanted, in the order of the head of this file."""

    def kept(part: str) -> float:
        """Return the seconds that what follows a part must find."""
        later = ORDER[ORDER.index(part) + 1 :]
        return sum(NEEDED_S[name] for name in later if name in wanted) * runner.seconds / SECONDS

    have_machine_and_library(runner)
    broken = check_paths(runner, folder, PATHS, kept("paths")) if "paths" in wanted else set()
    if "tests" in wanted:
        run_tests(runner, folder, kept("tests"))
    for name in BENCHMARKS:
        if name in wanted:
            run_benchmark(runner, name, folder, broken, kept(name))
    if "coverage" in wanted:
        runner.run(Step("coverage", lambda _: python(DRIVER, "--coverage"), 60.0, reserve_s=kept("coverage")))
    if "sanitizers" in wanted:
        run_sanitizers(runner)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder for what comes out")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything (default %(default).0f)")
    parser.add_argument("--parts", nargs="+", choices=ORDER, default=ORDER, help="these alone (default: all)")
    options = parser.parse_args(arguments)
    return run_stage(
        "gpu-check", options.seconds, options.results, lambda runner, folder: work(runner, folder, options.parts)
    )


if __name__ == "__main__":
    sys.exit(main())
