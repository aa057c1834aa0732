"""What the benchmarks of the operator call: tensors of a case, one call, its operations and its bytes."""

from collections.abc import Callable

import torch
from harness import Case, Machine, rotate

ACTIVATION = "gelu"
SCALING = 0.5


def make_tensors(case: Case, device: str = "cpu", seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw the tensors of one case; all require gradients in mode "forward_backward"."""
    generator = torch.Generator(device).manual_seed(seed)
    d, m = case.hidden_size, case.bottleneck_dim
    shapes = {
        "hidden_states": (case.num_tokens, d),
        "down_weight": (m, d),
        "down_bias": (m,),
        "up_weight": (d, m),
        "up_bias": (d,),
    }
    tensors = {
        name: torch.randn(shape, generator=generator, device=device).mul_(0.05).to(case.dtype)
        for name, shape in shapes.items()
    }
    for tensor in tensors.values():
        tensor.requires_grad_(case.mode == "forward_backward")
    return tensors


def call_with(operator: Callable, case: Case, tensors: dict[str, torch.Tensor]) -> Callable[[], object]:
    """Return a function without arguments that runs `operator` on the tensors once in the mode of the case."""
    hidden_states, *weights = tensors.values()
    cotangent = torch.ones_like(hidden_states)

    def forward() -> object:
        with torch.inference_mode():
            return operator(hidden_states, hidden_states, *weights, activation=ACTIVATION, scaling=SCALING)

    def forward_backward() -> object:
        output = operator(hidden_states, hidden_states, *weights, activation=ACTIVATION, scaling=SCALING)
        return torch.autograd.grad(output, tuple(tensors.values()), cotangent)

    return forward if case.mode == "forward" else forward_backward


def make_calls(operators: dict[str, Callable], case: Case, machine: Machine) -> dict[str, Callable[[], object]]:
    """Return one function per operator; all share the tensors, and go round enough sets to find no cache warm."""
    sets = [make_tensors(case, machine.device, seed) for seed in range(machine.copies(input_bytes(case)))]
    return {
        name: rotate([call_with(operator, case, tensors) for tensors in sets]) for name, operator in operators.items()
    }


def flop_count(case: Case) -> float:
    """Count the multiplications and additions of the matrix products."""
    one = 2.0 * case.num_tokens * case.hidden_size * case.bottleneck_dim
    return one * (2 if case.mode == "forward" else 6)


def input_bytes(case: Case) -> int:
    """Count the bytes of hidden states and weights."""
    weights = (2 * case.hidden_size + 1) * case.bottleneck_dim + case.hidden_size
    return (case.num_tokens * case.hidden_size + weights) * case.dtype.itemsize


def moved_bytes(case: Case) -> int:
    """Count the bytes that must be moved at least, with X the hidden states.

    Forward: 2X, read and written, and the weights. Backward: 3X (hidden states and gradient read, gradient written),
    the weights read and their gradients written. In training the pre-activation is written and read besides. A part of
    the backward pass alone: 2X, the gradient of the hidden states or that of the weights left out.
    """
    tokens = case.num_tokens * case.hidden_size * case.dtype.itemsize
    weights = input_bytes(case) - tokens
    pre_activation = case.num_tokens * case.bottleneck_dim * case.dtype.itemsize
    forward, backward = 2 * tokens + weights, 3 * tokens + 2 * weights + pre_activation
    return {
        "forward": forward,
        "backward": backward,
        "grad_input": forward + pre_activation,
        "weight_gradients": forward + weights + pre_activation,
        "forward_backward": forward + pre_activation + backward,
    }[case.mode]
