"""Mutation test of the emulator: plant one bug at a time in the CUDA kernels and see that the suite catches it.

A mutant is a text patch of one kernel file. It is compiled with only one padded bottleneck size and one dtype of each
kind, linked with the suite (mutant_suite*.cpp), and run; it counts as caught when the program fails or does not end.
The unpatched kernels must pass. A patch that no longer applies, or does not compile, is an error: the list has to
follow the code.

    python tests/emulator/mutants.py --jobs 2 [--only SUBSTRING]
    python tests/emulator/mutants.py --sanitize    # no mutants: the suite and the emulator's own test, sanitized
"""

import argparse
import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from mutant_list import MUTANTS, Mutant  # noqa: E402

ROOT = HERE.parents[1]
KERNELS = ROOT / "csrc" / "kernels" / "cuda"
SOURCES = (
    "tile_plan.cu",
    "forward.cu",
    "backward.cu",
    "resident.cu",
    "rowwise.cu",
    "sort_tokens.cu",
    "segments.cu",
    "partial_sums.cu",
    "weight_gradient.cu",
)
SUITE = ("mutant_suite.cpp", "mutant_suite_grouped.cpp", "mutant_suite_edges.cpp", "mutant_suite_resident.cpp")
SANITIZED = "sanitized"  # the folder of what is built with sanitizers
TIME_LIMIT = 120  # seconds of the processor; the suite takes less than a minute
# The kernels are compiled without optimisation and with a precompiled emulator: a mutant is compiled once and run once,
# and mostly ends early. The suite is optimised and comes first in the link, so that its copies of the emulator's inline
# functions are the ones used.
TRAPS = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]  # a misaligned plain access fails the launch
FLAGS = ["-std=c++17", "-DADAPTERX_EMULATE", "-w", "-fno-strict-aliasing", f"-I{HERE}"]
SANITIZERS = ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

# The machine leaves fibers behind where a launch fails, with all that they hold.
SANITIZER_ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}

# Which objects a file goes into. Everything else of an unpatched build is shared by all mutants.
USERS = {
    "tile.cuh": ("forward.cu", "backward.cu", "segments.cu", "weight_gradient.cu", "resident.cu"),
    "bottleneck_layout.cuh": ("forward.cu", "backward.cu", "tile_plan.cu"),
    "bottleneck_copy.cuh": ("forward.cu", "backward.cu"),
    "bottleneck_exchange.cuh": ("forward.cu", "backward.cu"),
    "bottleneck_tile.cuh": ("forward.cu", "backward.cu"),
    "bottleneck_middle.cuh": ("forward.cu", "backward.cu", "weight_gradient.cu"),
    "tile_kernels.cuh": ("forward.cu", "backward.cu", "tile_plan.cu", "weight_gradient.cu"),
    "resident_tile.cuh": ("resident.cu",),
    "resident_middle.cuh": ("resident.cu",),
    "resident.cu": ("resident.cu",),
    "weight_gradient.cuh": ("weight_gradient.cu",),
    "weight_gradient.cu": ("weight_gradient.cu",),
    "gradient_stream.cuh": ("weight_gradient.cu",),
    "gradient_store.cuh": ("weight_gradient.cu",),
    "activation.cuh": ("rowwise.cu", "forward.cu", "backward.cu", "segments.cu", "resident.cu"),
    "segments.cuh": ("segments.cu",),
    "segment_multiply.cuh": ("segments.cu",),
    "segment_finish.cuh": ("segments.cu",),
    "segments.cu": ("segments.cu",),
    "partial_sums.cu": ("partial_sums.cu",),
    "partial_sums.h": ("weight_gradient.cu", "segments.cu", "partial_sums.cu"),
    "sort_tokens.cu": ("sort_tokens.cu",),
    "rowwise.cuh": ("rowwise.cu",),
    "rowwise.cu": ("rowwise.cu",),
    "forward.cu": ("forward.cu",),
    "backward.cu": ("backward.cu",),
}

# Fewer templates, for compile time: one padded size, one dtype.
SHRINK = [
    ("tile_kernels.cuh", "integral_constant<int, 16>", "integral_constant<int, 32>"),
    ("tile_kernels.cuh", "integral_constant<int, 64>", "integral_constant<int, 32>"),
    ("tile_kernels.cuh", "integral_constant<int, 128>", "integral_constant<int, 32>"),
    ("resident.cu", "integral_constant<int, 64>", "integral_constant<int, 32>"),
    ("resident.cu", "std::integral_constant<int, 128>(), half", "std::integral_constant<int, 32>(), half"),
    ("element.cuh", "return visitor(Tag<double>());", "return visitor(Tag<float>());"),
    ("element.cuh", "return visitor(Tag<float16>());", "return visitor(Tag<bfloat16>());"),
]


def replace_nth(text: str, old: str, new: str, nth: int) -> str:
    """Replace the nth occurrence; raise ValueError where there are fewer."""
    position = -1
    for _ in range(nth):
        position = text.index(old, position + 1)
    return text[:position] + new + text[position + len(old) :]


