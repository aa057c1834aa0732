"""Compile the CUDA kernels for every architecture, without a GPU, and check what the compiler made of them.

Checks: no spills and no stack in any kernel; where cuobjdump and nvdisasm are found (toolkit, or the packages
nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm), that the tensor-core kernels contain mma, ldmatrix and 128-bit copies,
that the vector kernels load and store 128 bits, and that no kernel touches local memory.

    python tests/cuda/check_ptxas.py --nvcc /usr/local/cuda/bin/nvcc --arch 80 90 100 --jobs 2
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "kernels" / "cuda"
BYTES_PER_SM = 228 * 1024  # sm_90; a block reserves 1 KiB of it
HEADLINE_SLICE = 512  # columns of a block at hidden_size 4096 in a cluster of 8


def find_tool(name: str, given: str | None = None) -> str | None:
    """Look for a tool of the toolkit: the argument, PATH, CUDA_HOME, /usr/local/cuda*, pip's nvidia packages."""
    places = [given] if given else []
    places += [shutil.which(name)]
    folders = [os.environ.get("CUDA_HOME", ""), *sorted(map(str, Path("/usr/local").glob("cuda*")), reverse=True)]
    places += [f"{folder}/bin/{name}" for folder in folders if folder]
    for root in (os.environ.get("ADAPTERX_CUDA_TOOLS", ""), sysconfig.get_paths()["purelib"]):
        places += map(str, Path(root or "/nonexistent").glob(f"nvidia/**/bin/{name}"))
    return next((place for place in places if place and Path(place).is_file()), None)


def kernel_name(mangled: str) -> str:
    """Turn a mangled kernel name into a short one: name, element, template integers."""
    name = re.search(r"\d+([a-z_]+_kernel)", mangled).group(1)
    element = "bf16" if "bfloat16" in mangled else "fp16" if "half" in mangled else ""
    if not element:
        element = "fp64" if re.search(r"kernelId|kernelILd|ArgumentsId|ConfigId", mangled) else "fp32"
    numbers = re.findall(r"L[ib](\d+)E", mangled)
    variant = re.search(r"\d([A-Z][a-z]+)(Middle|Finish)I", mangled)
    return " ".join(
        part for part in (name, variant.group(1).lower() if variant else "", element, ",".join(numbers)) if part
    )


