"""Instruction budgets of the hot loops: what a warp executes for an mma and for 16 bytes copied, per architecture.

    python tests/cuda/instruction_budgets.py build/ptxas/*.o            # count, print, compare with the budgets
    python tests/cuda/instruction_budgets.py build/ptxas/*.o --write    # count, and make that the budgets

The one table is instruction_budgets.csv: a row for each hot loop of each bfloat16 kernel on tensor cores, with what was
counted in one iteration on the aligned path (sass_loops.py says how) when the row was written, and which targets that
misses. A loop may not need more instructions an mma, more of them for 16 bytes copied or more cycles of the shared
memory's pipe an mma than its row, by SLACK. `make cuda-check` and check_ptxas.py compare.
"""

import argparse
import csv
import dataclasses
import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from expected_loops import ExpectedLoop, expected_loops
from kernel_report import disassemble, kernel_name, split_sass

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # plain Python

from gpu_limits import collect_loops
from kernel_launches import MODEL, Model
from limits import limit_table
from sass_loops import Paths, copy_loops, hot_loops

TABLE = Path(__file__).with_suffix(".csv")
ARCHITECTURES = ("80", "90")
SLACK = 1.02  # another release of the compiler orders a few instructions otherwise

# Instructions for 16 bytes copied.
COPY_TARGETS = {"80": 20.0, "90": 6.0}
# Instructions of both products of the headline (bottleneck 64) for a warp's share of 64 x 32 elements, on sm_90.
SHARE_TARGET = 250.0
SHARE_ELEMENTS = 64 * 32 // 4  # four warps
MMA_ELEMENTS = 2048  # multiply-adds of one mma.m16n8k16
WARP_BYTES = 32 * 16  # of one copy of 16 bytes by every thread


@dataclass(frozen=True)
class LoopBudget:
    """A row of the table: one iteration of a hot loop, executed by a warp."""

    arch: str
    kernel: str
    loop: str
    instructions: int
    mma: int
    ldmatrix: int
    copies: int  # of 16 bytes a thread, or of a row in bulk
    copy_instructions: int  # what the copies add to the iteration
    shared_cycles: int  # of the shared memory's pipe, at 128 bytes a cycle
    registers: int = 0  # of a thread; like the next known where the table is written
    spilled: int = 0  # bytes of local memory of a thread
    missed: str = ""  # the targets that this misses

    @property
    def key(self) -> tuple[str, str, str]:
        return self.arch, self.kernel, self.loop

    @property
    def per_mma(self) -> float:
        """Instructions an mma; 0 where the loop has none."""
        return self.instructions / self.mma if self.mma else 0.0

    @property
    def per_copy(self) -> float:
        """Instructions for 16 bytes copied."""
        return self.copy_instructions / self.copies if self.copies else 0.0

    @property
    def shared_per_mma(self) -> float:
        """Cycles of the shared memory's pipe an mma."""
        return self.shared_cycles / self.mma if self.mma else 0.0


def measure(arch: str, name: str, expected: ExpectedLoop, paths: Paths, copies: int) -> LoopBudget:
    """Return the row of a hot loop, from its paths by the number of copies."""
    path, others = paths[copies], paths.get(0, paths[copies])
    executed = others["instructions"] + expected.copying * (path["instructions"] - others["instructions"])
    copying = executed - others["instructions"] if expected.products else executed
    bulk_bytes = expected.copying * expected.bulk_bytes
    copied = path["copies"] + bulk_bytes / WARP_BYTES  # as if all threads of the warp had copied 16 bytes
    shared = path["shared_cycles"] + bulk_bytes / 128
    counts = (executed, path["mma"], path["ldmatrix"], copied, copying, shared)
    row = LoopBudget(arch, name, expected.loop, *map(round, counts))
    missed = f"copy <= {COPY_TARGETS[arch]:g}" if row.per_copy > COPY_TARGETS[arch] else ""
    return dataclasses.replace(row, missed=missed)