def copy_kernels(folder: Path) -> None:
    """Copy the kernels, shrunk, so that `folder`/cuda/*.cu finds ../types.h."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(KERNELS, folder / "cuda")
    for name in ("types.h", "problem.h"):
        shutil.copy(KERNELS.parent / name, folder / name)
    for file, old, new in SHRINK:
        path = folder / "cuda" / file
        text = path.read_text()
        if old not in text:
            raise ValueError(f"mutants: {file} no longer contains {old!r}")
        path.write_text(text.replace(old, new))


def compile_object(source: Path, target: Path, *options: str) -> None:
    """Compile one file; raise RuntimeError with the compiler's words where that fails."""
    checks = SANITIZERS if target.parent.name == SANITIZED else TRAPS
    command = ["g++", *FLAGS, *checks, *options, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile: {done.stderr[:600]}")


def compile_kernel(name: str, folder: Path, base: Path) -> Path:
    """Compile `folder`/cuda/`name` and return the object."""
    target = folder / f"{name}.o"
    options = ("-O0", f"-I{folder / 'cuda'}", "-include", str(base / "emulator.h"), "-x", "c++", "-c")
    compile_object(folder / "cuda" / name, target, *options)
    return target


def build_base(folder: Path) -> None:
    """Compile the unpatched kernels and the suite."""
    copy_kernels(folder)
    (folder / "emulator.h").write_text('#include <optional>\n#include <string_view>\n#include "cuda_emulator.h"\n')
    compile_object(folder / "emulator.h", folder / "emulator.h.gch", "-O0", "-x", "c++-header")
    for name in SOURCES:
        compile_kernel(name, folder, folder)
    for name in SUITE:
        compile_object(HERE / name, folder / f"{name}.o", "-O1", f"-I{folder / 'cuda'}", "-c")


def link_and_run(objects: list[Path], program: Path, *parts: str) -> str:
    """Return what the suite, or a part of it, says: 'all passed', the failure, or that it did not end."""
    subprocess.run(["g++", *map(str, objects), "-o", str(program)], check=True)
    command = ["sh", "-c", f'ulimit -t {TIME_LIMIT}; exec "$0" "$@"', str(program), *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "caught: does not end"
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0:
        return "all passed"
    return lines[-1] if lines and done.returncode == 1 else f"caught: exit status {done.returncode}"


def run_mutant(mutant: Mutant, base: Path, folder: Path) -> str:
    """Patch, compile what the patch touches, link, run."""
    copy_kernels(folder)
    path = folder / "cuda" / mutant.file
    path.write_text(replace_nth(path.read_text(), mutant.old, mutant.new, mutant.nth))
    objects = [base / f"{name}.o" for name in SUITE]
    for name in SOURCES:
        if name in USERS[mutant.file]:
            objects.append(compile_kernel(name, folder, base))
        else:
            objects.append(base / f"{name}.o")
    verdict = link_and_run(objects, folder / "suite", "resident" if mutant.file.startswith("resident") else "others")
    shutil.rmtree(folder)
    return verdict


def judge(number_and_mutant: tuple[int, Mutant], base: Path) -> tuple[Mutant, str, float]:
    """Run one mutant; problems of the list itself become a verdict that counts as a failure."""
    number, mutant = number_and_mutant
    start = time.monotonic()
    try:
        verdict = run_mutant(mutant, base, base.parent / f"mutant_{number}")
    except (ValueError, RuntimeError) as error:
        verdict = f"ERROR: {error}"
    return mutant, verdict, time.monotonic() - start


def run(mutants: list[Mutant], build: Path, jobs: int) -> tuple[list[str], int]:
    """Run all; return the lines of those that were not caught and the number of those that were."""
    base = build / "base"
    build_base(base)
    objects = [base / f"{name}.o" for name in (*SUITE, *SOURCES)]
    verdict = link_and_run(objects, base / "suite")
    if verdict != "all passed":
        return [f"the unpatched kernels fail: {verdict}"], 0
    missed, caught = [], 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for mutant, verdict, seconds in pool.map(lambda m: judge(m, base), enumerate(mutants)):
            line = f"{mutant.name:45s} {mutant.file:22s} {seconds:5.1f} s  {verdict[:110]}"
            print(line, flush=True)
            if verdict.startswith("caught"):
                caught += 1
            else:
                missed.append(line)
    return missed, caught


def run_sanitized(build: Path) -> int:
    """Build the unpatched kernels, the suite and the emulator's own test with sanitizers; run them."""
    folder = build / SANITIZED
    build_base(folder)
    compile_object(HERE / "scenarios.cpp", folder / "scenarios.o", "-O1", f"-I{KERNELS}", "-c")
    programs = {"suite": [f"{name}.o" for name in (*SUITE, *SOURCES)], "scenarios": ["scenarios.o"]}
    failures = 0
    for name, objects in programs.items():
        command = ["g++", *SANITIZERS, *(str(folder / item) for item in objects), "-o", str(folder / name)]
        subprocess.run(command, check=True)
        start = time.monotonic()
        status = subprocess.run([str(folder / name)], env=SANITIZER_ENVIRONMENT, check=False).returncode
        print(f"sanitized {name}: {time.monotonic() - start:.0f} s, exit status {status}", flush=True)
        failures += status != 0
    return 1 if failures else 0


def main() -> int:
    """Print one line a mutant and the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="run the mutants whose name contains this")
    parser.add_argument("--sanitize", action="store_true", help="run the suite under ASan and UBSan instead")
    arguments = parser.parse_args()
    if arguments.sanitize:
        return run_sanitized(arguments.build.resolve())
    chosen = [mutant for mutant in MUTANTS if arguments.only in mutant.name]
    start = time.monotonic()
    missed, caught = run(chosen, arguments.build.resolve(), arguments.jobs)
    print(f"{caught} of {len(chosen)} mutants caught in {time.monotonic() - start:.0f} s")
    for line in missed:
        print(f"NOT CAUGHT: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
