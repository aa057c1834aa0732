"""Measure the operator against the plain formula, eager and compiled, forward and with backward.

    python benchmarks/bench_op.py                    # on the CPU: the standard shapes, about six minutes on two cores
    python benchmarks/bench_op.py --quick            # the shape of the targets only
    python benchmarks/bench_op.py --threads 1 --clock cpu
    python benchmarks/bench_op.py --device cuda      # on a GPU, also against cuBLASLt alone and a copy of the bytes
    python benchmarks/bench_op.py --device cuda --sweep   # every kernel over a grid: the source of the plan table

Rows are appended to benchmarks/results/bench_op_DEVICE.csv. Ratios above 1 mean that adapterx is faster.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import bench_op_cuda
import cuda_timing
import op_sweep
import torch
from harness import RESULTS, Case, Deadline, Machine, append_rows, cpu_machine, rows_of, time_in_turns
from op_calls import flop_count, make_calls

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


def run_case(case: Case, machine: Machine, *, repeats: int, metric: str) -> list[dict[str, object]]:
    """Time one case on the CPU and return its rows."""
    torch.compiler.reset()
    operators = {
        "adapterx": ops.bottleneck_adapter,
        "eager": reference.bottleneck_adapter,
        "torch.compile": torch.compile(reference.bottleneck_adapter, fullgraph=True),
    }
    samples = time_in_turns(make_calls(operators, case, machine), repeats=repeats, sample=machine.sample)
    return rows_of("bench_op", case, samples, subject="adapterx", flop=flop_count(case), metric=metric, machine=machine)


def print_rows(rows: list[dict[str, object]]) -> None:
    """Print times and ratios, a line each."""
    for row in rows:
        if row["metric"] != "throughput":
            shape = f"{row['num_tokens']:5} {row['hidden_size']:5} {row['bottleneck_dim']:3} {row['dtype']:9}"
            spread = f"{row['median']:8.3f} [{row['p20']:.3f}, {row['p80']:.3f}]"
            print(f"{row['mode']:17} {shape} {row['implementation']:15} {row['metric']:21} {spread}", flush=True)


def run_on_cpu(options: argparse.Namespace) -> None:
    """Run the standard shapes on the CPU."""
    torch.set_num_threads(options.threads)
    clock, metric = CLOCKS[options.clock]
    machine = cpu_machine(clock)
    cases = [
        Case(mode, *shape, dtype)
        for dtype, shapes in ((torch.float32, SHAPES), (torch.bfloat16, BF16_SHAPES))
        for shape in ((TARGET_SHAPE,) if options.quick else shapes)
        for mode in MODES
    ]
    for case in cases:
        rows = run_case(case, machine, repeats=options.repeats, metric=metric)
        print_rows(rows)
        if not options.dry_run:
            append_rows(machine.results(options.results, "bench_op"), rows)


def run_on_cuda(options: argparse.Namespace) -> None:
    """Run the standard shapes, or the sweep, on the GPU."""
    machine, deadline = cuda_timing.cuda_machine(), Deadline(options.seconds)
    path = machine.results(options.results, "bench_op", "sweep" if options.sweep else "")
    more, batches = {}, bench_op_cuda.batches
    if options.sweep:
        known = op_sweep.known_cells(path, options.quick) if options.resume else ()
        more, batches = {"known": known, "without": options.without.split(",")}, op_sweep.batches
    for rows in batches(machine, deadline, repeats=options.repeats, quick=options.quick, **more):
        print_rows(rows)
        if not options.dry_run:
            append_rows(path, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sweep", action="store_true", help="with --device cuda: all kernels over a grid of shapes")
    parser.add_argument("--resume", action="store_true", help="with --sweep: go on behind what is in the file")
    parser.add_argument("--without", default="", help="with --sweep: plans that are left out, with commas between")
    parser.add_argument("--quick", action="store_true", help="only the shape of the targets")
    parser.add_argument("--repeats", type=int, help="rounds (default 41; in a sweep 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="cpu: processor time, for loaded machines"
    )
    parser.add_argument("--seconds", type=float, help="with --device cuda: skip what is left after so many seconds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--dry-run", action="store_true", help="print the rows, do not store them")
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or (7 if options.sweep else 41)
    if options.sweep and options.device == "cpu":
        parser.error("--sweep needs --device cuda: the CPU has one kernel")
    (run_on_cuda if options.device == "cuda" else run_on_cpu)(options)


if __name__ == "__main__":
    main()