def count_kernel(arch: str, name: str, code: str) -> tuple[list[LoopBudget], list[str]]:
    """Count the hot loops of one kernel; return their rows, and what was not found as expected."""
    rows, problems = [], []
    wanted = expected_loops(name)
    if not wanted:
        return [], []
    multiplying = hot_loops(code, wanted[0].trips)
    if not multiplying and arch < "90" and (name.endswith(",1") or name.startswith(("resident", "gradient_stream"))):
        return [], []  # clusters and bulk copies: empty before sm_90
    copying = copy_loops(code, wanted[-1].trips) if not wanted[-1].products else []
    for expected in wanted:
        waiting = multiplying if expected.products else copying
        fitting = [paths for paths in waiting if expected.copies in paths]
        if not fitting:
            seen = [{n: round(path["instructions"]) for n, path in sorted(paths.items())} for paths in waiting]
            problems.append(
                f"sm_{arch} {name}, {expected.loop}: {expected.copies} copies in an iteration expected, found (copies: "
                f"instructions) {seen}; expected_loops.py says what is expected"
            )
        if not expected.products:  # the steady loop, not the one that starts
            fitting.sort(key=lambda paths, copies=expected.copies: paths[copies]["instructions"])
        chosen = next(iter(fitting or waiting), None)
        if chosen is None:
            break
        rows.append(measure(arch, name, expected, chosen, expected.copies if fitting else max(chosen)))
        del waiting[: waiting.index(chosen) + 1]
    if arch == "90" and is_headline(name) and len(rows) == len(wanted) and share_instructions(rows) > SHARE_TARGET:
        missed = f"share <= {SHARE_TARGET:g}"
        rows = [dataclasses.replace(row, missed=", ".join(filter(None, (row.missed, missed)))) for row in rows]
    return rows, problems


def count_loops(functions: list[tuple[str, str, str]]) -> tuple[list[LoopBudget], list[str]]:
    """Count the hot loops of all bfloat16 kernels among the functions that split_sass gives."""
    rows, problems = [], []
    for arch, mangled, code in functions:
        name = kernel_name(mangled)
        if arch in ARCHITECTURES and "bf16" in name.split():
            counted, unknown = count_kernel(arch, name, code)
            rows += counted
            problems += unknown
    return sorted(rows, key=lambda row: row.key), problems


def read_table(path: Path = TABLE) -> list[LoopBudget]:
    """Read the budgets."""
    with path.open(newline="", encoding="utf-8") as file:
        return [LoopBudget(*row[:3], *map(int, row[3:-1]), row[-1]) for row in list(csv.reader(file))[1:]]


def write_table(rows: list[LoopBudget], path: Path = TABLE) -> None:
    """Write rows over those of the same kernels, whatever their sizes were, and keep the others."""
    families = {(row.arch, row.kernel.rsplit(" ", 1)[0]) for row in rows}
    before = read_table(path) if path.is_file() else []
    kept = {row.key: row for row in before if (row.arch, row.kernel.rsplit(" ", 1)[0]) not in families}
    kept |= {row.key: row for row in rows}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(LoopBudget))
        writer.writerows(dataclasses.astuple(row) for _, row in sorted(kept.items()))


def over_budget(rows: list[LoopBudget], budgets: list[LoopBudget]) -> list[str]:
    """Return what is wrong: loops over their budget, or without one."""
    problems = []
    by_key = {budget.key: budget for budget in budgets}
    for row in rows:
        budget = by_key.get(row.key)
        where = f"sm_{row.arch} {row.kernel}, {row.loop}"
        if budget is None:
            problems.append(f"{where}: no budget in {TABLE.name} (--write makes one)")
            continue
        for what, now, most in (
            ("instructions an mma", row.per_mma, budget.per_mma),
            ("instructions for 16 bytes copied", row.per_copy, budget.per_copy),
            ("shared-memory cycles an mma", row.shared_per_mma, budget.shared_per_mma),
        ):
            if now > SLACK * most:
                problems.append(f"{where}: {now:.1f} {what}, the budget is {most:.1f}")
    return problems


def check_loops(functions: list[tuple[str, str, str]]) -> list[str]:
    """Count the hot loops, print them, and return what is wrong with them."""
    rows, problems = count_loops(functions)
    print_loops(rows)
    print_limits(rows)
    return problems + over_budget(rows, read_table())


