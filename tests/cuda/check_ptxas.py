"""Compile single CUDA kernel files, without a GPU, and check what the compiler made of them: while writing them.

Checks: no spills and no stack in any kernel; where cuobjdump and nvdisasm are found (toolkit, or the packages
nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm), the instructions too, and how many the hot loops execute
(instruction_budgets.py). `make cuda-check` checks the whole library.

    python tests/cuda/check_ptxas.py --arch 80 90 100 --sources csrc/kernels/cuda/forward.cu
"""

import argparse
import concurrent.futures
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from instruction_budgets import check_loops
from kernel_report import Kernel, check_resources, check_sass, disassemble, parse_report, print_table, split_sass

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "kernels" / "cuda"


def find_tool(name: str, given: str | None = None) -> Path | None:
    """Look for a tool of the toolkit: the argument, PATH, CUDA_HOME, /usr/local/cuda*, pip's nvidia packages."""
    places = [given, shutil.which(name)]
    folders = [os.environ.get("CUDA_HOME", ""), *sorted(map(str, Path("/usr/local").glob("cuda*")), reverse=True)]
    places += [f"{folder}/bin/{name}" for folder in folders if folder]
    for root in (os.environ.get("ADAPTERX_CUDA_TOOLS", ""), sysconfig.get_paths()["purelib"]):
        places += map(str, Path(root or "/nonexistent").glob(f"nvidia/**/bin/{name}"))
    return next((Path(place) for place in places if place and Path(place).is_file()), None)


def compile_source(nvcc: Path, source: Path, archs: list[str], folder: Path) -> tuple[Path, list[Kernel]]:
    """Compile one file for all architectures, with PTX of the last one; return the object and ptxas's report."""
    target = folder / f"{source.stem}.o"
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    command = [nvcc, "-std=c++17", "-O3", "-Xptxas=-v", "-Xcompiler=-Wall", *flags, "-c", source, "-o", target]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"check_ptxas: {source.name} does not compile:\n{done.stdout}{done.stderr}")
    return target, parse_report(done.stdout + done.stderr)


def main() -> int:
    """Compile, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc", help="default: PATH, CUDA_HOME, /usr/local/cuda*")
    parser.add_argument("--arch", nargs="+", default=["80", "90", "100"])
    parser.add_argument("--sources", nargs="+", type=Path, default=sorted(KERNELS.glob("*.cu")))
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "ptxas")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    nvcc = find_tool("nvcc", arguments.nvcc)
    if nvcc is None:
        sys.exit("check_ptxas: nvcc not found in PATH, CUDA_HOME/bin, /usr/local/cuda*/bin or pip's nvidia packages")
    arguments.build.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        compiled = list(
            pool.map(lambda s: compile_source(nvcc, s.resolve(), arguments.arch, arguments.build), arguments.sources)
        )
    kernels = [kernel for _, report in compiled for kernel in report]
    print_table(kernels)
    problems = check_resources(kernels)
    print(f"{len(kernels)} kernels x architectures, {len(problems)} with spills or stack")
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump and find_tool("nvdisasm"):
        functions = [f for target, _ in compiled for f in split_sass(disassemble(cuobjdump, target, "-sass"))]
        problems += check_sass(functions) + check_loops(functions)
        print(f"SASS of {len(functions)} kernels checked")
    else:
        print(
            "SASS not checked: cuobjdump or nvdisasm not found (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)"
        )
    print("\n".join(problems) if problems else "all checks passed")
    return 1 if problems or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
