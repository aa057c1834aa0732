"""Build and check adapterx on a machine with a GPU, and measure it: everything in one command, within nine minutes.

    python tests/cuda/gpu_check.py --results runs/gpu_check

Builds the operator library in place for this GPU (no network, nothing is installed; with ADAPTERX_LIBRARY that library
is checked instead), runs the tests of tests/cuda, a process for each file, then the benchmarks, Nsight Compute on the
shapes of the targets, and compute-sanitizer on every kernel. A step that fails does not stop the others; one that this
machine has no tool for is "not run". RESULTS then holds summary.json, log.txt, a report of each file of tests and the
CSV files of the benchmarks, ready for benchmarks/results/; while it runs, steps/ has what each step prints. The exit
status is 0 only if tests and sanitizers have passed.
"""

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from step_runner import Deadline, Result, Step, all_passed, run_stages, shortened

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 540.0
DRIVER = "tests/cuda/kernel_driver.py"
SANITIZERS = {"memcheck": 240, "racecheck": 240, "synccheck": 200, "initcheck": 200}  # seconds
# initcheck does not see what cuBLASLt writes, and racecheck breaks inside one of its kernels (both seen on an H100).
OWN_KERNELS_ONLY = ("racecheck", "initcheck")
# Of the shapes of the targets: time, bytes moved, and how much of the bandwidth that is.
METRICS = ("gpu__time_duration.sum", "dram__bytes.sum", "dram__throughput.avg.pct_of_peak_sustained_elapsed")
SANITIZER_ERROR = 86  # exit status


def find_tool(name: str, *folders: str) -> str | None:
    """Return the path of a tool: PATH, then these folders of CUDA_HOME and of the toolkits in /usr/local."""
    homes = [Path(os.environ[key]) for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    homes += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    places = [str(home / folder) for home in homes for folder in folders]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def say(command: Sequence[str]) -> str:
    """Return what a command prints, or why it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} does not run: {error}"
    return (done.stdout or done.stderr).strip()


def describe_machine() -> dict[str, object]:
    """Return what was found: GPU, driver, toolkit, PyTorch, tools."""
    import torch

    nvcc = find_tool("nvcc", "bin")
    found: dict[str, object] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "nvcc": nvcc,
        "nvcc_version": say([nvcc, "--version"]).splitlines()[-1] if nvcc else None,
        "nvidia_smi": say(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]),
        "processors": os.cpu_count(),
        "compute_sanitizer": find_tool("compute-sanitizer", "bin", "compute-sanitizer"),
        "ncu": find_tool("ncu", "bin", "nsight-compute"),
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "architecture": f"{properties.major}.{properties.minor}"}
    return found


def environment_of(machine: dict[str, object]) -> dict[str, str]:
    """Return the environment of the steps: this checkout, toolkit and GPU, and no settings of somebody's tests."""
    kept = ("ADAPTERX_LIBRARY",)
    environment = {key: value for key, value in os.environ.items() if key in kept or not key.startswith("ADAPTERX_")}
    # The build looks for ninja, which stands beside the Python that runs this.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment["PYTHONUNBUFFERED"] = "1"
    environment["ADAPTERX_CUDA"] = "1"
    environment["ADAPTERX_COMMIT"] = os.environ.get("ADAPTERX_COMMIT") or commit()
    environment["TORCH_CUDA_ARCH_LIST"] = str(machine.get("architecture", ""))
    environment.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    home = Path(str(machine["nvcc"])).resolve().parents[1] if machine["nvcc"] else None
    if home is not None and any(home.glob("**/cuda_runtime.h")):  # a toolkit, not a link to its compiler alone
        environment.setdefault("CUDA_HOME", str(home))
    return environment


def commit() -> str:
    """Return the commit of this checkout; empty where there is no repository."""
    if shutil.which("git") is None:
        return ""
    return say(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]) if (ROOT / ".git").exists() else ""


