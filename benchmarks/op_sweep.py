"""Time every kernel of the operator over a grid of shapes: the measurements behind the plan table.

A cell is a number of tokens, a hidden_size and a bottleneck_dim. Each plan is pinned in turn; one that does not fit is
left out. "backward" is the backward operator alone, all gradients wanted. The time is that of a call within a CUDA
graph: outside of one, few tokens would show what the host needs to launch a plan, not which kernel is faster. Rows come
cell by cell, plane by plane (all cells of one bottleneck_dim); of a sweep that ran out of time, whole planes make the
table. A process that hangs in a cell ends; one that is started with --resume goes on behind that cell.
"""

import csv
import itertools
from collections.abc import Callable, Container, Iterator
from pathlib import Path

import cuda_timing
import torch
from harness import Case, Deadline, Machine, ended_after, pinned, rotate, rows_of, time_in_turns
from op_calls import ACTIVATION, SCALING, input_bytes, make_tensors, moved_bytes

from adapterx import ops

TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
HIDDEN_SIZES = (768, 1024, 2048, 4096, 8192)
BOTTLENECK_DIMS = (64, 16, 128)  # the most usual one first
QUICK = ((16, 4096), (1024, 4096), (64,))
MODES = ("forward", "backward")
PLANS = (*(f"tile:{rows}x{blocks}" for rows in (16, 32, 64) for blocks in (1, 2, 4, 8)), "cublas")
# The gradients that a call of the backward operator is asked for: hidden_states, then weights and biases.
MASKS = {
    "backward": (True,) * 5,
    "grad_input": (True, False, False, False, False),
    "weight_gradients": (False, True, True, True, True),
}
MIN_SAMPLE_MS = 1.0
CASE_S = 30.0
Call = Callable[[], object]
Cell = tuple[str, int, int, int]  # mode, num_tokens, hidden_size, bottleneck_dim


def batches(
    machine: Machine,
    deadline: Deadline,
    *,
    repeats: int,
    quick: bool,
    known: Container[Cell] = (),
    without: Container[str] = (),
) -> Iterator[list[dict[str, object]]]:
    """Yield the rows of each cell as it is measured, plane by plane.

    Args:
        machine: where it runs.
        deadline: after it nothing is measured.
        repeats: rounds.
        quick: a few cells only.
        known: cells that are left out.
        without: plans that are left out.
    """
    for case in cases(quick):
        if cell_of(case) in known:
            continue
        if deadline.passed():
            print(f"bench_op --sweep: out of time in the plane of bottleneck_dim {case.bottleneck_dim}", flush=True)
            return
        with ended_after(CASE_S):
            rows = run_case(case, machine, repeats, without)
        yield rows


def cases(quick: bool) -> list[Case]:
    """Return the cells of the grid in both modes, plane by plane."""
    tokens, hidden_sizes, bottleneck_dims = QUICK if quick else (TOKENS, HIDDEN_SIZES, BOTTLENECK_DIMS)
    grid = itertools.product(bottleneck_dims, tokens, hidden_sizes, MODES)
    return [Case(mode, num_tokens, d, m, torch.bfloat16) for m, num_tokens, d, mode in grid]


def cell_of(case: Case) -> Cell:
    """Return what names a case in the rows."""
    return case.mode, case.num_tokens, case.hidden_size, case.bottleneck_dim


def known_cells(path: Path, quick: bool) -> set[Cell]:
    """Return the cells that an earlier process has measured into a file, and the one in which it ended."""
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "time"]
    known = {
        (row["mode"], *(int(row[size]) for size in ("num_tokens", "hidden_size", "bottleneck_dim"))) for row in rows
    }
    next_one = next((cell for cell in map(cell_of, cases(quick)) if cell not in known), None)
    if known and next_one is not None:
        print(f"bench_op --sweep: left out, an earlier process ended in it: {next_one}", flush=True)
        known.add(next_one)
    return known


def run_case(case: Case, machine: Machine, repeats: int, without: Container[str] = ()) -> list[dict[str, object]]:
    """Time all plans in one cell and return its rows."""
    copies = machine.copies(input_bytes(case))
    call = rotate([make_call(case, machine.device, seed) for seed in range(copies)])
    graphs = {plan: captured(call, plan, copies) for plan in PLANS if plan not in without and can_run(call, plan)}
    samples = time_in_turns(graphs, repeats=repeats, min_sample_ms=MIN_SAMPLE_MS, sample=machine.sample)
    samples = {plan: [time_ms / copies for time_ms in times] for plan, times in samples.items()}
    fastest = min(samples, key=lambda plan: min(samples[plan]))
    return rows_of("bench_op_sweep", case, samples, subject=fastest, moved_bytes=moved_bytes(case), machine=machine)


def can_run(call: Call, plan: str) -> bool:
    """Return whether a plan serves the problem; one that does not is refused with a ValueError."""
    try:
        with pinned(plan):
            call()
    except ValueError:
        return False
    return True


def captured(call: Call, plan: str, calls: int) -> Call:
    """Return the replay of a CUDA graph of so many calls by one plan."""
    with pinned(plan):
        return cuda_timing.capture(call, calls)


def make_call(case: Case, device: str, seed: int) -> Call:
    """Return a function that runs the forward operator, or the backward operator alone for what the mode names."""
    tensors = make_tensors(case, device, seed).values()
    if case.mode == "forward":
        return forward_call(*tensors)
    return backward_call(MASKS[case.mode], backward_tensors(*tensors))


def forward_call(hidden_states: torch.Tensor, *weights: torch.Tensor, indices: torch.Tensor | None = None) -> Call:
    """Return a function that runs the forward operator, in sequential placement."""
    options = {"activation": ACTIVATION, "scaling": SCALING, "adapter_indices": indices}
    return lambda: ops.bottleneck_adapter(hidden_states, hidden_states, *weights, **options)


def backward_tensors(hidden_states: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return what the backward operator takes, from what the forward operator takes."""
    down_weight, down_bias, up_weight, _ = weights
    if down_weight.dim() == 2:
        pre_activation = hidden_states @ down_weight.t() + down_bias
    else:  # of many adapters; any will do
        pre_activation = torch.randn_like(hidden_states[:, : down_weight.shape[1]]).contiguous()
    return torch.randn_like(hidden_states), hidden_states, pre_activation, down_weight, up_weight


def backward_call(
    mask: tuple[bool, ...], tensors: tuple[torch.Tensor, ...], indices: torch.Tensor | None = None
) -> Call:
    """Return a function that runs the backward operator, in sequential placement, for the gradients of the mask."""
    backward = torch.ops.adapterx.bottleneck_adapter_backward
    adapters = 0 if indices is None else len(tensors[-1])
    return lambda: backward(*tensors, ACTIVATION, SCALING, True, mask, indices, adapters)
