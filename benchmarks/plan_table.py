"""Write csrc/kernels/cuda/plan_table.h, the table that says which kernel serves which problem on a GPU.

    python benchmarks/plan_table.py --from-roofline
    python benchmarks/plan_table.py --from-results benchmarks/results/bench_op_cuda_sweep_DEVICE.csv
    python benchmarks/plan_table.py --check     # the committed header is what the source that it names gives

The first row that matches a problem and whose tile fits into shared memory wins. Sizes are upper limits. A sweep
(`bench_op.py --device cuda --sweep`) gives the fastest implementation of each cell of its grid; the border between
two cells is their geometric mean, and rows that change no cell are left out. The roofline (roofline.py) predicts the
times of such a grid instead, for devices that no sweep has covered: H100 for compute capability 90, A100 for 80.
Behind either stand rules for what they leave: tiles that do not fit, and grouped problems, which cuBLASLt cannot serve.
These are 64 tokens a tile where that fills the device, else 16 and as many blocks as possible.
"""

import argparse
import csv
import functools
import itertools
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_limits import CUBLAS, GPUS, Cell, Gpu, Plan
from kernel_launches import MAX_BOTTLENECK_DIM, fits
from roofline import predict

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc" / "kernels" / "cuda" / "plan_table.h"
DIRECTIONS = ("forward", "backward")
ANY = None  # no limit

# The grid of the roofline, the GPU that stands for each compute capability, and the plans to choose from.
PREDICTED_TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
PREDICTED_HIDDEN_SIZES = (64, 128, 256, 512, 768, 1024, 2048, 4096, 8192)
PREDICTED_BOTTLENECK_DIMS = (16, 32, 64, 128)
PREDICTED_GPUS = {90: GPUS["H100"], 80: GPUS["A100"]}
PLANS: tuple[Plan, ...] = (*itertools.product((16, 64), (1, 2, 4, 8)), CUBLAS)

# The rules.
BLOCKS_THAT_FILL_THE_DEVICE = 132  # SMs of an H100 or H200
# A block with at most this many columns of 64 tokens leaves room for a second one on its SM, which computes while the
# first waits for its cluster.
WIDE_COLUMNS = 512
NARROW_COLUMNS = 64  # few tokens: as many SMs as possible read the weights
MAX_CLUSTER_SIZE = 8

# Times that differ by less are the same: the neighbour's choice is kept then, so that noise does not tear the table.
TIE = 1.02

Times = dict[str, dict[Cell, dict[Plan, float]]]  # by direction; milliseconds


@dataclass(frozen=True)
class Row:
    """One line of the table; sizes are upper limits, ANY is none."""

    capability: int
    num_tokens: int | None
    hidden_size: int | None
    bottleneck_dim: int | None
    plan: Plan

    def serves(self, cell: Cell) -> bool:
        """Return whether the sizes are within the limits."""
        limits = (self.num_tokens, self.hidden_size, self.bottleneck_dim)
        return all(limit is ANY or size <= limit for size, limit in zip(cell, limits, strict=True))


def cluster_limits(columns: int) -> Iterator[tuple[int | None, int]]:
    """Return pairs of a hidden_size and the smallest power of two with which a block owns at most `columns` columns."""
    size = 1
    while size < MAX_CLUSTER_SIZE:
        yield size * columns, size
        size *= 2
    yield ANY, size


def predicted_times(gpu: Gpu, direction: str) -> dict[Cell, dict[Plan, float]]:
    """Return what the roofline predicts for each cell of its grid and each plan that fits there."""
    cells = itertools.product(PREDICTED_TOKENS, PREDICTED_HIDDEN_SIZES, PREDICTED_BOTTLENECK_DIMS)
    return {
        cell: {plan: predict(gpu, direction, cell, plan).us for plan in PLANS if fits(gpu, cell, plan)}
        for cell in cells
    }


@functools.cache
def predicted_rows(capability: int, direction: str) -> list[Row]:
    """Return the roofline's rows; the last one sends what their tiles cannot serve to the cublas path."""
    rows = grid_rows(capability, predicted_times(PREDICTED_GPUS[capability], direction))
    last = Row(capability, ANY, ANY, ANY, CUBLAS)
    return rows if rows[-1] == last else [*rows, last]


