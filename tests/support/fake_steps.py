"""Stands in for every program that a stage on a GPU starts: says what that one would say, in a hundredth of the time.

FAKE_PLAN, JSON, plants faults: {"check_path.py tile:16x8": "hang"} for whatever command contains these words. A fault
is "hang" (nothing ends it but SIGKILL), "crash", "fail", or "once" (it crashes at its first start).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

CUDA = Path(__file__).resolve().parents[1] / "cuda"
sys.path.insert(0, str(CUDA))
from facts import PLACE, write_fact  # noqa: E402

HEAD = {"mode": "forward", "adapters": 1, "picked": ""}


def fault(command: str) -> str:
    """Return what is planted for a command."""
    plan = json.loads(os.environ.get("FAKE_PLAN", "{}"))
    return next((planted for words, planted in plan.items() if words in command), "")


def suffer(planted: str, command: str) -> None:
    """Do what is planted, having said as much as the program says before."""
    print("begun:", command, flush=True)
    if planted == "hang":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("Timeout (0:00:20)!", flush=True)  # of the program's own watchdog, which the driver holds up
        time.sleep(600)
    first = Path(os.environ[PLACE]).with_name("once")
    if planted == "crash" or (planted == "once" and not first.exists()):
        first.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if planted == "fail":
        print("Traceback: planted")
        sys.exit(1)


def machine(_: str) -> None:
    write_fact("machine", gpu="NVIDIA Fake", architecture="9.0")
    write_fact("ceiling", of="copy", best=2.8)


def library(_: str) -> None:
    write_fact("library", cuda="13.0", path=os.environ.get("ADAPTERX_LIBRARY", "built"))


def check(command: str) -> None:
    path = command.split()[-1]
    ok = not fault(f"wrong {path}")
    for tokens in (7, 33):
        case = {"path": path, "form": "plain", "dtype": "bfloat16", "shape": [tokens, 72, 6]}
        write_fact("check", **case, ok=ok, wrong=[] if ok else ["output"], other_bits=[], shown=not ok)
        time.sleep(0.02)
    write_fact("checked", path=path, served=2, failures=0 if ok else 2)
    sys.exit(0 if ok else 1)


def times(command: str) -> None:
    folder = Path(command.split("--results ")[1].split()[0])
    for tokens in (16384, 2048, 8):
        write_fact("time", **HEAD, shape=[tokens, 4096, 64], us={"copy": 96.0, "tile:64x8": 340.0})
        with (folder / "bench_paths_cuda_NVIDIA_Fake.csv").open("a") as file:
            file.write("a,b\n")
        time.sleep(0.03)


def tests(command: str) -> None:
    for number in range(3):
        write_fact("test", shown=False, name=f"{command.split()[2]}::{number}", outcome="passed", seconds=0.1, words="")
    print("3 passed in 0.10s")


def benchmark(command: str) -> None:
    folder = Path(command.split("--results ")[1].split()[0])
    name = "bench_op_cuda_sweep" if "--sweep" in command else Path(command.split()[0]).stem + "_cuda"
    with (folder / f"{name}_NVIDIA_Fake.csv").open("a") as file:
        file.write("a,b\n")
    print("row")


def driver(command: str) -> None:
    print("kernel_driver:", "all results are finite" if "--coverage" not in command else "9 kernels, none")


PROGRAMS = {
    "gpu_machine.py": machine,
    "call_library.py": library,
    "check_path.py": check,
    "time_paths.py": times,
    "-m pytest": tests,
    "benchmarks/": benchmark,
    "kernel_driver.py": driver,
    "build_library.py": lambda _: print("compiled"),
}


def main() -> None:
    command = " ".join(sys.argv[1:])
    suffer(fault(command), command)
    next(program for words, program in PROGRAMS.items() if words in command)(command)


if __name__ == "__main__":
    main()
