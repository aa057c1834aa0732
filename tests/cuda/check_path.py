"""Check one path of the operator on a GPU against float64: forward and all gradients, each case a fact when known.

    python tests/cuda/check_path.py tile:64x8     # or auto, cublas, segments, any other pin

Memory that results will take is filled with what is no number before the first run and with zeros before the second,
and both must give the same bits. An error counts if it is larger than three times that of the plain formula in the same
dtype on the same device. A pin that the operator refuses with ValueError is "refused", which is no failure. A process
serves one path, for a broken context breaks all that comes later. The last fact, "checked", is missing where a
case hung, crashed or broke the context.
"""

import argparse
import faulthandler
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from facts import write_fact

from adapterx import ops, reference

DEVICE = os.environ.get("ADAPTERX_TEST_DEVICE", "cuda")
PIN = "ADAPTERX_CUDA_PATH"
# Tokens, hidden_size, bottleneck_dim: odd, rows that are not aligned, columns that end inside a chunk, tiles with a
# remainder, one token, and so many tiles that persistent blocks take several each, alone and in clusters of each size.
SHAPES = (
    *((7, 72, 6), (33, 37, 7), (130, 1032, 65), (1, 4096, 64), (300, 768, 48)),
    *((4113, 4096, 64), (5000, 512, 64), (6001, 256, 100), (2090, 1024, 128)),
)
SMALL = 3  # so many shapes are enough for wide dtypes, and where kernels are emulated
HALVES = (torch.bfloat16, torch.float16)
WIDE = (torch.float32, torch.float64)
NAMES = ("hidden_states", "residual", "down_weight", "down_bias", "up_weight", "up_bias")
GROUPS = 5
# What is left of a sum in another order counts as no error.
FLOORS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}
FACTOR = 3
CASE_S = 20.0 if DEVICE == "cuda" else 300.0  # what takes longer hangs
THREADS = 2  # a process each for a dozen paths, side by side
OPTIONS = {"activation": "gelu", "scaling": 0.5}


@dataclass(frozen=True)
class Problem:
    """One case; `grouped`: many adapters, one a token."""

    dtype: torch.dtype
    tokens: int
    d: int
    m: int
    grouped: bool

    def described(self) -> dict[str, object]:
        """Return the columns of its fact."""
        form = "grouped" if self.grouped else "plain"
        return {"form": form, "dtype": str(self.dtype).removeprefix("torch."), "shape": [self.tokens, self.d, self.m]}


def problems(path: str) -> Iterator[Problem]:
    """Yield the cases of a path, the most usual dtype first."""
    for dtype in HALVES + (() if path.startswith("tile") else WIDE):
        for shape in SHAPES[: SMALL if DEVICE == "cuda" else 1] if dtype in WIDE or DEVICE != "cuda" else SHAPES:
            for grouped in (False, True):
                yield Problem(dtype, *shape, grouped)


def draw(problem: Problem) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor | None]:
    """Return the six tensors, a cotangent, and indices where there are many adapters; drawn on the processor."""
    generator = torch.Generator().manual_seed(problem.tokens)
    t, d, m = problem.tokens, problem.d, problem.m
    stack = (GROUPS,) if problem.grouped else ()

    def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * std).to(problem.dtype).to(DEVICE)

    weights = [normal(*stack, m, d, std=d**-0.5), normal(*stack, m, std=0.1)]
    weights += [normal(*stack, d, m, std=m**-0.5), normal(*stack, d, std=0.1)]
    hidden_states = normal(t, d)
    # Sequential placement has one tensor twice, and its own code for the backward pass.
    residual = normal(t, d) if t % 2 else hidden_states
    indices = torch.randint(-1, GROUPS, (t,), generator=generator).to(DEVICE) if problem.grouped else None
    return [hidden_states, residual, *weights], normal(t, d), indices


