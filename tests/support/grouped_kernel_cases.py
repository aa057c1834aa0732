"""Calls of the grouped CPU kernels, and what they are measured by: NumPy token by token, the ungrouped kernels."""

import dataclasses
import math

import numpy as np
import torch
from kernel_cases import (
    CAPABILITIES,
    FLOOR,
    GRADIENTS,
    kernels,
    relative_error,
    to_storage,
    value_and_derivative,
)

from adapterx import reference

PICKS = ("runs", "scattered", "mixed", "lopsided", "few", "same", "none")
WEIGHTS = ("down_weight", "down_bias", "up_weight", "up_bias")
ROWS = ("output", "pre_activation", "grad_input")
GUARD = 64  # elements before and after each result that must stay as they were
SENTINEL = 77.0


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the grouped kernels, sizes in elements."""

    num_tokens: int
    input_size: int
    hidden_size: int
    bottleneck_dim: int
    num_adapters: int = 5
    pick: str = "scattered"
    dtype: str = "float32"
    activation: str = "gelu"
    scaling: float = 0.75
    residual: str = "same"  # "same": hidden_states itself, "other", "none"
    down_bias: bool = True
    up_bias: bool = True
    row_gap: int = 0  # elements between the end of a row and the next
    threads: int = 1
    capability: str = CAPABILITIES[0]

    @property
    def sizes(self):
        return (self.num_tokens, self.input_size, self.hidden_size, self.bottleneck_dim)


def pick_adapters(case, generator):
    """Return the adapter of each token: int64, -1 for none."""
    count, groups = case.num_tokens, case.num_adapters
    random = torch.randint(-1, groups, (count,), generator=generator)
    if case.pick == "runs":
        return torch.arange(count) * groups // max(count, 1)
    if case.pick == "mixed":  # sequences of any length, some of the same adapter one after the other
        lengths = torch.randint(1, 40, (count,), generator=generator)
        return torch.repeat_interleave(random, lengths)[:count].contiguous()
    if case.pick == "lopsided":  # most tokens pick one adapter, which all threads then share
        return torch.where(torch.rand(count, generator=generator) < 0.8, groups // 2, random)
    if case.pick == "few":
        return torch.where(random % 3 == 0, groups - 1, torch.where(random % 3 == 1, 0, -1))
    return {"scattered": random, "same": torch.full_like(random, groups - 1), "none": torch.full_like(random, -1)}[
        case.pick
    ]


def make_inputs(case, seed=0):
    """Return torch tensors of the case's dtype. Gaps between rows and adapters that no token picks are NaN."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    indices = pick_adapters(case, generator)

    def rows(columns):
        room = torch.full((case.num_tokens, columns + case.row_gap), float("nan"), dtype=torch.float64)
        room[:, :columns] = torch.randn(case.num_tokens, columns, generator=generator, dtype=torch.float64)
        return room.to(dtype)[:, :columns]

    def weight(*shape):
        values = torch.randn(case.num_adapters, *shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1])
        values[torch.isin(torch.arange(case.num_adapters), indices, invert=True)] = float("nan")
        return values.to(dtype)

    hidden_states = rows(case.input_size)
    return {
        "hidden_states": hidden_states,
        "residual": {"same": hidden_states, "other": rows(case.hidden_size), "none": None}[case.residual],
        "adapter_indices": indices,
        "down_weight": weight(case.bottleneck_dim, case.input_size),
        "down_bias": weight(case.bottleneck_dim) if case.down_bias else None,
        "up_weight": weight(case.hidden_size, case.bottleneck_dim),
        "up_bias": weight(case.hidden_size) if case.up_bias else None,
        "grad_output": rows(case.hidden_size),
    }