def dynamic_shared_memory(name: str) -> int | None:
    """Bytes that one block asks for at launch; of a tile kernel at 512 columns a block."""
    numbers = [int(n) for n in name.split()[-1].split(",") if n.isdigit()]
    if name.startswith("bottleneck_tile_kernel"):
        size, row_groups, column_groups, chunk, stages, _ = numbers
        rows = 16 * row_groups
        stage = max(size * (chunk + 8), chunk * (size + 8))
        shared = 2 * (rows * (HEADLINE_SLICE + 8) + stages * stage + rows * (size + 8))
        return shared + 4 * column_groups * rows * (size + 4) + 8 * rows
    if name.startswith("weight_gradient_kernel"):
        size = numbers[0]
        return 2 * 4 * 32 * ((64 if size > 64 else 128) + 8 + size + 8)
    if name.startswith("segment_"):
        width = {"fp64": 8, "fp32": 4}.get(next(part for part in name.split() if part.startswith(("fp", "bf"))), 2)
        terms = 128 // width
        window = max(64 * (terms + 16 // width), terms * (64 + 16 // width))
        return 512 + 3 * 2 * window * width
    return None


def compile_source(nvcc: str, source: Path, archs: list[str], folder: Path) -> tuple[Path, str]:
    """Compile one file for all architectures, with PTX of the last one; return the object and ptxas's report."""
    target = folder / f"{source.stem}.o"
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    command = [nvcc, "-std=c++17", "-O3", "-Xptxas=-v", "-Xcompiler=-Wall", *flags, "-c", source, "-o", target]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"check_ptxas: {source.name} does not compile:\n{done.stdout}{done.stderr}")
    return target, done.stdout + done.stderr


def parse_report(report: str) -> list[dict]:
    """Read ptxas -v: one record a kernel and architecture."""
    pattern = re.compile(
        r"Compiling entry function '(?P<mangled>\w+)' for 'sm_(?P<arch>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    records = []
    for match in pattern.finditer(report):
        record = {key: int(match[key]) for key in ("stack", "stores", "loads", "registers")}
        records.append({**record, "arch": match["arch"], "kernel": kernel_name(match["mangled"])})
    return records


def check_resources(records: list[dict]) -> list[str]:
    """Return what is wrong: spills and stack frames."""
    return [
        f"sm_{r['arch']} {r['kernel']}: {r['stack']} B stack, {r['stores']} + {r['loads']} B spilled"
        for r in records
        if r["stack"] or r["stores"] or r["loads"]
    ]


def required_instructions(name: str, arch: str) -> list[str]:
    """Name the SASS that a kernel must contain, as regular expressions."""
    numbers = name.split()[-1].split(",")
    if name.startswith("bottleneck_tile_kernel"):
        if numbers[-1] == "1" and int(arch) < 90:
            return []  # clusters: empty before sm_90
        needed = [r"HMMA\.16816", r"LDSM\.16", r"LDGSTS[.\w]*\.128", r"STG[.\w]*\.128"]
        return [*needed, r"UCGABAR_ARV|BAR\S*\.CGA|UCGABAR"] if numbers[-1] == "1" else needed
    if name.startswith("weight_gradient_kernel"):
        return [r"HMMA\.16816", r"LDSM\.16\.MT88", r"LDGSTS[.\w]*\.128"]
    if name.startswith(("bias_activation", "scaled_residual")) and numbers[-1] != "1":
        return [r"LDG[.\w]*\.128", r"STG[.\w]*\.128"]
    return []


def check_sass(cuobjdump: str, nvdisasm: str, target: Path) -> tuple[list[str], int]:
    """Disassemble an object; return what is wrong and the number of kernels looked at."""
    path = f"{Path(nvdisasm).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [cuobjdump, "-sass", str(target)], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    )
    problems, count, arch = [], 0, ""
    for part in re.split(r"(?=\n\s*Function : )|(?=\narch = )", done.stdout):
        if found := re.search(r"arch = sm_(\d+)", part):
            arch = found.group(1)
        header = re.search(r"Function : (\w+)", part)
        if not header:
            continue
        count += 1
        name = kernel_name(header.group(1))
        problems += [
            f"sm_{arch} {name}: no {want}" for want in required_instructions(name, arch) if not re.search(want, part)
        ]
        if re.search(r"\b(LDL|STL)\b", part):
            problems.append(f"sm_{arch} {name}: local memory")
    return problems, count


def print_table(records: list[dict]) -> None:
    """Print registers and shared memory of every kernel, one line a kernel, architectures side by side."""
    archs = sorted({r["arch"] for r in records}, key=int)
    print(f"{'kernel':62s}" + "".join(f"{'sm_' + arch:>8s}" for arch in archs) + "  shared memory (B)")
    for name in sorted({r["kernel"] for r in records}):
        registers = {r["arch"]: r["registers"] for r in records if r["kernel"] == name}
        shared = dynamic_shared_memory(name)
        print(
            f"{name:62s}"
            + "".join(f"{registers.get(arch, '-'):>8}" for arch in archs)
            + (f"  {shared} ({BYTES_PER_SM // (shared + 1024)} blocks)" if shared else "")
        )


def main() -> int:
    """Compile, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc", help="default: PATH, CUDA_HOME, /usr/local/cuda*")
    parser.add_argument("--arch", nargs="+", default=["80", "90", "100"])
    parser.add_argument("--sources", nargs="+", type=Path, default=sorted(KERNELS.glob("*.cu")))
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cuda_check")
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
    records = [record for _, report in compiled for record in parse_report(report)]
    print_table(records)
    problems = check_resources(records)
    print(f"{len(records)} kernels x architectures, {len(problems)} with spills or stack")
    tools = find_tool("cuobjdump"), find_tool("nvdisasm")
    if all(tools):
        checked = 0
        for target, _ in compiled:
            wrong, count = check_sass(*tools, target)
            problems += wrong
            checked += count
        print(f"SASS of {checked} kernels checked")
    else:
        print(
            "SASS not checked: cuobjdump or nvdisasm not found (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)"
        )
    print("\n".join(problems) if problems else "all checks passed")
    return 1 if problems or not records else 0


if __name__ == "__main__":
    sys.exit(main())
