"""Activations that the kernels do not know: they run in plain PyTorch, between two plain linear maps."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from adapterx import reference


def _laplace(tensor: Tensor) -> Tensor:
    # The mean and the deviation make it meet the squared relu best (Ma et al. 2022, MEGA).
    return 0.5 * (1.0 + torch.erf((tensor - 0.707107) / (0.282095 * math.sqrt(2.0))))


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": functional.relu6,
    "relu2": lambda tensor: functional.relu(tensor).square(),
    "gelu_10": lambda tensor: functional.gelu(tensor).clamp(-10.0, 10.0),
    "quick_gelu": lambda tensor: tensor * torch.sigmoid(1.702 * tensor),
    "laplace": _laplace,
    "mish": functional.mish,
    "elu": functional.elu,
    "selu": functional.selu,
    "hardswish": functional.hardswish,
    "softplus": functional.softplus,
}
LEARNED = ("prelu",)
"""Those with a trainable parameter."""
FIRST_SLOPE = 0.25
"""What the slope of `"prelu"` below zero starts at (He et al. 2015)."""

ACTIVATIONS = (*reference.ACTIVATIONS, *PLAIN, *LEARNED)
"""All that an adapter can have; those of `adapterx.reference` are in the kernels."""


def activate(name: str, pre_activation: Tensor, slope: Tensor | None) -> Tensor:
    """Return the activation of this name; `slope`, of one element, is that of `"prelu"` below zero."""
    if name in LEARNED:
        return functional.prelu(pre_activation, slope.to(pre_activation.dtype))  # autocast has changed the former's
    return PLAIN[name](pre_activation)