class Results:
    """Buffers filled with NaN between guards that hold SENTINEL."""

    def __init__(self, case, num_adapters=None):
        lead = () if num_adapters is None else (num_adapters,)
        dtype = getattr(torch, case.dtype)
        shapes = {
            "output": (case.num_tokens, case.hidden_size),
            "pre_activation": (case.num_tokens, case.bottleneck_dim),
            "grad_input": (case.num_tokens, case.input_size),
            "grad_down_weight": (*lead, case.bottleneck_dim, case.input_size),
            "grad_down_bias": (*lead, case.bottleneck_dim),
            "grad_up_weight": (*lead, case.hidden_size, case.bottleneck_dim),
            "grad_up_bias": (*lead, case.hidden_size),
        }
        self.rooms = {n: torch.full((math.prod(s) + 2 * GUARD,), SENTINEL, dtype=dtype) for n, s in shapes.items()}
        self.tensors = {n: self.rooms[n][GUARD:-GUARD].view(s).fill_(float("nan")) for n, s in shapes.items()}

    def check_guards(self):
        """Assert that nothing was written beside a result."""
        for name, room in self.rooms.items():
            assert bool((room[:GUARD] == SENTINEL).all() and (room[-GUARD:] == SENTINEL).all()), name


def run_kernels(case, inputs, wanted=GRADIENTS, pre_activation=True):
    """Run the grouped forward and backward; return the results that were asked for."""
    problem = (case.dtype, case.activation, case.scaling, case.sizes)
    arrays = {name: None if tensor is None else to_storage(tensor) for name, tensor in inputs.items()}
    results = Results(case, case.num_adapters)
    out = {name: to_storage(tensor) for name, tensor in results.tensors.items()}
    groups = (inputs["adapter_indices"].numpy(), case.num_adapters)
    weights = [arrays[name] for name in WEIGHTS]
    kernels.forward(
        *problem, arrays["hidden_states"], arrays["residual"], *groups, *weights, out["output"],
        out["pre_activation"] if pre_activation else None, case.threads, case.capability,
    )  # fmt: skip
    if not pre_activation:
        results.check_guards()
        return {"output": results.tensors["output"]}
    # Nothing that no wanted gradient depends on may be read.
    through = {"grad_input", "grad_down_weight", "grad_down_bias"} & set(wanted)
    kernels.backward(
        *problem, arrays["grad_output"], arrays["hidden_states"] if "grad_down_weight" in wanted else None,
        out["pre_activation"], *groups, arrays["down_weight"] if "grad_input" in wanted else None,
        arrays["up_weight"] if through else None, case.residual == "same",
        *(out[name] if name in wanted else None for name in GRADIENTS), case.threads, case.capability,
    )  # fmt: skip
    results.check_guards()
    return {name: results.tensors[name] for name in ("output", "pre_activation", *wanted)}


def run_ungrouped(case, inputs, adapter, rows):
    """Run the ungrouped kernels with one adapter on some rows, on one thread."""
    case = dataclasses.replace(case, num_tokens=len(rows), threads=1, row_gap=0)
    results = Results(case)
    out = {name: to_storage(tensor) for name, tensor in results.tensors.items()}

    def some(name, index):
        return None if inputs[name] is None else to_storage(inputs[name][index].contiguous())

    problem = (case.dtype, case.activation, case.scaling, case.sizes)
    weights = [some(name, adapter) for name in WEIGHTS]
    kernels.forward(
        *problem, some("hidden_states", rows), some("residual", rows), None, 0, *weights, out["output"],
        out["pre_activation"], case.threads, case.capability,
    )  # fmt: skip
    kernels.backward(
        *problem, some("grad_output", rows), some("hidden_states", rows), out["pre_activation"], None, 0,
        weights[0], weights[2], case.residual == "same", *(out[name] for name in GRADIENTS), case.threads,
        case.capability,
    )  # fmt: skip
    return results.tensors


def numpy_reference(case, inputs):
    """The forward and backward pass written out in NumPy float64, one token at a time."""
    values = {n: None if t is None else t.double().numpy() for n, t in inputs.items() if n != "adapter_indices"}
    down, up = values["down_weight"], values["up_weight"]
    results = {name: np.zeros(t.shape) for name, t in Results(case, case.num_adapters).tensors.items()}
    for token, adapter in enumerate(inputs["adapter_indices"].tolist()):
        h, g = values["hidden_states"][token], values["grad_output"][token]
        results["output"][token] = 0 if case.residual == "none" else values["residual"][token]
        results["grad_input"][token] = g if case.residual == "same" else 0
        if adapter < 0:
            continue
        u = down[adapter] @ h + (values["down_bias"][adapter] if case.down_bias else 0)
        activated, derivative = value_and_derivative(case.activation, u)
        bias = values["up_bias"][adapter] if case.up_bias else 0
        results["output"][token] += case.scaling * (up[adapter] @ activated + bias)
        results["pre_activation"][token] = u
        du = case.scaling * derivative * (g @ up[adapter])
        results["grad_input"][token] += du @ down[adapter]
        results["grad_down_weight"][adapter] += np.outer(du, h)
        results["grad_down_bias"][adapter] += du
        results["grad_up_weight"][adapter] += case.scaling * np.outer(g, activated)
        results["grad_up_bias"][adapter] += case.scaling * g
    return {name: torch.from_numpy(value) for name, value in results.items()}