def python(*arguments: str) -> Callable[[float], list[str]]:
    """Return the command of a Python program that needs not know how long it may take."""
    return lambda _: [sys.executable, *arguments]


BUILD = python("setup.py", "build_ext", "--inplace")


def benchmark(program: str, results: Path, *options: str) -> Callable[[float], list[str]]:
    """Return the command of a benchmark, which stops in time by itself: it must import, and may overshoot by a case."""

    def command(limit_s: float) -> list[str]:
        seconds = f"{max(5.0, limit_s - 25.0):.0f}"
        place = ["--device", "cuda", "--results", str(results), "--seconds", seconds]
        return [sys.executable, f"benchmarks/{program}.py", *place, *options]

    return command


def sanitizer_command(path: str, tool: str) -> list[str]:
    """Return the command of a sanitizer. Slow tools look at our kernels only; initcheck must see every write."""
    options = ["--tool", tool, "--error-exitcode", str(SANITIZER_ERROR), "--report-api-errors", "no"]
    options += ["--show-backtrace", "no"]
    if tool in ("racecheck", "synccheck"):
        # Older versions call the option --kernel-regex.
        options += ["--kernel-name" if "--kernel-name" in say([path, "--help"]) else "--kernel-regex", "kns=adapterx"]
    return [path, *options, sys.executable, DRIVER, *(["--without-cublas"] if tool in OWN_KERNELS_ONLY else [])]


def judge_sanitizer(tool: str, code: int, output: str) -> str | None:
    """Return what a sanitizer found. What initcheck says of the kernels of others is not about ours."""
    if "all results are finite" not in output:
        return f"the driver did not end well, exit status {code}: {output[-600:]}"
    places = re.findall(r"^=========\s+at (.+)$", output, re.MULTILINE)
    if tool == "initcheck" and code == SANITIZER_ERROR and not any("adapterx" in place for place in places):
        return None
    if code == 0:
        return None
    first = output.find("=========", output.find("COMPUTE-SANITIZER") + 1)
    return f"exit status {code}; the first report: {output[first : first + 600]}"


def sanitizer_steps(path: str | None) -> list[Step]:
    """Return one step per sanitizer; they run side by side."""
    missing = None if path else "compute-sanitizer was not found: PATH, CUDA_HOME, /usr/local/cuda*"
    # Each tensor gets memory of its own, so that a byte behind its end is nobody's.
    own_memory = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Step(
            tool,
            lambda _, tool=tool: sanitizer_command(str(path), tool),
            limit,
            share=1,
            environment=own_memory,
            judge=partial(judge_sanitizer, tool),
            missing=missing,
        )
        for tool, limit in SANITIZERS.items()
    ]