def fill_free_memory(tensors: list[torch.Tensor], byte: int) -> None:
    """Fill what the allocator will give next, for results, workspaces and temporaries."""
    largest = max(tensor.nbytes for tensor in tensors)
    blocks = [torch.full((size,), byte, dtype=torch.uint8, device=DEVICE) for size in (6 * largest, largest, largest)]
    blocks += [torch.full((1 << 10,), byte, dtype=torch.uint8, device=DEVICE) for _ in range(64)]
    del blocks


def results_of(
    operator: Callable[..., torch.Tensor],
    tensors: list[torch.Tensor],
    cotangent: torch.Tensor,
    indices: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Return the output without and with gradients wanted, and all gradients."""
    leaves = {id(tensor): tensor.detach().clone().requires_grad_() for tensor in tensors}
    own = [leaves[id(tensor)] for tensor in tensors]
    with torch.no_grad():
        inferred = operator(*own, **OPTIONS, adapter_indices=indices)
    output = operator(*own, **OPTIONS, adapter_indices=indices)
    gradients = torch.autograd.grad(output, list(leaves.values()), cotangent)
    names = [
        name for name, tensor in zip(NAMES, tensors, strict=True) if name != "residual" or tensor is not tensors[0]
    ]
    return {"inferred": inferred, "output": output.detach(), **dict(zip(names, gradients, strict=True))}


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the norm of the difference over that of the exact tensor; NaN stays NaN."""
    return ((actual.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def check(problem: Problem) -> dict[str, object]:
    """Run one case and return what its fact says."""
    tensors, cotangent, indices = draw(problem)
    runs = []
    for byte in (0xFF, 0):
        fill_free_memory(tensors, byte)
        runs.append(results_of(ops.bottleneck_adapter, tensors, cotangent, indices))
    formula = reference.bottleneck_adapter
    doubles = {id(tensor): tensor.double() for tensor in tensors}
    exact = results_of(formula, [doubles[id(tensor)] for tensor in tensors], cotangent.double(), indices)
    plain = results_of(formula, tensors, cotangent, indices)
    errors = {
        name: (relative_error(runs[0][name], exact[name]), relative_error(plain[name], exact[name])) for name in exact
    }
    floor = FLOORS[problem.dtype]
    wrong = [name for name, (ours, theirs) in errors.items() if not ours <= FACTOR * theirs + floor]
    differing = [name for name in exact if not torch.equal(runs[0][name], runs[1][name])]
    found = {"ok": not wrong and not differing, "wrong": wrong, "other_bits": differing}
    # Ours, and that of the formula.
    return {**found, "errors": {name: [float(f"{error:.2g}") for error in pair] for name, pair in errors.items()}}


def is_refusal(error: Exception) -> bool:
    """Return whether the operator says in words that the pinned path does not serve the call."""
    return isinstance(error, ValueError) and PIN in str(error)


def is_broken(words: str) -> bool:
    """Return whether an error says that the context is broken."""
    return "CUDA error" in words or "AcceleratorError" in words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    path = parser.parse_args().path
    os.environ[PIN] = path
    torch.set_num_threads(THREADS)
    failures = served = 0
    for problem in problems(path):
        case = {"path": path, **problem.described()}
        print("check_path:", *case.values(), flush=True)  # where it hangs, the log says in what
        # A kernel that hangs holds this thread.
        faulthandler.dump_traceback_later(CASE_S, exit=True, file=sys.__stderr__)
        try:
            found = check(problem)
        except Exception as error:  # noqa: BLE001, whatever it is, the other cases go on
            words = f"{type(error).__name__}: {error}"
            found = {"ok": "refused" if is_refusal(error) else False, "words": words[:400]}
        faulthandler.cancel_dump_traceback_later()
        write_fact("check", **case, **found, shown=found["ok"] is False)
        served += found["ok"] is True
        failures += found["ok"] is False
        if is_broken(str(found.get("words"))):
            return 1  # whatever came now would be blamed on other cases
    write_fact("checked", path=path, served=served, failures=failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
