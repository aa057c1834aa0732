"""The steps of the tools: compute-sanitizer on every kernel, Nsight Compute on the shapes of the targets.

Slow tools look at our kernels only. initcheck must see every write, yet does not see those of cuBLASLt, and racecheck
breaks inside one of its kernels (both seen on an H100): these two run without that path. racecheck knows nothing of
some barriers that kernels may use: its hazards are counted, and required to be none only where that is asked for.
"""

import csv
import re
from functools import partial

from gpu_machine import find_tool, python, say
from step_runner import Step

DRIVER = "tests/cuda/kernel_driver.py"
SANITIZERS = {"memcheck": 240.0, "racecheck": 240.0, "synccheck": 200.0, "initcheck": 200.0}  # seconds
REQUIRED = ("memcheck", "initcheck")
OWN_KERNELS_ONLY = ("racecheck", "initcheck")
SANITIZER_ERROR = 86  # exit status
SECTIONS = ("SpeedOfLight", "WarpStateStats", "SchedulerStats", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats")
TIME, BYTES, SHARE = METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
)
# Of all counters, those that a line about a kernel has, where ncu knows them.
SHORT = {
    "ns": TIME,
    "bytes": BYTES,
    "share": SHARE,
    "issue": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "shared_pipe": "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
    "registers": "launch__registers_per_thread",
    "clusters": "launch__cluster_max_active",
}
NO_COUNTERS = "ERR_NVGPUCTRPERM"
NOT_A_COUNTER = ("ID", "Process ID", "Process Name", "Host Name", "Context", "Stream", "Device", "CC", "Section Name")


def not_found(tool: str) -> str | None:
    """Return words for a tool that this machine has not."""
    found = find_tool(tool)
    return None if found else f"{tool} was not found: PATH, CUDA_HOME, /usr/local/cuda*, /opt/nvidia/nsight-compute"


def sanitizer_command(tool: str, paths: str = "") -> list[str]:
    """Return the command of a sanitizer, on all problems of the driver or those of some paths."""
    program = find_tool("compute-sanitizer") or "compute-sanitizer"
    options = ["--tool", tool, "--error-exitcode", str(SANITIZER_ERROR), "--report-api-errors", "no"]
    options += ["--show-backtrace", "no"]
    if tool in ("racecheck", "synccheck"):
        # Older versions call the option --kernel-regex.
        options += [
            "--kernel-name" if "--kernel-name" in say([program, "--help"]) else "--kernel-regex",
            "kns=adapterx",
        ]
    driver = python(DRIVER, *(["--without-cublas"] if tool in OWN_KERNELS_ONLY else []))
    return [program, *options, *driver, *(["--paths", paths] if paths else [])]


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


def count_hazards(output: str) -> int:
    """Return how many hazards racecheck, or barrier errors synccheck, counts."""
    found = re.findall(r"RACECHECK SUMMARY: (\d+) hazard|ERROR SUMMARY: (\d+) error", output)
    return max((int(number) for pair in found for number in pair if number), default=0)


def sanitizer_step(tool: str, limit_s: float, paths: str = "", **options: object) -> Step:
    """Return the step of a sanitizer. Each tensor gets memory of its own: a byte behind its end is nobody's."""
    return Step(
        tool,
        lambda _: sanitizer_command(tool, paths),
        limit_s,
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        judge=partial(judge_sanitizer, tool),
        missing=not_found("compute-sanitizer"),
        **{"required": tool in REQUIRED, **options},
    )


def ncu_step(path: str, limit_s: float, **options: object) -> Step:
    """Return the step that profiles forward and backward of one path at the headline."""
    command = [find_tool("ncu") or "ncu", "--profile-from-start", "off", "--clock-control", "none", "--csv"]
    command += ["--page", "raw", "--print-units", "base", "--metrics", ",".join(METRICS)]
    command += [argument for section in SECTIONS for argument in ("--section", section)]

    def judge(code: int, output: str) -> str | None:
        if NO_COUNTERS in output:
            return "this machine does not permit performance counters"
        if "refused" in output:
            return None
        return None if read_counters(output) else f"no counters, exit status {code}: {output[-300:]}"

    return Step(
        f"ncu {path}",
        lambda _: [*command, *python(DRIVER, "--target", path)],
        limit_s,
        required=False,
        judge=judge,
        missing=not_found("ncu"),
        **options,
    )


def in_short(counters: dict[str, str]) -> dict[str, str]:
    """Return the few counters of a kernel that are looked at first."""
    return {short: counters[name] for short, name in SHORT.items() if name in counters}


def read_counters(output: str) -> list[dict[str, str]]:
    """Return the kernels and their counters from the CSV that ncu prints between the program's own lines."""
    lines = output.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return []
    rows = [row for row in csv.DictReader(line for line in lines[first:] if line.startswith('"')) if row["ID"]]
    counters = []
    for row in rows:
        kept = {name: text for name, text in row.items() if name and text and name not in NOT_A_COUNTER}
        counters.append({"kernel": kept.pop("Kernel Name", "")[:160], **kept})
    return counters