def rule_rows(capability: int) -> list[Row]:
    """Return the rules for devices of this compute capability and newer; clusters exist from 90 on."""
    wide, narrow = [[(ANY, 1)]] * 2
    if capability >= 90:
        wide, narrow = list(cluster_limits(WIDE_COLUMNS)), list(cluster_limits(NARROW_COLUMNS))

    def row(num_tokens: int | None, hidden_size: int | None, plan: Plan) -> Row:
        return Row(capability, num_tokens, hidden_size, MAX_BOTTLENECK_DIM, plan)

    def cluster_size(limits: list[tuple[int | None, int]], border: int | None) -> int:
        return next(size for limit, size in limits if limit is ANY or (border is not ANY and border <= limit))

    rows = []
    for border in (*sorted({limit for limit, _ in (*wide, *narrow) if limit is not ANY}), ANY):
        tiles = -(-BLOCKS_THAT_FILL_THE_DEVICE // cluster_size(wide, border))  # so many of 64 tokens fill the device
        rows.append(row(64 * (tiles - 1), border, (16, cluster_size(narrow, border))))
    if capability < 90:  # without clusters a wide bottleneck needs more shared memory than some devices have
        rows.append(row(rows[-1].num_tokens, ANY, CUBLAS))
    rows += [row(ANY, limit, (64, size)) for limit, size in wide]
    rows += [row(ANY, limit, (16, size)) for limit, size in narrow]  # where a tile of 64 tokens does not fit
    return rows


def parse_plan(implementation: str) -> Plan | None:
    """Return the plan that an implementation of the sweep was pinned to, or None where it is no plan."""
    if implementation == "cublas":
        return CUBLAS
    found = re.fullmatch(r"tile:(\d+)x(\d+)", implementation)
    return None if found is None else (int(found[1]), int(found[2]))


def read_sweep(path: Path) -> tuple[str, int, Times]:
    """Return the device's name, its compute capability and the times of a sweep; later rows replace earlier ones.

    Raises:
        ValueError: the rows are of several devices, or none of them is a time of the sweep.
    """
    times: Times = {direction: {} for direction in DIRECTIONS}
    devices = set()
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            plan = parse_plan(row["implementation"])
            if row["benchmark"] != "bench_op_sweep" or row["metric"] != "time" or plan is None:
                continue
            devices.add(row["device"])
            cell = (int(row["num_tokens"]), int(row["hidden_size"]), int(row["bottleneck_dim"]))
            times[row["mode"]].setdefault(cell, {})[plan] = float(row["median"])
    if len(devices) != 1:
        raise ValueError(f"read_sweep: {path.name} must hold the sweep of one device, got {sorted(devices) or 'none'}")
    found = re.fullmatch(r"(.+) \(sm_(\d+)\)", devices.pop())
    if found is None:
        raise ValueError(f"read_sweep: the device in {path.name} must end with its architecture, such as '(sm_90)'")
    return found[1], int(found[2]), {direction: whole_planes(cells) for direction, cells in times.items()}


def whole_planes(times: dict[Cell, dict[Plan, float]]) -> dict[Cell, dict[Plan, float]]:
    """Return the planes (all cells of one bottleneck_dim) that are whole: a sweep may have run out of time in one.

    A plane is whole that has every number of tokens and every hidden_size of the sweep; which are not is printed.
    """
    if not times:
        return {}
    tokens, hidden_sizes, bottleneck_dims = (set(axis) for axis in zip(*times, strict=True))
    grid = set(itertools.product(tokens, hidden_sizes))
    cut = {m for m in bottleneck_dims if {cell[:2] for cell in times if cell[2] == m} != grid}
    if cut and cut != bottleneck_dims:
        print(f"plan_table: left out, cells are missing: bottleneck_dim {sorted(cut)}", file=sys.stderr)
        return {cell: plans for cell, plans in times.items() if cell[2] not in cut}
    return times


def check_grid(cells: Iterable[Cell]) -> tuple[list[int], ...]:
    """Return the sorted sizes of each dimension.

    Raises:
        ValueError: a cell of the grid that they span is missing.
    """
    cells = set(cells)
    axes = tuple(sorted(set(axis)) for axis in zip(*cells, strict=True))
    missing = [(t, d, m) for t in axes[0] for d in axes[1] for m in axes[2] if (t, d, m) not in cells]
    if missing:
        raise ValueError(f"check_grid: the sweep must cover its grid, got none of {missing[:3]}: let it run to its end")
    return axes


def choose_plans(times: dict[Cell, dict[Plan, float]]) -> dict[Cell, Plan]:
    """Return the fastest plan of each cell; among equals, the one that the cell of fewer tokens has."""
    chosen: dict[Cell, Plan] = {}
    previous: Cell | None = None
    for cell in sorted(times, key=lambda cell: (cell[2], cell[1], cell[0])):
        best = min(times[cell], key=times[cell].get)
        if previous is not None and previous[1:] == cell[1:]:
            before = chosen[previous]
            if times[cell].get(before, math.inf) <= TIE * times[cell][best]:
                best = before
        chosen[cell], previous = best, cell
    return chosen


def grid_rows(capability: int, times: dict[Cell, dict[Plan, float]]) -> list[Row]:
    """Return the fewest rows that give each cell of the grid its plan."""
    axes = check_grid(times)
    limits = [
        dict(zip(axis, [*(math.isqrt(a * b) for a, b in itertools.pairwise(axis)), ANY], strict=True)) for axis in axes
    ]
    chosen = choose_plans(times)
    # Ordered like this, the first row whose limits hold a problem is that of its own cell.
    order = sorted(chosen, key=lambda cell: (cell[2], cell[1], cell[0]))
    rows = [Row(capability, *(limits[i][cell[i]] for i in range(3)), chosen[cell]) for cell in order]
    serving = {cell: next(row for row in rows if row.serves(cell)) for cell in chosen}
    for row in list(rows):
        behind = rows[rows.index(row) + 1 :]
        own = [cell for cell in chosen if serving[cell] is row]
        others = {cell: next((other for other in behind if other.serves(cell)), row) for cell in own}
        if all(other is not row and other.plan == chosen[cell] for cell, other in others.items()):
            rows.remove(row)
            serving |= others
    return rows


def answer(rows: list[Row], cell: Cell) -> Plan | None:
    """Return the plan of the first row that serves the cell, if any."""
    return next((row.plan for row in rows if row.serves(cell)), None)


def table_of(sweep: Path | None) -> tuple[str, dict[str, list[Row]]]:
    """Return the source as `plan_table_source` names it, and the rows of each direction."""
    if sweep is None:
        return "roofline", {
            direction: [
                row for capability in (90, 80) for row in predicted_rows(capability, direction) + rule_rows(capability)
            ]
            for direction in DIRECTIONS
        }
    name, capability, times = read_sweep(sweep)
    rows = {}
    for direction in DIRECTIONS:
        measured = grid_rows(capability, times[direction])
        older = predicted_rows(80, direction) + rule_rows(80)
        if capability >= 90:
            rows[direction] = measured + rule_rows(90) + older
        else:
            rows[direction] = predicted_rows(90, direction) + rule_rows(90) + measured + older
    return f"measured on {name}", rows


def format_row(row: Row) -> str:
    """Return the line of C++."""
    sizes = ["kAny" if size is ANY else str(size) for size in (row.num_tokens, row.hidden_size, row.bottleneck_dim)]
    row_tile, cluster_size = row.plan
    return f"    {{{row.capability:3}, {sizes[0]:>8}, {sizes[1]:>8}, {sizes[2]:>5}, {row_tile:2}, {cluster_size}}},"


def format_table(name: str, rows: list[Row]) -> str:
    """Return the array of C++."""
    return f"inline constexpr PlanRow {name}[] = {{\n" + "\n".join(map(format_row, rows)) + "\n};"


TEMPLATE = """\
// Which kernel serves which problem. Written by a program, do not edit:
//     python benchmarks/plan_table.py{options}
#pragma once

#include <cstdint>

namespace adapterx::cuda {{

inline constexpr const char* kPlanTableSource = "{source}";

// A row serves bfloat16 and float16 problems on devices of its compute capability (10 * major + minor) and newer whose
// sizes do not exceed its limits. The first row that serves a problem and whose tile fits into the device's shared
// memory wins. row_tile 0 is the cublas path, which also serves whatever no row serves: other dtypes, wider
// bottlenecks.
struct PlanRow {{
  int32_t capability;
  int64_t num_tokens;
  int64_t hidden_size;
  int64_t bottleneck_dim;
  int32_t row_tile;
  int32_t cluster_size;
}};

inline constexpr int64_t kAny = INT64_MAX;  // no limit

// clang-format off: the columns are aligned.
// capability, num_tokens, hidden_size, bottleneck_dim, row_tile, cluster_size
{forward}

{backward}
// clang-format on

}}  // namespace adapterx::cuda
"""


def header_text(sweep: Path | None) -> str:
    """Return the header that a source gives; a sweep must lie inside the repository, so that others can check it."""
    options = " --from-roofline"
    if sweep is not None:
        sweep = sweep.resolve()
        if not sweep.is_relative_to(ROOT):
            raise ValueError(f"header_text: the sweep must lie in the repository, got {sweep}")
        # On a line of its own: the file has the name of a device.
        options = f"\n//         --from-results {sweep.relative_to(ROOT).as_posix()}"
    source, rows = table_of(sweep)
    tables = {name: format_table(f"k{name.capitalize()}Rows", rows[name]) for name in DIRECTIONS}
    return TEMPLATE.format(options=options, source=source, **tables)


def source_of(header: str) -> Path | None:
    """Return the sweep that a header says it was written from; None for the roofline.

    Raises:
        ValueError: the header does not say.
    """
    found = re.search(r"plan_table\.py(?: --from-roofline|\n//\s+--from-results (\S+))\n", header)
    if found is None:
        raise ValueError("source_of: the header must name the command that wrote it")
    return None if found[1] is None else ROOT / found[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from-roofline", action="store_true")
    source.add_argument("--from-results", type=Path, metavar="CSV")
    source.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if not options.check:
        HEADER.write_text(header_text(options.from_results), encoding="utf-8")
        return 0
    text = HEADER.read_text(encoding="utf-8")
    if text == header_text(source_of(text)):
        return 0
    print(f"{HEADER.name} is not what its source gives; run the command that it names", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
