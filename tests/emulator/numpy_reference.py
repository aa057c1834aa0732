"""The bottleneck adapter in float64 NumPy, and the same rounded after every operation as eager PyTorch rounds.

The second gives the yardstick: a kernel may be at most twice (weight gradients: three times) as far from float64 as the
eager formula is at the same dtype.
"""

import math

import numpy as np
import torch

from adapterx import reference

SQRT_HALF = math.sqrt(0.5)
_erf = np.vectorize(math.erf, otypes=[np.float64])


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float64 `values` to `dtype`; bfloat16 becomes its bit pattern (uint16)."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bits(array: np.ndarray) -> np.ndarray:
    """Return the float64 values of an array made by `to_bits`."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


# float64 array -> value, written out; others are PyTorch's.
FORMULAS = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": lambda x: 0.5 * x * (1.0 + _erf(x * SQRT_HALF)),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "identity": lambda x: x,
}
# Where a difference across the kink would be wrong.
DERIVATIVES = {
    "relu": lambda x: (x > 0).astype(np.float64),
    "leaky_relu": lambda x: np.where(x > 0, 1.0, 0.01),
}


def activate(name: str, x: np.ndarray) -> np.ndarray:
    """Apply the activation `name`."""
    if name in FORMULAS:
        return FORMULAS[name](x)
    return reference.ACTIVATIONS[name](torch.from_numpy(x)).numpy()


def derivative(name: str, x: np.ndarray) -> np.ndarray:
    """Differentiate the activation `name`: analytic at kinks, five-point differences (error about 1e-12) elsewhere."""
    if name in DERIVATIVES:
        return DERIVATIVES[name](x)
    if name not in FORMULAS:
        points = torch.from_numpy(x).clone().requires_grad_()
        return torch.autograd.grad(reference.ACTIVATIONS[name](points).sum(), points)[0].numpy()
    step = 1e-3
    near = activate(name, x + step) - activate(name, x - step)
    far = activate(name, x + 2 * step) - activate(name, x - 2 * step)
    return (8 * near - far) / (12 * step)


class Rounding:
    """Arithmetic that keeps float64 (`dtype` None) or rounds every result to `dtype`."""

    def __init__(self, dtype: str | None):
        self.dtype = dtype

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return values if self.dtype is None else from_bits(to_bits(values, self.dtype))


def forward(h, residual, wd, bd, wu, bu, *, activation, scaling, dtype=None):
    """Return (output, pre_activation); biases and residual may be None."""
    r = Rounding(dtype)
    u = r(h @ wd.T + (0 if bd is None else bd))
    branch = r(r(activate(activation, u)) @ wu.T + (0 if bu is None else bu))
    output = r(scaling * branch) if residual is None else r(residual + scaling * branch)
    return output, u


def backward(dy, h, u, wd, wu, *, activation, scaling, add_grad_output, dtype=None):
    """Return (grad_input, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias)."""
    r = Rounding(dtype)
    branch_gradient = r(scaling * dy)
    du = r(r(branch_gradient @ wu) * derivative(activation, u))
    dh = r(du @ wd)
    if add_grad_output:
        dh = r(dh + dy)
    a = r(activate(activation, u))
    return dh, r(du.T @ h), r(du.sum(0)), r(branch_gradient.T @ a), r(branch_gradient.sum(0))


def relative_error(actual: np.ndarray, exact: np.ndarray) -> float:
    """Norm of the difference over the norm of `exact`."""
    return float(np.linalg.norm(actual - exact) / max(np.linalg.norm(exact), 1e-30))
