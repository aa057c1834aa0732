"""How long the kernels should take on a GPU, and what limits them: predictions, not measurements.

A launch is held against five limits. *memory*: its bytes at the speed of a copy. *tensor cores*: its mma at the rate of
mma.sync. *issue*: its warp instructions at one a cycle and scheduler. *shared memory*: what its accesses take of each
SM's pipe at 128 bytes a cycle. *latency*: blocks come in waves; within a wave a warp executes an instruction every few
cycles, the more of them the more warps share its scheduler, and waits for each chunk of columns (or tile) once. The
prediction is the launch and its longest limit. Instructions and shared-memory cycles are those counted in the SASS
(tests/cuda/instruction_budgets.csv), so a kernel that changes is predicted anew once its budgets are.

The constants of the latency were fitted to the sweep of one H100 (calibrate_roofline.py), where the tile kernels have
no other limit; those of the cublas path to the same sweep. The median error there is 10 %.
"""

from collections import defaultdict
from dataclasses import dataclass

from gpu_limits import BYTES, CUBLAS, Cell, Gpu, Plan
from kernel_launches import MODEL, Model, resident_launch, tile_launch, weight_gradient_launches


@dataclass(frozen=True)
class Prediction:
    """The time of a call, and the limit that takes the largest part of it."""

    us: float
    limit: str
    limits: dict[str, float]  # the sums over its launches


def predict(gpu: Gpu, direction: str, cell: Cell, plan: Plan, model: Model = MODEL) -> Prediction:
    """Return how long a call should take within a CUDA graph; `direction` is "forward" or "backward"."""
    (tokens, columns, bottleneck), constants = cell, model.constants
    if plan == CUBLAS:
        way = int(direction == "backward")
        moved = BYTES * ((5 if way else 3) * tokens * columns + (6 if way else 2) * columns * bottleneck)
        limits = {
            "memory": moved / (constants.cublas_speed[way] * gpu.copy_bytes),
            "launches": constants.cublas[way] + constants.cublas_column[way] * columns,
        }
        return Prediction(sum(limits.values()), max(limits, key=limits.get), limits)
    tile = resident_launch if plan[0] == 32 else tile_launch
    launches = [tile(gpu, direction, cell, plan, model)]
    if direction == "backward":
        launches += weight_gradient_launches(gpu, cell, model)
    limits, us = defaultdict(float), 0.0
    for launch in launches:
        own = launch.limits(gpu, constants)
        us += constants.launch + max(own.values())
        for name, value in own.items():
            limits[name] += value
    return Prediction(us, max(limits, key=limits.get), dict(limits))
