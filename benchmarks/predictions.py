"""What is predicted for a GPU where nothing was measured yet: the README's table until then. Predictions, no more.

The operator's own times are the roofline's (roofline.py), by the plan that it finds fastest. "copy" is the least that
any implementation can do, "eager" what PyTorch's formula moves: passes over the hidden states at the speed of a copy.
"""

import itertools

from gpu_limits import BYTES, CUBLAS, GPUS, Cell, Gpu
from kernel_launches import MODEL, Model
from limits import SHAPES, plans
from roofline import predict

# Passes over the hidden states, forward and backward, for scaling != 1.
PASSES = {"copy": (2, 3), "eager": (7, 10)}
DIRECTIONS = {"forward": ("forward",), "forward + backward": ("forward", "backward")}


def moved_us(gpu: Gpu, implementation: str, cell: Cell, mode: str) -> float:
    """Return the microseconds that the bytes of an implementation take at the speed of a copy."""
    tokens, columns, bottleneck = cell
    forward, backward = PASSES[implementation]
    both = mode != "forward"
    passes, weights = (forward + backward, 6) if both else (forward, 2)
    return BYTES * columns * (passes * tokens + weights * bottleneck) / gpu.copy_bytes


def predicted_us(gpu: Gpu, cell: Cell, mode: str, model: Model = MODEL) -> tuple[float, float, str]:
    """Return the microseconds of the fastest plans and of the cublas path, and what limits the former's forward."""
    choices = [plan for _, fitting in plans(gpu, cell, model) for plan in fitting]
    best, cublas, limit = 0.0, 0.0, ""
    for direction in DIRECTIONS[mode]:
        found = min((predict(gpu, direction, cell, plan, model) for plan in choices), key=lambda p: p.us)
        best, limit = best + found.us, limit or found.limit
        cublas += predict(gpu, direction, cell, CUBLAS, model).us
    return best, cublas, limit


def prediction_table(gpu: Gpu = GPUS["H200"]) -> str:
    """Return the table of predictions."""
    lines = [
        "| predicted: tokens × hidden, bottleneck | mode "
        "| adapterx, µs | limited by | / copy | cuBLASLt / adapterx | eager / adapterx |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell, mode in itertools.product(SHAPES, DIRECTIONS):
        best, cublas, limit = predicted_us(gpu, cell, mode)
        copy, eager = (moved_us(gpu, name, cell, mode) for name in PASSES)
        ratios = " | ".join(f"{ratio:.2f}" for ratio in (best / copy, cublas / best, eager / best))
        lines.append(f"| {cell[0]} × {cell[1]}, {cell[2]} | {mode} | {best:.1f} | {limit} | {ratios} |")
    note = f"Predictions for an {gpu.name} in bfloat16, not measurements (`benchmarks/roofline.py` says from what)."
    return "\n".join([*lines, "", note])
