"""The part of bench_op.py that runs on a GPU.

Implementations: the operator by its plan table ("adapterx"), pinned to its cuBLASLt path ("adapterx cublas"), the
plain formula ("eager") and "torch.compile" of it, and "copy", a plain device copy that moves the bytes which the
operator must move at least. Inputs rotate through more than the L2 cache. Beside the time between CUDA events there is
"graph time", of a call within a CUDA graph, for few tokens, where the host is the limit otherwise; and "launches".
"""

import contextlib
from collections.abc import Callable, Iterator

import cuda_timing
import torch
from harness import (
    Case,
    Deadline,
    Machine,
    describe,
    pinned,
    quantiles,
    rotate,
    rows_of,
    time_in_turns,
)
from op_calls import flop_count, input_bytes, make_calls, moved_bytes

from adapterx import ops, reference

HEADLINE = (16384, 4096, 64)
SHAPES = (
    HEADLINE,
    (16384, 1024, 64),
    (2048, 768, 48),
    (8, 4096, 64),
    (1, 4096, 64),
    (16, 4096, 64),
    (128, 4096, 64),
)
OTHER_DTYPES = (torch.float16, torch.float32)
OTHER_DTYPE_SHAPES = (HEADLINE, (2048, 768, 48))
MODES = ("forward", "forward_backward")
GRAPH_TOKENS = 2048  # above, the device is the limit anyway
MIN_SAMPLE_MS = 2.0
COMPILED_SHAPES = SHAPES[:4]  # compiling takes seconds each
CONTEXTS = {"adapterx": lambda: pinned("auto"), "adapterx cublas": lambda: pinned("cublas")}


def cases(quick: bool) -> list[Case]:
    """Return the cases, the most important ones first; quick: the headline alone."""
    shapes = [(shape, torch.bfloat16) for shape in (SHAPES[:1] if quick else SHAPES)]
    if not quick:
        shapes += [(shape, dtype) for dtype in OTHER_DTYPES for shape in OTHER_DTYPE_SHAPES]
    return [Case(mode, *shape, dtype) for shape, dtype in shapes for mode in MODES]


def batches(machine: Machine, deadline: Deadline, *, repeats: int, quick: bool) -> Iterator[list[dict[str, object]]]:
    """Measure case by case, and yield the rows of each, until the time is up."""
    remaining = cases(quick)
    while remaining and not deadline.passed():
        yield run_case(remaining.pop(0), machine, repeats)
    if remaining:
        print(f"bench_op: out of time, not measured: {len(remaining)} cases from {remaining[0]} on", flush=True)


def run_case(case: Case, machine: Machine, repeats: int) -> list[dict[str, object]]:
    """Time one case and return its rows."""
    torch.compiler.reset()
    functions = make_functions(case, machine)
    samples = time_in_turns(
        functions, repeats=repeats, min_sample_ms=MIN_SAMPLE_MS, sample=machine.sample, contexts=CONTEXTS
    )
    rows = rows_of(
        "bench_op",
        case,
        samples,
        subject="adapterx",
        flop=flop_count(case),
        moved_bytes=moved_bytes(case),
        limit="copy",
        machine=machine,
    )
    rows += launch_rows(case, functions, machine)
    if case.num_tokens <= GRAPH_TOKENS:
        rows += graph_rows(case, functions, machine, repeats)
    return rows


def make_functions(case: Case, machine: Machine) -> dict[str, Callable[[], object]]:
    """Return the implementations by name."""
    compiled = torch.compile(reference.bottleneck_adapter, fullgraph=True, dynamic=False)
    functions = make_calls(
        {
            "adapterx": ops.bottleneck_adapter,
            "adapterx cublas": ops.bottleneck_adapter,
            "eager": reference.bottleneck_adapter,
            "torch.compile": compiled,
        },
        case,
        machine,
    )
    if not can_compile(case, functions["torch.compile"]):
        del functions["torch.compile"]
    return {**functions, "copy": copy_of_bytes(moved_bytes(case), machine)}


def can_compile(case: Case, function: Callable[[], object]) -> bool:
    """Compile; where the compiler fails, say why and go on without it."""
    shape = (case.num_tokens, case.hidden_size, case.bottleneck_dim)
    if case.dtype != torch.bfloat16 or shape not in COMPILED_SHAPES:
        return False
    try:
        function()
    except Exception as error:  # noqa: BLE001, a compiler may raise anything
        print(f"bench_op: torch.compile fails here: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return False
    return True


def copy_of_bytes(count: int, machine: Machine) -> Callable[[], object]:
    """Return a device copy that reads half of `count` bytes and writes the other half."""

    def one_copy() -> Callable[[], object]:
        source = torch.zeros(count // 2, dtype=torch.uint8, device=machine.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return rotate([one_copy() for _ in range(machine.copies(count // 2))])


def in_context(name: str) -> contextlib.AbstractContextManager:
    """Return the context in which an implementation is called."""
    return CONTEXTS.get(name, contextlib.nullcontext)()


def launch_rows(case: Case, functions: dict[str, Callable[[], object]], machine: Machine) -> list[dict[str, object]]:
    """Count what one call of each implementation starts on the device."""
    rows = []
    for name, function in functions.items():
        with in_context(name):
            count = cuda_timing.launch_count(function)
        if count:
            row = {"implementation": name, "metric": "launches", "unit": "count", **quantiles([count])}
            rows.append({**describe("bench_op", case, 1, machine), **row})
    return rows


def graph_rows(
    case: Case, functions: dict[str, Callable[[], object]], machine: Machine, repeats: int
) -> list[dict[str, object]]:
    """Time calls within a CUDA graph that goes round all sets of inputs."""
    calls = machine.copies(input_bytes(case))
    graphs = {}
    for name, function in functions.items():
        try:
            with in_context(name):
                graphs[name] = cuda_timing.capture(function, calls)
        except RuntimeError as error:
            print(f"bench_op: {name} cannot be captured: {str(error)[:300]}", flush=True)
    samples = time_in_turns(graphs, repeats=repeats, min_sample_ms=MIN_SAMPLE_MS, sample=machine.sample)
    per_call = {name: [time_ms / calls for time_ms in times] for name, times in samples.items()}
    if "adapterx" not in per_call:
        return []
    return rows_of("bench_op", case, per_call, subject="adapterx", limit="copy", metric="graph time", machine=machine)
