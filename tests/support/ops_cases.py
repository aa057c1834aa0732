"""Arguments and measures that the tests of the operator share."""

import torch
from torch import Tensor

from adapterx import ops, reference

ACTIVATIONS = tuple(reference.ACTIVATIONS)
NAMES = ("hidden_states", "residual", "down_weight", "down_bias", "up_weight", "up_bias")
WEIGHTS = NAMES[2:]
LAYOUTS = ("parallel", "sequential", "bare")

# Leading dimensions, input_size, hidden_size, bottleneck_dim: one row, primes, no dimension, four dimensions, a
# bottleneck that no vector width divides, one wider than a register panel, one wider than the model, blocks of 64 rows
# with a remainder.
SHAPES = (
    ((1,), 8, 8, 4),
    ((), 16, 16, 4),
    ((13,), 37, 37, 7),
    ((5, 3), 24, 40, 16),
    ((2, 1, 3, 2), 32, 32, 1),
    ((67,), 48, 48, 131),
    ((131,), 65, 33, 17),
    ((3, 50), 96, 96, 48),
)


def make_arguments(
    leading=(5,), input_size=8, hidden_size=8, bottleneck_dim=4, *, dtype=torch.float64, without=(), requires_grad=()
) -> list[Tensor | None]:
    """Draw the six tensors in schema order; those named in `without` are `None`."""
    sizes = (
        ((*leading, input_size), 1.0),
        ((*leading, hidden_size), 1.0),
        ((bottleneck_dim, input_size), input_size**-0.5),
        ((bottleneck_dim,), 0.5),
        ((hidden_size, bottleneck_dim), bottleneck_dim**-0.5),
        ((hidden_size,), 0.5),
    )
    tensors = [(torch.randn(size, dtype=torch.float64) * factor).to(dtype) for size, factor in sizes]
    return [
        None if name in without else tensor.requires_grad_(name in requires_grad)
        for name, tensor in zip(NAMES, tensors, strict=True)
    ]


def arguments_of(layout, *shape, dtype=torch.float64, without=(), requires_grad=NAMES):
    """Make arguments with a separate residual, with the same tensor in both places, or without a residual."""
    without = (*without, "residual") if layout == "bare" else without
    arguments = make_arguments(*shape, dtype=dtype, without=without, requires_grad=requires_grad)
    if layout == "sequential":
        arguments[1] = arguments[0]
    return arguments


def barely_positive(dtype) -> list[Tensor | None]:
    """Return arguments whose pre-activations are all 2^-14: what is left of a product of 0.3 and a bias of -0.3."""
    hidden_states, down_weight = torch.zeros(3, 16), torch.zeros(8, 16)
    hidden_states[:, 0], hidden_states[:, 1] = 1, 2**-14
    down_weight[:, 0], down_weight[:, 1] = 77 / 256, 1
    biases = torch.full((8,), -77 / 256), torch.zeros(16)
    tensors = [hidden_states, None, down_weight, biases[0], torch.ones(16, 8), biases[1]]
    return [None if tensor is None else tensor.to(dtype).requires_grad_() for tensor in tensors]


def compute(arguments, activation="gelu", scaling=0.7) -> Tensor:
    return ops.bottleneck_adapter(*arguments, activation=activation, scaling=scaling)


def expect(arguments, activation="gelu", scaling=0.7) -> Tensor:
    return reference.bottleneck_adapter(*arguments, activation=activation, scaling=scaling)


def copy_of(arguments, dtype=None) -> list[Tensor | None]:
    """Return fresh leaves with the same values and flags; one tensor passed twice stays one tensor."""
    made = {}
    for tensor in arguments:
        if tensor is not None and id(tensor) not in made:
            made[id(tensor)] = tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_(tensor.requires_grad)
    return [None if tensor is None else made[id(tensor)] for tensor in arguments]


def gradients(function, arguments, cotangent, **options) -> dict[str, Tensor]:
    """Differentiate with respect to every argument that requires it."""
    wanted = {name: t for name, t in zip(NAMES, arguments, strict=True) if t is not None and t.requires_grad}
    found = torch.autograd.grad(function(arguments, **options), list(wanted.values()), cotangent, allow_unused=True)
    return dict(zip(wanted, found, strict=True))


def error(actual: Tensor, exact: Tensor) -> float:
    """Relative error in the Euclidean norm, against float64."""
    return float((actual.double() - exact).norm() / exact.norm().clamp_min(1e-300))


def layouts(rows=6, columns=24) -> dict[str, Tensor]:
    """Return tensors of every layout that rows can have, by its name."""
    wide = torch.randn(rows, 2 * columns, dtype=torch.float64)
    return {
        "rows of a wider matrix": wide[:, columns:],
        "every other row": torch.randn(2 * rows, columns, dtype=torch.float64)[::2],
        "three dimensions, strided": torch.randn(2, rows // 2, 3, columns, dtype=torch.float64)[:, :, 1],
        "one row, strided": torch.randn(rows, columns, dtype=torch.float64)[2:3, :],
        "broadcast rows": torch.randn(1, columns, dtype=torch.float64).expand(rows, columns),
        "broadcast batch": torch.randn(rows, columns, dtype=torch.float64).expand(2, rows, columns),
        "leading dimensions swapped": torch.randn(rows, 2, columns, dtype=torch.float64).transpose(0, 1),
        "transposed": torch.randn(columns, rows, dtype=torch.float64).t(),
        "columns apart": wide[:, ::2],
        "broadcast columns": torch.randn(rows, 1, dtype=torch.float64).expand(rows, columns),
        "negative view": torch._neg_view(torch.randn(rows, columns, dtype=torch.float64)),
        "one column": torch.randn(rows, 1, dtype=torch.float64),
    }
