"""Build the complete CUDA extension without a GPU, load it, and check every kernel in it: `make cuda-check`.

Makes an environment of its own (.venv-cuda) with a CUDA build of torch and the toolkit in pip's packages, so that the
outcome does not depend on what the machine has, and builds with CMake (on PATH, with ninja), as pip does, into
build/cuda-check. Checks that the library loads and computes without a driver; that ptxas reports no spills and no stack
in any kernel of any architecture; that the tensor-core kernels contain mma, ldmatrix and 128-bit copies; that no kernel
touches local memory; that their hot loops keep to their instruction budgets. Then builds the kernels without torch, for
one architecture, under a program that runs.

    python tests/cuda/check_extension.py
"""

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instruction_budgets import check_loops
from kernel_report import Kernel, check_resources, check_sass, disassemble, parse_report, print_table, split_sass

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "distribution"))
from build_library import commands, library_in  # noqa: E402

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
KERNEL_SOURCES = sorted((ROOT / "csrc" / "kernels" / "cuda").glob("*.cu"))
ARCHITECTURES = "8.0;9.0;10.0+PTX"
ONE_ARCHITECTURE = "9.0"  # of the build without torch, which shows that it compiles and links
LOG_LINES = 60  # of a failed build, shown


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a step took."""
    start = time.monotonic()
    yield
    print(f"cuda-check: {what}: {time.monotonic() - start:.0f} s", flush=True)


def environment(folder: Path) -> Path:
    """Make the environment unless it is there with these requirements; return the folder of its programs."""
    stamp, wanted = folder / ".installed", f"{sys.version}\n{REQUIREMENTS.read_text(encoding='utf-8')}"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return folder / "bin"
    stamp.unlink(missing_ok=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", "-r", REQUIREMENTS]
    for command in ([sys.executable, "-m", "venv", "--clear", folder], install):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(
                f"{done.stdout}{done.stderr}\ncuda-check: {folder} could not be made, for the reason above. It needs a "
                f"CUDA build of torch and the toolkit ({REQUIREMENTS.relative_to(ROOT)}, 2.6 GB to download); "
                "without them the CUDA kernels are NOT checked."
            )
    stamp.write_text(wanted, encoding="utf-8")
    return folder / "bin"


def run_logged(command: list[str | Path], log: Path, env: dict[str, str]) -> None:
    """Run a build step with its output appended to a file; show the errors and the end of it where it fails."""
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [str(c) for c in command], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=env, check=False
        )
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if re.search(r"\berror\b", line) and not line.startswith("[")]
        print("\n".join([*errors[:LOG_LINES], "...", *(line[:400] for line in lines[-LOG_LINES:])]))
        sys.exit(f"cuda-check: {Path(command[0]).name} failed; the whole log is {log}")


def build_environment(programs: Path, toolkit: Path) -> dict[str, str]:
    """Return the variables that the build reads."""
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "ADAPTERX_CUDA": "1",
        "CUDA_HOME": str(toolkit),
        "TORCH_CUDA_ARCH_LIST": ARCHITECTURES,
        "NVCC_APPEND_FLAGS": "-Xptxas=-v",  # nvcc reads it: the build itself is the one that users get
        # One thread of nvcc a file, or the reports of several architectures would be mixed.
        "MAX_JOBS": str(min(os.cpu_count() or 1, len(KERNEL_SOURCES))),
    }


def build_library(build: Path, env: dict[str, str]) -> Path:
    """Build the library of the Python package; return it."""
    python = Path(env["PATH"].split(os.pathsep)[0]) / "python"
    for command in commands(python, build / "objects", build / "library"):
        run_logged(command, build / "build.log", env)
    return library_in(build / "library")


def check_kernels_alone(build: Path, env: dict[str, str]) -> list[str]:
    """Build a program on the kernels without torch (tests/cmake_kernels), for one architecture, and run it."""
    programs = Path(env["PATH"].split(os.pathsep)[0])
    env = {**env, "TORCH_CUDA_ARCH_LIST": ONE_ARCHITECTURE, "NVCC_APPEND_FLAGS": ""}
    folder, log = build / "kernels_alone", build / "kernels_alone.log"
    log.unlink(missing_ok=True)
    configure = ["cmake", "-S", ROOT / "tests" / "cmake_kernels", "-B", folder, "-GNinja"]
    run_logged([*configure, f"-DPython_EXECUTABLE={programs / 'python'}"], log, env)
    run_logged(["cmake", "--build", folder, "-j", env["MAX_JOBS"]], log, env)
    done = subprocess.run([folder / "kernel_user"], check=False)
    return ["the program on the kernels without torch fails (see above)"] if done.returncode else []


def keep_reports(log: Path, reports: Path) -> None:
    """Put what ptxas said of each source beside the others: a later build compiles, and reports, only what changed."""
    for step in re.split(r"(?m)^\[\d+/\d+\] ", log.read_text(encoding="utf-8", errors="replace")):
        source = re.search(r"\S+/(\w+)\.cu\b", step)
        if source and "ptxas info" in step:
            reports.mkdir(exist_ok=True)
            (reports / f"{source.group(1)}.txt").write_text(step, encoding="utf-8")


def read_reports(reports: Path) -> list[Kernel]:
    """Read what ptxas said of the sources of today."""
    kernels = []
    for source in KERNEL_SOURCES:
        report = reports / f"{source.stem}.txt"
        if not report.is_file():
            sys.exit(
                f"cuda-check: no report of ptxas on {source.name}; remove {reports.parent} and run the check again"
            )
        kernels += parse_report(report.read_text(encoding="utf-8"))
    return kernels


def check_binary(library: Path, cuobjdump: Path, kernels: list[Kernel]) -> list[str]:
    """Check the code in the library: the kernels that ptxas reported, their instructions, PTX for later GPUs."""
    numbers = [entry.removesuffix("+PTX").replace(".", "") for entry in ARCHITECTURES.split(";")]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        code = pool.map(lambda n: disassemble(cuobjdump, library, "-sass", "-arch", f"sm_{n}"), numbers)
        functions = [function for text in code for function in split_sass(text)]
    problems = check_sass(functions) + check_loops(functions)
    reported = {(kernel.arch, kernel.mangled) for kernel in kernels}
    linked = {(arch, mangled) for arch, mangled, _ in functions}
    problems += [
        f"sm_{arch} {mangled}: in the library, but not in ptxas's reports" for arch, mangled in linked - reported
    ]
    problems += [f"sm_{arch} {mangled}: compiled, but not in the library" for arch, mangled in reported - linked]
    problems += [f"no kernel for sm_{number}" for number in numbers if number not in {arch for arch, _ in linked}]
    if f"sm_{numbers[-1]}" not in disassemble(cuobjdump, library, "--list-ptx"):
        problems.append(f"no PTX for compute_{numbers[-1]}")
    size = library.stat().st_size / 2**20
    print(f"cuda-check: SASS of {len(functions)} kernels x architectures checked in a library of {size:.1f} MiB")
    return problems


def main() -> int:
    """Make the environment, build, load, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-cuda")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cuda-check")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    with timed("environment"):
        programs = environment(arguments.venv.resolve())
    toolkit = next(programs.parent.glob("lib/python*/site-packages/nvidia/cu*/bin/nvcc")).parents[1]
    build.mkdir(parents=True, exist_ok=True)
    (build / "build.log").unlink(missing_ok=True)
    with timed(f"build for {ARCHITECTURES}"):
        library = build_library(build, build_environment(programs, toolkit))
    keep_reports(build / "build.log", build / "reports")
    load = [programs / "python", Path(__file__).with_name("load_library.py"), library]
    version = re.search(r"release (\S+),", subprocess.check_output([toolkit / "bin" / "nvcc", "--version"], text=True))
    with timed("loading"):
        loaded = subprocess.run([*load, "--cuda", version.group(1), "--architectures", ARCHITECTURES], check=False)
    with timed(f"kernels without torch, for {ONE_ARCHITECTURE}"):
        alone = check_kernels_alone(build, build_environment(programs, toolkit))
    kernels = read_reports(build / "reports")
    print_table(kernels)
    problems = alone + check_resources(kernels)
    with timed("disassembly"):
        problems += check_binary(library, toolkit / "bin" / "cuobjdump", kernels)
    problems += ["the library does not load, or computes wrong numbers (see above)"] if loaded.returncode else []
    print(
        "\n".join(problems)
        if problems
        else f"cuda-check: {len(kernels)} kernels x architectures, no spills, all checks passed"
    )
    return 1 if problems or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
