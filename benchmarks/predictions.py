"""What the roofline predicts for a GPU: bytes moved over the speed of a copy. Predictions, not measurements.

With X the bytes of the hidden states, each way of computing the adapter passes over them a number of times
(`PASSES`); the weights are read once a pass, and their gradients written once. An H200 copies 4.3 TB/s (measured on
that card); launches, latencies and caches are left out, so the times of small problems are too short by some
microseconds each.
"""

import torch
from bench_op_cuda import MODES, SHAPES
from harness import Case
from op_calls import input_bytes

COPY_BYTES_PER_SECOND = 4.3e12
# Passes over X, forward and backward, for scaling != 1. "copy" is the least that any implementation can do.
PASSES = {"copy": (2, 3), "adapterx": (2, 4), "adapterx cublas": (3, 5), "eager": (7, 10)}


def predict_us(implementation: str, case: Case) -> float:
    """Return the microseconds that the bytes of an implementation take at the speed of a copy."""
    forward, backward = PASSES[implementation]
    tokens = case.num_tokens * case.hidden_size * case.dtype.itemsize
    weights = input_bytes(case) - tokens
    moved = forward * tokens + weights
    if case.mode == "forward_backward":
        moved += backward * tokens + 2 * weights
    return moved / COPY_BYTES_PER_SECOND * 1e6


def prediction_table() -> str:
    """Return the table of predictions."""
    lines = [
        "| predicted: tokens × hidden, bottleneck | mode "
        "| adapterx, µs | / copy | cuBLASLt / adapterx | eager / adapterx |",
        "|---|---|---|---|---|---|",
    ]
    for shape in SHAPES[:4]:
        for mode in MODES:
            case = Case(mode, *shape, torch.bfloat16)
            times = {name: predict_us(name, case) for name in PASSES}
            ratios = [
                times["adapterx"] / times["copy"],
                times["adapterx cublas"] / times["adapterx"],
                times["eager"] / times["adapterx"],
            ]
            cells = [f"{times['adapterx']:.2f}", *(f"{ratio:.2f}" for ratio in ratios)]
            name = mode.replace("_backward", " + backward")
            lines.append(f"| {shape[0]} × {shape[1]}, {shape[2]} | {name} | " + " | ".join(cells) + " |")
    note = (
        "Predictions for an H200 in bfloat16, not measurements: bytes moved at 4.3 TB/s, the speed of a copy on that "
        "card, without launches (`benchmarks/predictions.py`)."
    )
    return "\n".join([*lines, "", note])