def is_headline(name: str) -> bool:
    """Return whether a kernel computes both products for a bottleneck of 64."""
    return bool(re.search(r"tile_kernel \w+ bf16 64,", name))


def print_limits(rows: list[LoopBudget]) -> None:
    """Print what limits the kernels, with what was counted in the place of the budgets."""
    counted = collect_loops((row.arch, row.kernel, row.loop, row.instructions, row.shared_cycles) for row in rows)
    print("\npredicted, with each limit on an H100 in microseconds (benchmarks/roofline.py)")
    print(limit_table(Model(MODEL.constants, MODEL.loops | counted)), flush=True)


def share_instructions(rows: list[LoopBudget]) -> float:
    """Return the instructions of a tile kernel's loops for a warp's share of 64 x 32 elements of the tile."""
    size = int(rows[0].kernel.split()[-1].split(",")[0])
    mma = SHARE_ELEMENTS * size / MMA_ELEMENTS  # of one product
    products = sum(expected.products for expected in expected_loops(rows[0].kernel))
    return sum(row.instructions for row in rows) * mma * products / sum(row.mma for row in rows)


def print_loops(rows: list[LoopBudget]) -> None:
    """Print what was counted, one line a loop, and the figure of the headline's kernels."""
    print(f"{'hot loops, one iteration of a warp':68s} instr  mma  /mma  ldsm copies /16 B  shared  missed targets")
    for row in rows:
        print(
            f"sm_{row.arch} {row.kernel + ', ' + row.loop:62s} {row.instructions:5d} {row.mma:4d} {row.per_mma:5.1f} "
            f"{row.ldmatrix:5d} {row.copies:6d} {row.per_copy:5.1f} {row.shared_cycles:7d}  {row.missed}"
        )
    for (arch, kernel), loops in itertools.groupby(rows, key=lambda row: (row.arch, row.kernel)):
        if is_headline(kernel):
            share = share_instructions(list(loops))
            print(f"sm_{arch} {kernel}: {share:.0f} a warp and 64x32 elements, target {SHARE_TARGET:.0f}")


def read_resources(report: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Read registers and bytes of local memory from `cuobjdump -res-usage`, by architecture and short name."""
    found, arch = {}, ""
    for line in re.split(r"(?=arch = )|(?=Function )", report):
        arch = new.group(1) if (new := re.match(r"arch = sm_(\w+)", line)) else arch
        usage = re.match(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", line, re.DOTALL)
        if usage:
            found[arch, kernel_name(usage.group(1))] = int(usage.group(2)), int(usage.group(3)) + int(usage.group(4))
    return found


def with_resources(row: LoopBudget, resources: dict[tuple[str, str], tuple[int, int]]) -> LoopBudget:
    """Return the row with its kernel's registers and local memory."""
    registers, spilled = resources[row.arch, row.kernel]
    return dataclasses.replace(row, registers=registers, spilled=spilled)


def main() -> int:
    """Disassemble objects, count, compare."""
    from check_ptxas import find_tool  # which imports this file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", type=Path, help="compiled kernels, or the library")
    parser.add_argument("--write", action="store_true", help="make what is counted the budgets")
    arguments = parser.parse_args()
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None:
        sys.exit("instruction_budgets: cuobjdump must be on PATH or in CUDA_HOME/bin, found none")
    parts = [part for o in arguments.objects for part in split_sass(disassemble(cuobjdump, o, "-sass"))]
    rows, problems = count_loops(parts)
    print_loops(rows)
    if arguments.write:
        resources = read_resources("".join(disassemble(cuobjdump, o, "-res-usage") for o in arguments.objects))
        write_table([with_resources(row, resources) for row in rows])
        print("now write what rests on them anew: csrc/kernels/cuda/plan_table.h, as it says, and `make bench-table`")
    else:
        problems += over_budget(rows, read_table())
    print("\n".join(problems) if problems else f"{len(rows)} hot loops counted, all within their budgets")
    return 1 if problems or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
