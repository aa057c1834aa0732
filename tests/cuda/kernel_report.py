"""What nvcc made of the CUDA kernels: registers and spills out of `ptxas -v`, instructions out of the disassembly."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

BYTES_PER_SM = 228 * 1024  # sm_90; a block reserves 1 KiB of it
HEADLINE_SLICE = 512  # columns of a block at hidden_size 4096 in a cluster of 8
LOCAL_MEMORY = r"\b(LDL|STL)\b"


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture, as ptxas reports it."""

    mangled: str
    arch: str  # such as 90 or 90a
    registers: int
    stack: int  # bytes, like the spills
    spill_stores: int
    spill_loads: int

    @property
    def name(self) -> str:
        """The short name."""
        return kernel_name(self.mangled)


def kernel_name(mangled: str) -> str:
    """Turn a mangled kernel name into a short one: name, variant, element, template integers."""
    name = re.search(r"\d+([a-z_]+_kernel)", mangled)
    if not name:  # a device function that was not inlined
        return mangled
    element = "bf16" if "bfloat16" in mangled else "fp16" if "half" in mangled else ""
    if not element:
        element = "fp64" if re.search(r"kernelId|kernelILd|ArgumentsId|ConfigId", mangled) else "fp32"
    numbers = re.findall(r"L[ib](\d+)E", mangled)
    variant = re.search(r"\d([A-Z][a-z]+)(?:Middle|Finish)I|\dResident([A-Z][a-z]+)I[^L]*E", mangled)
    way = (variant.group(1) or variant.group(2)).lower() if variant else ""
    parts = (name.group(1), way, element, ",".join(numbers))
    return " ".join(part for part in parts if part)


def dynamic_shared_memory(name: str) -> int | None:
    """Bytes that one block asks for at launch; of a tile kernel at 512 columns a block."""
    numbers = [int(n) for n in name.split()[-1].split(",") if n.isdigit()]
    if name.startswith("bottleneck_tile_kernel"):
        size, row_groups, column_groups, chunk, stages, _ = numbers
        rows = 16 * row_groups
        stage = max(size * (chunk + 8), chunk * (size + 8))
        shared = 2 * (rows * (HEADLINE_SLICE + 8) + stages * stage + rows * (size + 8))
        return shared + 4 * column_groups * rows * (size + 4) + 8 * rows
    if name.startswith("resident_tile_kernel"):
        size, columns, _ = numbers
        units, term_groups = 4 * size // 16, 2 if size == 128 else 4  # mma tiles of the middle of 32 tokens
        exchange = units * 32 * (48 + 16 * (term_groups - 1)) + 256 + 4 * columns
        stage = 2 * 32 * (columns + 8)
        return min(8, (227 * 1024 - exchange) // stage) * stage + exchange
    if name.startswith("weight_gradient_kernel"):
        size = numbers[0]
        return 2 * 4 * 32 * ((64 if size > 64 else 128) + 8 + size + 8)
    if name.startswith("segment_"):
        width = {"fp64": 8, "fp32": 4}.get(next(part for part in name.split() if part.startswith(("fp", "bf"))), 2)
        terms = 128 // width
        window = max(64 * (terms + 16 // width), terms * (64 + 16 // width))
        return 512 + 3 * 2 * window * width
    return None


def parse_report(report: str) -> list[Kernel]:
    """Read what `ptxas -v` says, one record a kernel and architecture."""
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'"
        r"(?:(?!Compiling entry).)*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r"(?:(?!Compiling entry).)*?Used (\d+) registers",
        re.DOTALL,
    )
    return [
        Kernel(mangled, arch, int(registers), int(stack), int(stores), int(loads))
        for mangled, arch, stack, stores, loads, registers in pattern.findall(report)
    ]


def check_resources(kernels: list[Kernel]) -> list[str]:
    """Return what is wrong: spills and stack frames."""
    return [
        f"sm_{k.arch} {k.name}: {k.stack} B stack, {k.spill_stores} + {k.spill_loads} B spilled"
        for k in kernels
        if k.stack or k.spill_stores or k.spill_loads
    ]


def required_instructions(name: str, arch: str) -> list[str]:
    """Name the SASS that a kernel must contain, as regular expressions."""
    numbers = name.split()[-1].split(",")
    if name.startswith("bottleneck_tile_kernel"):
        if numbers[-1] == "1" and int(re.match(r"\d+", arch).group()) < 90:
            return []  # clusters: empty before sm_90
        needed = [r"HMMA\.16816", r"LDSM\.16", r"LDGSTS[.\w]*\.128", r"STG[.\w]*\.128"]
        return [*needed, r"UCGABAR_ARV|BAR\S*\.CGA|UCGABAR"] if numbers[-1] == "1" else needed
    if name.startswith("resident_tile_kernel"):
        bulk = [r"HMMA\.16816", r"LDSM\.16\.MT88", r"STSM\.16\.MT88", r"UBLKCP", r"STAS"]
        return bulk if int(re.match(r"\d+", arch).group()) >= 90 else []  # bulk copies: empty before sm_90
    if name.startswith("weight_gradient_kernel"):
        return [r"HMMA\.16816", r"LDSM\.16\.MT88", r"LDGSTS[.\w]*\.128"]
    if name.startswith("segment_"):
        tensor_cores = [r"HMMA\.16816", r"LDSM\.16"] if "16" in name.split()[-1] else []
        return [*tensor_cores, r"LDGSTS[.\w]*\.128", r"STG[.\w]*\.128"]
    if name.startswith(("bias_activation", "scaled_residual")) and numbers[-1] != "1":
        return [r"LDG[.\w]*\.128", r"STG[.\w]*\.128"]
    return []


def split_sass(sass: str) -> list[tuple[str, str, str]]:
    """Split the disassembly into functions: architecture, mangled name, instructions."""
    functions, arch = [], ""
    for part in re.split(r"(?=\n\s*Function : )|(?=\narch = )", sass):
        if found := re.search(r"arch = sm_(\w+)", part):
            arch = found.group(1)
        if header := re.search(r"Function : (\S+)", part):
            functions.append((arch, header.group(1), part))
    return functions


def check_sass(functions: list[tuple[str, str, str]]) -> list[str]:
    """Return what is wrong: instructions that a kernel lacks, and local memory in any function."""
    problems = []
    for arch, mangled, code in functions:
        name = kernel_name(mangled)
        wanted = required_instructions(name, arch)
        problems += [f"sm_{arch} {name}: no {want}" for want in wanted if not re.search(want, code)]
        problems += [f"sm_{arch} {name}: local memory"] if re.search(LOCAL_MEMORY, code) else []
    return problems


def disassemble(cuobjdump: Path, binary: Path, *options: str) -> str:
    """Run cuobjdump on an object or a library; it starts nvdisasm, which lies beside it."""
    path = f"{cuobjdump.parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(cuobjdump), *options, str(binary)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def print_table(kernels: list[Kernel]) -> None:
    """Print registers and shared memory of every kernel, one line a kernel, architectures side by side."""
    archs = sorted({k.arch for k in kernels}, key=lambda arch: (len(arch), arch))
    print(f"{'kernel':62s}" + "".join(f"{'sm_' + arch:>8s}" for arch in archs) + "  shared memory (B)")
    for name in sorted({k.name for k in kernels}):
        registers = {k.arch: k.registers for k in kernels if k.name == name}
        shared = dynamic_shared_memory(name)
        columns = "".join(f"{registers.get(arch, '-'):>8}" for arch in archs)
        print(f"{name:62s}{columns}" + (f"  {shared} ({BYTES_PER_SM // (shared + 1024)} blocks)" if shared else ""))