def ncu_step(path: str | None) -> Step:
    """Return the step that reads the counters of the memory."""
    options = ["--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "raw"]

    def judge(code: int, output: str) -> str | None:
        if "ERR_NVGPUCTRPERM" in output:
            return "this machine does not permit performance counters"
        return None if read_counters(output) else f"no counters, exit status {code}"

    return Step(
        "ncu",
        lambda _: [str(path), *options, "--metrics", ",".join(METRICS), sys.executable, DRIVER, "--targets"],
        60,
        required=False,
        judge=judge,
        missing=None if path else "ncu was not found: PATH, CUDA_HOME, /usr/local/cuda*",
    )


def read_counters(output: str) -> list[dict[str, str]]:
    """Return the kernels and their counters from the CSV that ncu prints between the program's own lines."""
    lines = output.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return []
    rows = [row for row in csv.DictReader(line for line in lines[first:] if line.startswith('"')) if row["ID"]]
    return [{"kernel": row["Kernel Name"][:160], **{name: row.get(name, "") for name in METRICS}} for row in rows]


def make_stages(machine: dict[str, object], results: Path) -> list[list[Step]]:
    """Return what to do; the steps of a stage run side by side."""
    info = "import adapterx, json; print(json.dumps(adapterx.build_info()))"
    build = [] if os.environ.get("ADAPTERX_LIBRARY") else [[Step("build", BUILD, 240, needed=True)]]
    return [
        *build,
        [Step("build_info", python("-c", info), 60, needed=True)],
        [test_step(path, results) for path in sorted((ROOT / "tests" / "cuda").glob("test_*.py"))],
        [Step("bench_op", benchmark("bench_op", results), 170, required=False, share=4)],
        [Step("bench_op_sweep", benchmark("bench_op", results, "--sweep"), 120, required=False, share=3)],
        [Step("bench_grouped", benchmark("bench_grouped", results, "--repeats", "21"), 60, required=False, share=1.5)],
        [Step("bench_model", benchmark("bench_model", results), 75, required=False, share=1.5)],
        [ncu_step(machine["ncu"])],
        [Step("coverage", python(DRIVER, "--coverage"), 60)],
        sanitizer_steps(machine["compute_sanitizer"]),
    ]


def test_step(path: Path, results: Path) -> Step:
    """Return the step of a file of tests: in a process of its own, for a broken GPU context breaks all later tests."""
    report = ["--junitxml", str(results / f"{path.stem}.xml"), "-o", "junit_family=xunit2"]
    # The project's pytest turns warnings into errors, which other versions of its libraries may raise on import.
    options = ["-W", "default", "--continue-on-collection-errors", "-o", "faulthandler_timeout=90"]
    pytest = ["-m", "pytest", str(path.relative_to(ROOT)), "-v", "--tb=short", "-p", "no:cacheprovider"]
    return Step(path.stem, python(*pytest, *options, *report), 270)


def count_tests(folder: Path) -> dict[str, int] | None:
    """Return the numbers of tests, failures, errors and skipped tests in the reports that were written, if any."""
    suites = []
    for path in folder.glob("test_*.xml"):
        with contextlib.suppress(ElementTree.ParseError):
            suites += ElementTree.parse(path).getroot().iter("testsuite")
    if not suites:
        return None
    return {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }


def write_summary(
    results: Sequence[Result], machine: dict[str, object], environment: dict[str, str], folder: Path
) -> None:
    """Write summary.json: what was found, what became of each step, and the numbers of tests and counters."""
    outputs = {result.name: result.output for result in results}
    steps = [{key: value for key, value in asdict(result).items() if key != "output"} for result in results]
    lines = outputs.get("build_info", "").splitlines()
    summary = {
        "passed": all_passed(results),
        "commit": environment["ADAPTERX_COMMIT"],
        "machine": machine,
        "build_info": json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None,
        "steps": steps,
        "tests": count_tests(folder),
        "counters": read_counters(outputs.get("ncu", "")),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def write_log(results: Sequence[Result], path: Path) -> None:
    """Write what all steps have printed."""
    parts = [f"==== {r.name}: {r.status} ({r.seconds:.1f} s) {r.words}\n{shortened(r.output)}\n" for r in results]
    path.write_text("".join(parts), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder for what comes out")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything (default %(default).0f)")
    options = parser.parse_args(arguments)
    deadline, folder = Deadline(options.seconds), options.results.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    environment = environment_of(machine)
    print(json.dumps(machine, indent=1), flush=True)
    if machine["gpu"] is None:
        print("gpu_check: PyTorch must find a GPU, got none", file=sys.stderr)
        return 2

    def report(results: list[Result], new: list[Result]) -> None:
        write_summary(results, machine, environment, folder)
        write_log(results, folder / "log.txt")
        for result in new:
            print(f"{result.name}: {result.status} ({result.seconds:.0f} s) {result.words[:300]}", flush=True)

    results = run_stages(make_stages(machine, folder), deadline, environment, ROOT, report, folder / "steps")
    print("gpu_check: " + ("passed" if all_passed(results) else "NOT passed"), count_tests(folder))
    return 0 if all_passed(results) else 1


if __name__ == "__main__":
    sys.exit(main())
