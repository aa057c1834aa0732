"""What a branch may have around the operator: another activation, norms, a gate, whole branches dropped in training."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterx import ops
from adapterx.activations import activate
from adapterx.reference import ACTIVATIONS

Weights = tuple[Tensor, Tensor | None, Tensor, Tensor | None]  # of both maps, with their biases


def compute_branch(source: Tensor, weights: Weights, activation: str, scaling: float, slope: Tensor | None) -> Tensor:
    """Return the scaled branch: by the operator, or in plain PyTorch where the kernels do not know the activation.

    Args:
        source: `(..., input_size)`.
        weights: weight and bias of `down_proj`, then of `up_proj`.
        activation: one of `adapterx.activations.ACTIVATIONS`.
        scaling: factor on the branch.
        slope: of `"prelu"` below zero, one element; None for the others.
    """
    if activation in ACTIVATIONS:
        return ops.bottleneck_adapter(source, None, *weights, activation=activation, scaling=scaling)
    down_weight, down_bias, up_weight, up_bias = weights
    bottleneck = activate(activation, functional.linear(source, down_weight, down_bias), slope)
    return scaling * functional.linear(bottleneck, up_weight, up_bias)


def layer_norm(tensor: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return the tensor normed in its own dtype, which may hold more than that of the weights."""
    weight, bias = norm.weight.to(tensor.dtype), norm.bias.to(tensor.dtype)
    return functional.layer_norm(tensor, norm.normalized_shape, weight, bias, norm.eps)


def mean_gate(source: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return one factor for each example: the mean over its tokens, padding included, of `sigmoid(w · token + b)`.

    Args:
        source: `(batch, ..., tokens, input_size)`.
        weight: `(1, input_size)`.
        bias: `(1,)`.

    Returns:
        `(batch, 1, ..., 1)`.

    Raises:
        ValueError: the tokens are not told apart by example.
    """
    _check_examples(source, "gating")
    gate = torch.sigmoid(functional.linear(source, weight, bias))
    return gate.mean(dim=tuple(range(1, gate.dim() - 1)), keepdim=True)


def drop_branches(branch: Tensor, probability: float) -> Tensor:
    """Drop the branch of each example with this probability, and scale up the others (Huang et al. 2016).

    Raises:
        ValueError: the tokens are not told apart by example.
    """
    _check_examples(branch, "stochastic_depth")
    shape = (branch.shape[0], *[1] * (branch.dim() - 1))
    keep = torch.full(shape, 1.0 - probability, dtype=branch.dtype, device=branch.device)
    return branch * torch.bernoulli(keep) / (1.0 - probability)


def _check_examples(tensor: Tensor, option: str) -> None:
    if tensor.dim() < 3:
        raise ValueError(
            f"BottleneckAdapter: hidden_states must be (batch, ..., tokens, size) for {option}, which treats each "
            f"example as a whole, got shape {tuple(tensor.shape)}"
        )