def run_torch(case, inputs):
    """The same results from PyTorch's formula and autograd at the case's dtype, adapter by adapter."""
    results = {name: torch.zeros_like(t) for name, t in Results(case, case.num_adapters).tensors.items()}
    indices = inputs["adapter_indices"]
    if case.residual != "none":
        results["output"].copy_(inputs["residual"])
    if case.residual == "same":
        results["grad_input"].copy_(inputs["grad_output"])
    for adapter in indices[indices >= 0].unique().tolist():
        rows = (indices == adapter).nonzero()[:, 0]
        own = {n: None if inputs[n] is None else inputs[n][adapter].clone().requires_grad_() for n in WEIGHTS}
        own["hidden_states"] = inputs["hidden_states"][rows].requires_grad_()
        own["residual"] = {"same": own["hidden_states"], "none": None}.get(case.residual)
        if case.residual == "other":
            own["residual"] = inputs["residual"][rows]
        output = reference.bottleneck_adapter(**own, activation=case.activation, scaling=case.scaling)
        names = [name for name in ("hidden_states", *WEIGHTS) if own[name] is not None]
        gradients = torch.autograd.grad(output, [own[name] for name in names], inputs["grad_output"][rows])
        results["output"][rows] = output.detach()
        results["pre_activation"][rows] = torch.nn.functional.linear(
            own["hidden_states"], own["down_weight"], own["down_bias"]
        ).detach()
        for name, gradient in zip(names, gradients, strict=True):
            if name == "hidden_states":
                results["grad_input"][rows] = gradient
            else:
                results[f"grad_{name}"][adapter] = gradient
    return results


def check(case):
    """Assert every result is within twice (weights: three times) PyTorch's own error at that dtype; return both."""
    inputs = make_inputs(case)
    got = run_kernels(case, inputs)
    expected, own = numpy_reference(case, inputs), run_torch(case, inputs)
    few = case.num_tokens < 40 or min(case.sizes) < 8  # PyTorch can be lucky with a handful of numbers
    for name, value in got.items():
        if (name == "grad_down_bias" and not case.down_bias) or (name == "grad_up_bias" and not case.up_bias):
            continue  # PyTorch has none to compare with
        factor = 3 if name.endswith("weight") else 2
        error, limit = relative_error(value, expected[name]), factor * relative_error(own[name], expected[name])
        floor = max(4 * FLOOR[case.dtype], 8 * torch.finfo(value.dtype).eps) if few else FLOOR[case.dtype]
        assert error <= max(limit, floor), (name, error, limit, case)
    return inputs, got


def check_against_ungrouped(case, inputs, got):
    """Assert that every row has the bits that the ungrouped kernels give it, in the adapter's batch and alone."""
    indices = inputs["adapter_indices"]
    for adapter in indices.unique().tolist():
        rows = (indices == adapter).nonzero()[:, 0]
        if adapter < 0:
            residual = inputs["residual"]
            own = {
                "output": torch.zeros_like(got["output"][rows]) if residual is None else residual[rows],
                "pre_activation": torch.zeros_like(got["pre_activation"][rows]),
                "grad_input": inputs["grad_output"][rows]
                if case.residual == "same"
                else torch.zeros_like(got["grad_input"][rows]),
            }
        else:
            own = run_ungrouped(case, inputs, adapter, rows)
            alone = run_ungrouped(case, inputs, adapter, rows[-1:])
            for name in ROWS:
                assert torch.equal(alone[name][0], own[name][-1]), (name, case)
        for name in ROWS:
            assert torch.equal(got[name][rows], own[name]), (name, adapter, case)
