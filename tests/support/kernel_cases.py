"""What the tests of the torch-free CPU kernels share: the module under test, its choices, activations in NumPy."""

import math

import numpy as np
import torch
from kernel_build import build_kernel_module

from adapterx import reference

kernels = build_kernel_module()
CAPABILITIES = tuple(kernels.capabilities())
DTYPES = ("float32", "float64", "bfloat16", "float16")
GRADIENTS = ("grad_input", "grad_down_weight", "grad_down_bias", "grad_up_weight", "grad_up_bias")
FLOOR = {"float32": 1e-5, "float64": 1e-13, "bfloat16": 1e-5, "float16": 1e-5}


def to_storage(tensor):
    """Return a NumPy array with the tensor's bits: 16-bit floats as uint16."""
    return tensor.view(torch.uint16).numpy() if tensor.element_size() == 2 else tensor.numpy()


def relative_error(got, expected):
    """Norm of the difference over the norm of the expected value, both in float64."""
    difference = (got.double() - expected.double()).norm().item()
    return difference / max(expected.double().norm().item(), 1e-30)


def _gelu(u):
    cdf = 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(u / math.sqrt(2)))
    return u * cdf, cdf + u * np.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)


def _gelu_tanh(u):
    factor = math.sqrt(2 / math.pi)
    t = np.tanh(factor * (u + 0.044715 * u**3))
    return 0.5 * u * (1 + t), 0.5 * (1 + t) + 0.5 * u * (1 - t * t) * factor * (1 + 3 * 0.044715 * u * u)


def _silu(u):
    sigmoid = 1 / (1 + np.exp(-u))
    return u * sigmoid, sigmoid * (1 + u * (1 - sigmoid))


# float64 array -> value and derivative, independent of PyTorch's formulas.
NUMPY_ACTIVATIONS = {
    "relu": lambda u: (np.maximum(u, 0), (u > 0) * 1.0),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "tanh": lambda u: (np.tanh(u), 1 - np.tanh(u) ** 2),
    "sigmoid": lambda u: (1 / (1 + np.exp(-u)), np.exp(-u) / (1 + np.exp(-u)) ** 2),
    "leaky_relu": lambda u: (np.where(u > 0, u, 0.01 * u), np.where(u > 0, 1.0, 0.01)),
    "identity": lambda u: (u, np.ones_like(u)),
}
ACTIVATIONS = tuple(reference.ACTIVATIONS)


def value_and_derivative(activation, u):
    """Apply an activation to a float64 array: as written out above, or, where it is not, by PyTorch and autograd."""
    if activation in NUMPY_ACTIVATIONS:
        return NUMPY_ACTIVATIONS[activation](u)
    points = torch.as_tensor(u, dtype=torch.float64).clone().requires_grad_()
    value = reference.ACTIVATIONS[activation](points)
    (derivative,) = torch.autograd.grad(value.sum(), points)
    return value.detach().numpy(), derivative.numpy()
