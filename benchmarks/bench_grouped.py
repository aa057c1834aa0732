"""Measure the grouped form: many adapters in one batch, against one adapter for all rows and against loops.

    python benchmarks/bench_grouped.py                 # on the CPU: 32 adapters, 2048 x 768, bottleneck 48
    python benchmarks/bench_grouped.py --device cuda   # on a GPU: 64 adapters, 16384 x 4096, bottleneck 64

"loop" selects the rows of each adapter and runs the operator on them; "adapter_names" is the way of PEFT: names for the
sequences of a batch, and for each name the plain formula on its sequences. Either one adapter a sequence of 64 tokens,
or one a token, in random order. Rows are appended to benchmarks/results/bench_grouped_DEVICE.csv.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cuda_timing
import torch
from harness import (
    RESULTS,
    Case,
    Deadline,
    Machine,
    append_rows,
    cpu_machine,
    pinned,
    rotate,
    rows_of,
    time_in_turns,
)
from op_calls import ACTIVATION, SCALING, input_bytes

from adapterx import ops, reference

SEQUENCE = 64  # tokens
SHAPES = {"cpu": (2048, 768, 48, 32, torch.float32), "cuda": (16384, 4096, 64, 64, torch.bfloat16)}
LAYOUTS = ("sequences", "tokens")
MODES = ("forward", "forward_backward")
SEGMENTS = " segments"  # the kernels for any shape, in place of the tiles
OPTIONS = {"activation": ACTIVATION, "scaling": SCALING}


@dataclass(frozen=True)
class Batch:
    """Hidden states whose sequences, or tokens, have picked one of the adapters each."""

    hidden_states: torch.Tensor  # (sequences, 64, hidden_size) or (tokens, hidden_size)
    indices: torch.Tensor  # the leading dimension of hidden_states, int64
    names: list[str]  # the same as names
    stacked: tuple[torch.Tensor, ...]  # down_weight, down_bias, up_weight, up_bias, each with a dimension of adapters
    separate: list[tuple[torch.Tensor, ...]]  # the same, adapter by adapter, as a loop would keep them


def grouped(batch: Batch) -> torch.Tensor:
    """Run the operator with indices."""
    return ops.bottleneck_adapter(
        batch.hidden_states, batch.hidden_states, *batch.stacked, adapter_indices=batch.indices, **OPTIONS
    )


def one_adapter(batch: Batch) -> torch.Tensor:
    """Run the first adapter on all rows."""
    return ops.bottleneck_adapter(batch.hidden_states, batch.hidden_states, *batch.separate[0], **OPTIONS)


def loop(batch: Batch) -> torch.Tensor:
    """Run the operator once for each adapter, on its rows, and put the results back into their order."""
    rows = [(batch.indices == adapter).nonzero().squeeze(1) for adapter in range(len(batch.separate))]
    parts = []
    for own, weights in zip(rows, batch.separate, strict=True):
        chosen = batch.hidden_states.index_select(0, own)
        parts.append(ops.bottleneck_adapter(chosen, chosen, *weights, **OPTIONS))
    return torch.cat(parts).index_select(0, torch.cat(rows).argsort())


def by_name(batch: Batch) -> torch.Tensor:
    """Run the plain formula once for each name in the batch, on the sequences of that name."""
    output = batch.hidden_states.clone()
    for name in sorted(set(batch.names)):
        places = [place for place, other in enumerate(batch.names) if other == name]
        chosen = batch.hidden_states[places]
        output[places] = reference.bottleneck_adapter(chosen, chosen, *batch.separate[int(name)], **OPTIONS)
    return output


# What runs, and the weights that it differentiates by.
OPERATORS: dict[str, tuple[Callable[[Batch], torch.Tensor], Callable[[Batch], Iterable[torch.Tensor]]]] = {
    "adapterx": (grouped, lambda batch: batch.stacked),
    "one adapter": (one_adapter, lambda batch: batch.separate[0]),
    "loop": (loop, lambda batch: itertools.chain(*batch.separate)),
    "adapter_names": (by_name, lambda batch: itertools.chain(*batch.separate)),
}


def make_batch(case: Case, groups: int, layout: str, device: str, seed: int) -> Batch:
    """Draw a batch in which all adapters are picked equally often."""
    generator = torch.Generator(device).manual_seed(seed)
    d, m = case.hidden_size, case.bottleneck_dim
    leading = (case.num_tokens // SEQUENCE, SEQUENCE) if layout == "sequences" else (case.num_tokens,)
    train = case.mode == "forward_backward"

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator, device=device).mul_(0.05)
        return values.to(case.dtype).requires_grad_(train)

    indices = torch.randperm(leading[0], generator=generator, device=device) % groups
    stacked = (draw(groups, m, d), draw(groups, m), draw(groups, d, m), draw(groups, d))
    separate = [
        tuple(weight[adapter].detach().clone().requires_grad_(train) for weight in stacked) for adapter in range(groups)
    ]
    return Batch(draw(*leading, d), indices, [str(index) for index in indices.tolist()], stacked, separate)


def make_call(name: str, case: Case, batch: Batch) -> Callable[[], object]:
    """Return a function that runs an implementation on the batch once in the mode of the case."""
    operator, weights_of = OPERATORS[name.removesuffix(SEGMENTS)]
    cotangent = torch.ones_like(batch.hidden_states)
    inputs = (batch.hidden_states, *weights_of(batch))

    def forward() -> object:
        with torch.inference_mode():
            return operator(batch)

    def forward_backward() -> object:
        return torch.autograd.grad(operator(batch), inputs, cotangent)

    return forward if case.mode == "forward" else forward_backward


def run_case(case: Case, groups: int, layout: str, machine: Machine, repeats: int) -> list[dict[str, object]]:
    """Time one case and return its rows."""
    names = [*OPERATORS, *(["adapterx" + SEGMENTS] if machine.device == "cuda" else [])]
    contexts = {"adapterx": lambda: pinned("auto"), "adapterx" + SEGMENTS: lambda: pinned("segments")}
    copies = machine.copies(input_bytes(case))
    batches = [make_batch(case, groups, layout, machine.device, seed) for seed in range(copies)]
    functions = {name: rotate([make_call(name, case, batch) for batch in batches]) for name in names}
    samples = time_in_turns(functions, repeats=repeats, sample=machine.sample, contexts=contexts)
    picked = f"sequences of {SEQUENCE}" if layout == "sequences" else "random tokens"
    title = f"bench_grouped, {groups} adapters, {picked}"
    return rows_of(title, case, samples, subject="adapterx", limit="one adapter", machine=machine)


def batches(machine: Machine, deadline: Deadline, repeats: int) -> Iterator[list[dict[str, object]]]:
    """Measure case by case, and yield the rows of each, until the time is up."""
    *shape, groups, dtype = SHAPES[machine.device]
    for layout in LAYOUTS:
        for mode in MODES:
            if deadline.passed():
                print(f"bench_grouped: out of time, not measured: {layout}, {mode}", flush=True)
                continue
            yield run_case(Case(mode, *shape, dtype), groups, layout, machine, repeats)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=41, help="rounds (default 41)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, help="skip what is left after so many seconds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--dry-run", action="store_true", help="print the rows, do not store them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    machine = cuda_timing.cuda_machine() if options.device == "cuda" else cpu_machine()
    for rows in batches(machine, Deadline(options.seconds), options.repeats):
        for row in rows:
            spread = f"{row['median']:9.3f} [{row['p20']:.3f}, {row['p80']:.3f}] {row['unit']}"
            print(f"{row['benchmark']} {row['mode']:17} {row['implementation']:18} {row['metric']:20} {spread}")
        if not options.dry_run:
            append_rows(machine.results(options.results, "bench_grouped"), rows)


if __name__ == "__main__":
    main()
