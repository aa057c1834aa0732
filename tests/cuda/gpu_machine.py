"""The machine with the GPU: its tools, the environment of the steps, and, run as a program, what it is as facts.

    python tests/cuda/gpu_machine.py     # facts: gpu, versions, clocks, the speed of a copy and of a matrix product

Beside torch only the standard library: this must run where nothing else does.
"""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from facts import write_fact

ROOT = Path(__file__).resolve().parents[2]
DEVICE = os.environ.get("ADAPTERX_TEST_DEVICE", "cuda")
PYTHON = [sys.executable]  # that runs the steps
TOOLS = {
    "nvcc": ("bin",),
    "compute-sanitizer": ("bin", "compute-sanitizer"),
    "ncu": ("bin", "nsight-compute"),
}
KEPT_SETTINGS = ("ADAPTERX_LIBRARY", "ADAPTERX_TEST_DEVICE")
PROPERTIES = ("multi_processor_count", "total_memory", "L2_cache_size", "shared_memory_per_block_optin", "clock_rate")
CLOCKS = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
COPIED_BYTES = 1 << 30  # far more than any cache
PRODUCT_SIZE = 8192
REPEATS = 20


def python(*arguments: str) -> list[str]:
    """Return the command of a Python program."""
    return [*PYTHON, *arguments]


def find_tool(name: str) -> str | None:
    """Return the path of a tool: PATH, then the folders of CUDA_HOME and of the toolkits in /usr/local and /opt."""
    homes = [Path(os.environ[key]) for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    homes += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    places = [str(home / folder) for home in homes for folder in TOOLS[name]]
    places += [str(path) for path in sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def say(command: Sequence[str], seconds: float = 20) -> str:
    """Return what a command prints, or why it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} does not run: {error}"
    return (done.stdout or done.stderr).strip()


def commit() -> str:
    """Return the commit of this checkout; empty where there is no repository."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return ""
    return say(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])


def environment_of_steps() -> dict[str, str]:
    """Return the environment of the steps: this checkout, and no settings of somebody's tests."""
    kept = {k: v for k, v in os.environ.items() if k in KEPT_SETTINGS or not k.startswith("ADAPTERX_")}
    # The build looks for ninja, which stands beside the Python that runs this.
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    kept["PYTHONUNBUFFERED"] = "1"
    if kept.get("ADAPTERX_LIBRARY"):
        kept["ADAPTERX_LIBRARY"] = os.path.abspath(kept["ADAPTERX_LIBRARY"])
    kept["ADAPTERX_CUDA"] = "1"
    kept["ADAPTERX_COMMIT"] = os.environ.get("ADAPTERX_COMMIT") or commit()
    kept.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    nvcc = find_tool("nvcc")
    home = Path(nvcc).resolve().parents[1] if nvcc else None
    # A toolkit, not a link to its compiler alone.
    if home and any(any(home.glob(f"{folder}/cuda_runtime.h")) for folder in ("include", "targets/*/include")):
        kept.setdefault("CUDA_HOME", str(home))
    return kept


def ask_driver(what: str) -> str:
    """Return what the driver says about the GPU."""
    return say(["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"])


def describe_tools() -> dict[str, object]:
    """Return what was found beside torch."""
    nvcc = find_tool("nvcc")
    return {
        "python": sys.version.split()[0],
        "processors": os.cpu_count(),
        "driver": ask_driver("name,driver_version,memory.total,mig.mode.current"),
        "nvcc": nvcc,
        "nvcc_version": (say([nvcc, "--version"]).splitlines() or [""])[-1] if nvcc else None,
        "ncu": find_tool("ncu"),
        "compute_sanitizer": find_tool("compute-sanitizer"),
        "ninja": shutil.which("ninja"),
        "library": os.environ.get("ADAPTERX_LIBRARY"),
        "commit": os.environ.get("ADAPTERX_COMMIT"),
    }


def describe_gpu() -> dict[str, object]:
    """Return what torch says of the GPU."""
    import torch

    found: dict[str, object] = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "gpu": None}
    if DEVICE == "cuda" and torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        found |= {"gpu": p.name, "architecture": f"{p.major}.{p.minor}"}
        found |= {name: getattr(p, name, None) for name in PROPERTIES}  # some are newer than torch may be
    return found


def seconds_of(call: Callable[[], object]) -> list[float]:
    """Return the seconds of some calls, each between two events of the device."""
    import torch

    if DEVICE != "cuda":
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times
    call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]


def measure_ceilings() -> None:
    """Write what the memory and the tensor cores reach at best and in the median."""
    import torch

    small = DEVICE != "cuda"
    source = torch.randn(1 << 16 if small else COPIED_BYTES // 4, device=DEVICE)
    target = torch.empty_like(source)
    speeds = sorted(2e-12 * source.nbytes / seconds for seconds in seconds_of(lambda: target.copy_(source)))
    write_fact("ceiling", of="copy", unit="TB/s", best=speeds[-1], median=speeds[len(speeds) // 2])
    size = 64 if small else PRODUCT_SIZE
    left, right = (torch.randn(size, size, device=DEVICE).bfloat16() for _ in range(2))  # zeros would be faster
    speeds = sorted(2e-12 * size**3 / seconds for seconds in seconds_of(lambda: left @ right))
    write_fact("ceiling", of="bfloat16 product", unit="TFLOP/s", best=speeds[-1], median=speeds[len(speeds) // 2])


def main() -> int:
    write_fact("tools", **describe_tools())
    found = describe_gpu()
    write_fact("machine", **found)
    if DEVICE == "cuda" and found["gpu"] is None:
        print("gpu_machine: PyTorch must find a GPU, got none", file=sys.stderr)
        return 2
    write_fact("clocks", when="idle", text=ask_driver(CLOCKS))
    measure_ceilings()
    write_fact("clocks", when="after the products", text=ask_driver(CLOCKS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
