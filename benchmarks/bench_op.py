"""Measure the operator against the plain formula, eager and compiled, forward and with backward, on the CPU.

    python benchmarks/bench_op.py                    # the standard shapes, about six minutes on two cores
    python benchmarks/bench_op.py --quick            # the shape of the targets only
    python benchmarks/bench_op.py --threads 1 --clock cpu

Rows are appended to benchmarks/results/bench_op_cpu.csv. Ratios above 1 mean that adapterx is faster.
"""

import argparse
import time
from collections.abc import Callable

import torch
from harness import RESULTS, Case, append_rows, rows_of, time_in_turns

from adapterx import ops, reference

TARGET_SHAPE = (2048, 768, 48)
SHAPES = (
    TARGET_SHAPE,
    (1, 8, 2),  # nothing but the overhead of a call
    (8, 768, 48),
    (64, 768, 48),
    (512, 768, 48),
    (2048, 384, 16),
    (4096, 1024, 32),
    (2048, 4096, 64),
)
BF16_SHAPES = (TARGET_SHAPE, (64, 768, 48))
MODES = ("forward", "forward_backward")
CLOCKS = {"wall": (time.perf_counter, "time"), "cpu": (time.process_time, "cpu time")}
ACTIVATION = "gelu"


def make_tensors(case: Case) -> dict[str, torch.Tensor]:
    """Draw the tensors of one case; all require gradients in mode "forward_backward"."""
    generator = torch.Generator().manual_seed(0)
    d, m = case.hidden_size, case.bottleneck_dim
    shapes = {
        "hidden_states": (case.num_tokens, d),
        "down_weight": (m, d),
        "down_bias": (m,),
        "up_weight": (d, m),
        "up_bias": (d,),
    }
    tensors = {
        name: torch.randn(shape, generator=generator).mul_(0.05).to(case.dtype) for name, shape in shapes.items()
    }
    for tensor in tensors.values():
        tensor.requires_grad_(case.mode == "forward_backward")
    return tensors


def make_call(operator: Callable, case: Case) -> Callable[[], object]:
    """Return a function without arguments that runs `operator` once in the mode of the case."""
    tensors = make_tensors(case)
    hidden_states, *weights = tensors.values()
    cotangent = torch.ones_like(hidden_states)

    def forward() -> object:
        with torch.inference_mode():
            return operator(hidden_states, hidden_states, *weights, activation=ACTIVATION, scaling=0.5)

    def forward_backward() -> object:
        output = operator(hidden_states, hidden_states, *weights, activation=ACTIVATION, scaling=0.5)
        return torch.autograd.grad(output, tuple(tensors.values()), cotangent)

    return forward if case.mode == "forward" else forward_backward


def flop_count(case: Case) -> float:
    """Count the multiplications and additions of the matrix products."""
    one = 2.0 * case.num_tokens * case.hidden_size * case.bottleneck_dim
    return one * (2 if case.mode == "forward" else 6)


def run_case(case: Case, *, repeats: int, clock: str) -> list[dict[str, object]]:
    """Time one case and return its rows."""
    torch.compiler.reset()
    compiled = torch.compile(reference.bottleneck_adapter, fullgraph=True)
    implementations = {
        "adapterx": make_call(ops.bottleneck_adapter, case),
        "eager": make_call(reference.bottleneck_adapter, case),
        "torch.compile": make_call(compiled, case),
    }
    samples = time_in_turns(implementations, repeats=repeats, clock=CLOCKS[clock][0])
    return rows_of("bench_op", case, samples, subject="adapterx", flop=flop_count(case), metric=CLOCKS[clock][1])


def print_rows(rows: list[dict[str, object]]) -> None:
    """Print times and ratios, a line each."""
    for row in rows:
        if row["metric"] != "throughput":
            shape = f"{row['num_tokens']:5} {row['hidden_size']:5} {row['bottleneck_dim']:3} {row['dtype']:9}"
            spread = f"{row['median']:8.3f} [{row['p20']:.3f}, {row['p80']:.3f}]"
            print(f"{row['mode']:17} {shape} {row['implementation']:14} {row['metric']:20} {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the shape of the targets")
    parser.add_argument("--repeats", type=int, default=41, help="rounds (default 41)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="cpu: processor time, for loaded machines"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the rows, do not store them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [
        Case(mode, *shape, dtype)
        for dtype, shapes in ((torch.float32, SHAPES), (torch.bfloat16, BF16_SHAPES))
        for shape in ((TARGET_SHAPE,) if options.quick else shapes)
        for mode in MODES
    ]
    for case in cases:
        rows = run_case(case, repeats=options.repeats, clock=options.clock)
        print_rows(rows)
        if not options.dry_run:
            append_rows(RESULTS / "bench_op_cpu.csv", rows)


if __name__ == "__main__":
    main()
