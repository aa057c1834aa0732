"""Time every path of the operator on the shapes of the targets, the device alone: calls within CUDA graphs, in turns.

    python tests/cuda/time_paths.py --results runs/gpu-first

Each case is one fact (microseconds a call, medians over the rounds) and rows of a CSV file, as soon as it is known.
Beside each path's time stands how far its result is from the plain formula's at this size. "grad_input" is the backward
operator asked for that gradient alone, "weight_gradients" for all others, "copy" a copy of the bytes that must be moved
at least. A path that a pin refuses is left out. Where a path hangs or breaks the context, this process ends; started
again, it goes on behind what is known, without that path.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from check_path import PIN, is_broken, is_refusal, relative_error
from facts import PLACE, read_facts, write_fact

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import cuda_timing
import harness
from bench_op_cuda import copy_of_bytes
from harness import Case, Machine, pinned, rotate
from op_calls import ACTIVATION, SCALING, input_bytes, make_tensors, moved_bytes
from op_sweep import MASKS, backward_call, backward_tensors, forward_call

from adapterx import reference

DEVICE = os.environ.get("ADAPTERX_TEST_DEVICE", "cuda")
HEADLINE = (16384, 4096, 64)
SHAPES = (
    *(HEADLINE, (16384, 1024, 64), (2048, 768, 48), (8, 4096, 64)),
    *((16384, 4096, 128), (16384, 4096, 32), (16384, 2048, 128)),
)
MODES = ("forward", "grad_input", "weight_gradients", "backward")
GROUPS, SEQUENCE = 64, 64
PATHS = (
    *(f"tile:32x{blocks}" for blocks in (8, 4, 2, 1)),
    *("tile:64x8", "tile:64x1", "tile:16x8", "tile:16x1", "cublas", "auto"),
)
GROUPED_PATHS = ("tile:32x8", "tile:64x8", "tile:16x8", "segments", "auto")
ROUNDS, MIN_SAMPLE_MS = 15, 1.5
CALLS = 4  # in a graph, at least
CASE_S = 20.0 if DEVICE == "cuda" else 300.0  # what takes longer hangs
if DEVICE != "cuda":
    HEADLINE = (128, 72, 6)
    SHAPES, ROUNDS, MIN_SAMPLE_MS = (HEADLINE, (9, 136, 24)), 2, 0.01

Call = Callable[[], object]


@dataclass(frozen=True)
class Group:
    """What is timed together: a shape in a mode; `picked`: with many adapters, one for each of these."""

    case: Case
    picked: str = ""  # "sequences" or "tokens"

    def described(self) -> dict[str, object]:
        """Return what its facts begin with."""
        case = self.case
        shape = [case.num_tokens, case.hidden_size, case.bottleneck_dim]
        return {"mode": case.mode, "shape": shape, "adapters": GROUPS if self.picked else 1, "picked": self.picked}


def groups() -> Iterator[Group]:
    """Yield what is to be timed, the most important first."""

    def of(shape: tuple[int, int, int], modes: Sequence[str], picked: str = "") -> Iterator[Group]:
        return (Group(Case(mode, *shape, torch.bfloat16), picked) for mode in modes)

    for number, shape in enumerate(SHAPES):
        yield from of(shape, MODES)
        if number == 1:
            yield from of(HEADLINE, ("forward", "backward"), "sequences")
            yield from of(HEADLINE, ("forward",), "tokens")


class Inputs:
    """The tensors of one call."""

    def __init__(self, group: Group, seed: int) -> None:
        case = group.case
        self.hidden_states, *self.weights = make_tensors(case, DEVICE, seed).values()
        self.indices = None
        if group.picked:
            self.weights = [torch.randn(GROUPS, *w.shape, device=DEVICE).mul_(0.05).to(w.dtype) for w in self.weights]
            picks = case.num_tokens // (SEQUENCE if group.picked == "sequences" else 1)
            indices = torch.randint(GROUPS, (picks,), device=DEVICE)
            self.indices = indices.repeat_interleave(case.num_tokens // picks)
        self.backward = None if case.mode == "forward" else backward_tensors(self.hidden_states, *self.weights)

    def call(self, mode: str) -> Call:
        """Return a call of the operator."""
        if self.backward is None:
            return forward_call(self.hidden_states, *self.weights, indices=self.indices)
        return backward_call(MASKS[mode], self.backward, self.indices)

    def of_one_adapter(self) -> "Inputs":
        """Return the same tokens, all with the first adapter."""
        one = object.__new__(Inputs)
        one.hidden_states, one.weights, one.indices = self.hidden_states, [w[0] for w in self.weights], None
        one.backward = None if self.backward is None else backward_tensors(one.hidden_states, *one.weights)
        return one

    def formula(self, mode: str) -> Call:
        """Return a call of the plain formula, or of what autograd makes of it."""
        if self.backward is None:
            options = {"activation": ACTIVATION, "scaling": SCALING, "adapter_indices": self.indices}
            return lambda: reference.bottleneck_adapter(
                self.hidden_states, self.hidden_states, *self.weights, **options
            )
        return lambda: formula_of_backward(MASKS[mode], *self.backward)


def formula_of_backward(
    mask: tuple[bool, ...],
    grad_output: torch.Tensor,
    hidden_states: torch.Tensor,
    pre_activation: torch.Tensor,
    down_weight: torch.Tensor,
    up_weight: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of one adapter, as autograd computes them."""
    grad_branch = grad_output * SCALING
    grad_middle = torch.ops.aten.gelu_backward(grad_branch @ up_weight, pre_activation)
    grad_input = grad_output + grad_middle @ down_weight if mask[0] else None
    if not any(mask[1:]):
        return grad_input, None, None, None, None
    grad_down, grad_up = grad_middle.t() @ hidden_states, grad_branch.t() @ torch.nn.functional.gelu(pre_activation)
    return grad_input, grad_down, grad_middle.sum(0), grad_up, grad_branch.sum(0)


