"""Fit the constants of the roofline to a sweep, and say how far its predictions are from what was measured.

    python benchmarks/calibrate_roofline.py benchmarks/results/bench_op_cuda_sweep_DEVICE.csv --gpu H100 --counts COUNTS

Prints constants for roofline.py. The counts must be those of the kernels that were measured: a copy of
tests/cuda/instruction_budgets.csv from the sweep's commit, such as benchmarks/results/sass_counts_sm_90_daa515b.csv.
The fit is a random descent from a fixed seed, on the logarithm of predicted over measured with outliers damped.
"""

import argparse
import dataclasses
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path

from gpu_limits import BUDGETS, CUBLAS, GPUS, Cell, Gpu, Plan, read_loops
from kernel_launches import Model
from plan_table import DIRECTIONS, read_sweep
from roofline import predict

STEPS = 400
DAMPING = 0.1  # errors above count linearly
PARTS = {  # fitted one after the other: direction, whether of the cublas path, constants
    "tile forward": (("forward",), False, ("launch", "more_cycles", "cycles", "wait_cycles", "block")),
    "tile backward": (("backward",), False, ("gradient_wait_cycles", "gradient_block")),
    "cublas": (DIRECTIONS, True, ("cublas", "cublas_column", "cublas_speed")),
}
Measured = tuple[str, Cell, Plan, float]  # direction, sizes, plan, microseconds


def errors(gpu: Gpu, model: Model, measured: list[Measured]) -> list[float]:
    """Return the logarithms of predicted over measured."""
    return [math.log(predict(gpu, way, cell, plan, model).us / us) for way, cell, plan, us in measured]


def descend(cost: Callable[[list[float]], float], start: list[float]) -> list[float]:
    """Return values near `start` with a low cost: random steps, shorter where they do not help."""
    generator = random.Random(0)
    best, least, scale = start, cost(start), 0.3
    for _ in range(STEPS):
        moved = [x * math.exp(scale * generator.gauss(0, 1)) if generator.random() < 0.5 else x for x in best]
        if (found := cost(moved)) < least:
            best, least, scale = moved, found, min(1.2 * scale, 0.5)
        else:
            scale = max(0.99 * scale, 0.005)
    return best


def fit(gpu: Gpu, model: Model, measured: list[Measured], names: tuple[str, ...]) -> Model:
    """Return the model with the constants named fitted to the measurements."""
    shapes = [getattr(model.constants, name) for name in names]
    start = [max(x, 1e-3) for value in shapes for x in (value if isinstance(value, tuple) else (value,))]

    def with_values(values: list[float]) -> Model:
        left = [float(f"{x:.3g}") for x in values]
        taken = [tuple(left.pop(0) for _ in v) if isinstance(v, tuple) else left.pop(0) for v in shapes]
        return Model(dataclasses.replace(model.constants, **dict(zip(names, taken, strict=True))), model.loops)

    def cost(values: list[float]) -> float:
        return sum(math.hypot(1, error / DAMPING) for error in errors(gpu, with_values(values), measured))

    return with_values(descend(cost, start))


def regret(gpu: Gpu, direction: str, model: Model, times: dict[Cell, dict[Plan, float]]) -> list[float]:
    """Return, cell by cell, how much slower the plan predicted to be fastest is than the fastest."""
    found = []
    for cell, by_plan in times.items():
        chosen = min(by_plan, key=lambda plan, cell=cell: predict(gpu, direction, cell, plan, model).us)
        found.append(by_plan[chosen] / min(by_plan.values()))
    return found


def report(gpu: Gpu, model: Model, times: dict[str, dict[Cell, dict[Plan, float]]]) -> None:
    """Print the errors of the predictions and what they cost where they choose the plan."""
    for direction in DIRECTIONS:
        for name, cublas in (("tiles", False), ("cublas", True)):
            off = sorted(map(abs, errors(gpu, model, select(times, (direction,), cublas))))
            most = off[len(off) * 9 // 10]
            print(f"{direction}, {name}: median error {statistics.median(off):.0%}, nine of ten below {most:.0%}")
        lost = regret(gpu, direction, model, times[direction])
        mean, most = statistics.fmean(lost) - 1, max(lost) - 1
        print(f"{direction}: the plans that it chooses are {mean:.1%} slower than the best, {most:.0%} at most")


def select(times: dict, directions: tuple[str, ...], cublas: bool) -> list[Measured]:
    """Return the measurements of some directions, of the cublas path or of the tiles."""
    return [
        (direction, cell, plan, 1e3 * ms)
        for direction in directions
        for cell, by_plan in times[direction].items()
        for plan, ms in by_plan.items()
        if (plan == CUBLAS) == cublas
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--gpu", choices=GPUS, required=True, help="the device of the sweep")
    parser.add_argument("--counts", type=Path, default=BUDGETS, help="of the kernels measured")
    options = parser.parse_args()
    _, _, times = read_sweep(options.sweep)
    gpu, model = GPUS[options.gpu], Model(loops=read_loops(options.counts))
    report(gpu, model, times)
    for part, (directions, cublas, names) in PARTS.items():
        model = fit(gpu, model, select(times, directions, cublas), names)
        print(f"{part}: " + ", ".join(f"{name} {getattr(model.constants, name)}" for name in names), flush=True)
    report(gpu, model, times)


if __name__ == "__main__":
    main()
