"""What was counted in the kernels and what limits them: the tables of docs/cuda.md (`make bench-table` writes them).

The build check (tests/cuda/instruction_budgets.py) prints the second one for the kernels that it has just counted.
"""

import csv
import itertools
from collections.abc import Iterator

from gpu_limits import BUDGETS, CUBLAS, GPUS, Cell, Gpu, Plan, architecture
from kernel_launches import MODEL, Model, TileLayout, fits, resident_kernel
from roofline import Prediction, predict

# The headline and the other shapes that the targets name.
SHAPES: tuple[Cell, ...] = ((16384, 4096, 64), (16384, 1024, 64), (2048, 768, 48), (8, 4096, 64))
TILES = {"tile": tuple(itertools.product((16, 64), (1, 2, 4, 8))), "resident": ((32, 1), (32, 2), (32, 4), (32, 8))}
LIMITS = ("memory", "tensor cores", "issue", "shared memory", "latency")


def plans(gpu: Gpu, cell: Cell, model: Model) -> Iterator[tuple[str, tuple[Plan, ...]]]:
    """Yield the kernels that serve a problem on a device, and their plans."""
    for name, tiles in TILES.items():
        fitting = tuple(plan for plan in tiles if fits(gpu, cell, plan, model))
        if fitting:
            yield name, fitting
    yield "cublas", (CUBLAS,)


def predictions(model: Model) -> Iterator[tuple[Cell, str, str, dict[str, Prediction]]]:
    """Yield shape, direction, plan and what is predicted for each GPU, each kernel with its fastest plan on an H100."""
    gpus = {name: GPUS[name] for name in ("H100", "H200")}
    for cell, direction in itertools.product(SHAPES, ("forward", "backward")):
        for name, choices in plans(gpus["H100"], cell, model):
            plan = min(choices, key=lambda p: predict(gpus["H100"], direction, cell, p, model).us)
            shown = name if plan == CUBLAS else f"{name} {plan[0]}x{plan[1]}"
            yield cell, direction, shown, {g: predict(gpu, direction, cell, plan, model) for g, gpu in gpus.items()}


def limit_table(model: Model = MODEL) -> str:
    """Return the predictions: microseconds, the limit that binds, and each limit on an H100."""
    heads = ("tokens × hidden, bottleneck", "call", "plan", "H100, µs", "H200, µs", *LIMITS)
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (tokens, columns, bottleneck), direction, plan, found in predictions(model):
        cells = [f"{tokens} × {columns}, {bottleneck}", direction, plan]
        cells += [f"{found[gpu].us:.1f} ({found[gpu].limit})" for gpu in ("H100", "H200")]
        limits = found["H100"].limits
        cells += [f"{limits[name]:.1f}" if name in limits else "–" for name in LIMITS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bytes_in_flight(kernel: str) -> int:
    """Return how many bytes an SM has asked for at a time, with 512 columns a block: stages that are not worked on."""
    size, *numbers = [int(n) for n in kernel.split()[-1].split(",")]
    if kernel.startswith("resident"):
        exchange = 4 * size // 16 * 32 * (64 if size == 128 else 96) + 256 + 4 * numbers[0]
        stage = 2 * 32 * (numbers[0] + 8)
        return (min(8, (227 * 1024 - exchange) // stage) - 1) * 2 * 32 * numbers[0]
    if kernel.startswith("gradient_stream"):
        stage = 2 * 32 * (256 + 8 + size + 8)
        return (208 * 1024 // stage - 1) * 2 * 32 * (256 + size)
    if kernel.startswith("weight"):
        return 4 * 3 * 2 * 32 * (128 + size)
    layout = TileLayout.of(kernel)
    if layout.row_tiles:  # the whole tile, and a chunk of a weight
        return 2 * 2 * (layout.rows * 512 + size * layout.chunk)
    return (2 if layout.rows == 64 else 3) * 3 * 2 * (layout.rows + size) * layout.chunk


def headline_kernels(gpu: Gpu) -> Iterator[str]:
    """Yield the kernels of a bottleneck of 64, in clusters where there are any."""
    clusters = max(gpu.clusters)
    for rows, direction in itertools.product((32, 64, 16), ("forward", "backward")):
        if rows == 32:
            yield resident_kernel(direction, SHAPES[0], 8)
        elif kernel := MODEL.tile_kernel(gpu, direction, 64, (rows, clusters)):
            yield kernel
    yield from ("gradient_stream_kernel bf16 64", "weight_gradient_kernel bf16 64")


def counted_table() -> str:
    """Return what was counted in the kernels of the headline."""
    heads = ("", "kernel", "instructions", "an mma", "for 16 bytes", "shared memory, cycles")
    heads += ("bytes in flight", "registers", "spilled", "targets missed")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    with BUDGETS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for gpu in (GPUS["H100"], GPUS["A100"]):
        for kernel in headline_kernels(gpu):
            loops = [row for row in rows if (row["arch"], row["kernel"]) == (architecture(gpu), kernel)]
            if loops:
                lines.append("| " + " | ".join([f"sm_{architecture(gpu)}", *counted_cells(kernel, loops)]) + " |")
    return "\n".join(lines)


def counted_cells(kernel: str, loops: list[dict[str, str]]) -> list[str]:
    """Return the figures of one kernel; a warp's share of 64 x 32 elements takes 16 mma of each product."""
    total = {name: sum(int(row[name]) for row in loops) for name in ("instructions", "mma", "shared_cycles")}
    copied = [int(row["copy_instructions"]) / int(row["copies"]) for row in loops if int(row["copies"])]
    shares = total["mma"] / 32
    return [
        kernel.replace("_kernel", "").replace(" bf16", ""),
        f"{total['instructions'] / shares:.0f}",
        f"{total['instructions'] / total['mma']:.1f}",
        " / ".join(f"{each:.1f}" for each in copied),
        f"{total['shared_cycles'] / shares:.0f}",
        f"{bytes_in_flight(kernel):,}".replace(",", " "),
        loops[0]["registers"],
        loops[0]["spilled"],
        ", ".join(dict.fromkeys(part for row in loops for part in row["missed"].split(", ") if part)).replace(
            "<=", "≤"
        ),
    ]


if __name__ == "__main__":
    print(f"{counted_table()}\n\n{limit_table()}")