def difference(ours: object, theirs: object) -> float:
    """Return the largest relative difference among the tensors of two results."""
    pairs = zip(*((r if isinstance(r, tuple) else (r,)) for r in (ours, theirs)), strict=True)
    return max(relative_error(a, b.double()) for a, b in pairs if b is not None)


def captured(call: Call, calls: int) -> Call:
    """Return a graph of so many calls, by the path that is pinned now; where there are no graphs, a loop."""
    if DEVICE == "cuda":
        return cuda_timing.capture(call, calls)
    path = os.environ.get(PIN, "auto")

    def loop() -> None:
        with pinned(path):
            for _ in range(calls):
                call()

    return loop


class Bench:
    """Times groups; `without`: paths that are not tried."""

    def __init__(self, machine: Machine, results: Path, without: set[str]) -> None:
        self.machine, self.results, self.without = machine, results, without

    def run(self, group: Group) -> None:
        """Time one group and write what it shows."""
        mode, copies = group.case.mode, max(2, self.machine.copies(input_bytes(group.case)))
        sets = [Inputs(group, seed) for seed in range(copies)]
        calls = max(CALLS, copies)
        found = {"refused": [], "failed": {}, "difference": {}}
        exact = None if group.picked and mode != "forward" else sets[0].formula(mode)()
        ours = rotate([inputs.call(mode) for inputs in sets])
        graphs = {}
        for path in GROUPED_PATHS if group.picked else PATHS:
            if path not in self.without:
                graphs |= self.graph_of(path, group, sets[0].call(mode), ours, calls, exact, found)
        for name, call in self.rivals(group, sets):
            write_fact("trying", **group.described(), path=name, shown=False)
            graphs[name] = captured(call, calls)
        write_fact("trying", **group.described(), path="", shown=False)  # all of them, in turns
        samples = harness.time_in_turns(graphs, repeats=ROUNDS, min_sample_ms=MIN_SAMPLE_MS, sample=self.machine.sample)
        self.write(group, {name: [ms / calls for ms in times] for name, times in samples.items()}, found)

    def graph_of(
        self, path: str, group: Group, first: Call, ours: Call, calls: int, exact: object, found: dict
    ) -> dict[str, Call]:
        """Capture a path, after a look at what it computes; nothing where it is refused, or fails."""
        write_fact("trying", **group.described(), path=path, shown=False)
        try:
            with pinned(path):
                result = first()
                if exact is not None:
                    found["difference"][path] = difference(result, exact)
                return {path: captured(ours, calls)}
        except (ValueError, RuntimeError) as error:
            if is_refusal(error):
                found["refused"].append(path)
                return {}
            words = f"{type(error).__name__}: {error}"
            if is_broken(words):
                raise
            found["failed"][path] = words[:300]
            return {}

    def rivals(self, group: Group, sets: list[Inputs]) -> Iterator[tuple[str, Call]]:
        """Yield what the paths are compared with."""
        mode = group.case.mode
        yield "copy", copy_of_bytes(moved_bytes(group.case), self.machine)
        if group.picked:
            yield "one adapter", rotate([inputs.of_one_adapter().call(mode) for inputs in sets])
        else:
            yield "eager", rotate([inputs.formula(mode) for inputs in sets])

    def write(self, group: Group, samples: dict[str, list[float]], found: dict[str, object]) -> None:
        """Write the medians as one fact, and all numbers as rows."""
        medians = {name: round(harness.quantiles(times)["median"] * 1e3, 2) for name, times in samples.items()}
        spread = {}
        for name, times in samples.items():
            q = harness.quantiles(times)
            spread[name] = round((q["p80"] - q["p20"]) / q["median"], 3)
        write_fact("time", **group.described(), us=medians, spread=spread, **found)
        title = "bench_paths" + (f", {GROUPS} adapters, {group.picked}" if group.picked else "")
        options = {"subject": min(medians, key=medians.get), "limit": "copy", "moved_bytes": moved_bytes(group.case)}
        rows = harness.rows_of(title, group.case, samples, **options, machine=self.machine)
        harness.append_rows(self.machine.results(self.results, "bench_paths"), rows)


def what_is_known() -> tuple[list[dict[str, object]], set[str]]:
    """Return the groups that need no second try, and the paths that ended a process before."""
    done, trying, left_out = [], None, set()
    for fact in read_facts(Path(os.environ.get(PLACE) or os.devnull)):
        if fact["fact"] == "trying":
            trying = fact
        elif fact["fact"] == "time":
            done.append({key: fact[key] for key in ("mode", "shape", "adapters", "picked")})
            trying = None
        elif fact["fact"] == "left out":
            left_out.add(fact["path"])
            trying = None
    if trying is not None:  # the process ended in the middle of it
        where = {key: trying[key] for key in ("mode", "shape", "adapters", "picked")}
        write_fact("left out", path=trying["path"], **where, words="the process ended when this path was tried")
        left_out.add(trying["path"])
        done += [] if trying["path"] in (*PATHS, *GROUPED_PATHS) else [where]
    return done, left_out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the CSV file")
    parser.add_argument("--seconds", type=float, default=60, help="begin no case after so many")
    parser.add_argument("--without", default="", help="paths that are not tried, with commas between")
    options = parser.parse_args()
    deadline = harness.Deadline(options.seconds)
    done, left_out = what_is_known()
    machine = cuda_timing.cuda_machine() if DEVICE == "cuda" else harness.cpu_machine()
    bench = Bench(machine, options.results, left_out | set(filter(None, options.without.split(","))))
    for group in groups():
        if group.described() in done:
            continue
        if deadline.passed():
            write_fact("no time", **group.described())
            continue
        with harness.ended_after(CASE_S):
            bench.run(group)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()  # the pools of the graphs
    return 0


if __name__ == "__main__":
    sys.exit(main())
