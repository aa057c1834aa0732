"""The adapter's formula in plain PyTorch: the yardstick of the tests and the baseline of the benchmarks."""

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda tensor: functional.gelu(tensor, approximate="tanh"),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": functional.leaky_relu,
    "identity": lambda tensor: tensor,
}


def bottleneck_adapter(
    hidden_states: Tensor,
    residual: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    activation: str,
    scaling: float,
    adapter_indices: Tensor | None = None,
) -> Tensor:
    """Compute `residual + scaling * (activation(hidden_states @ down_weight.T + down_bias) @ up_weight.T + up_bias)`.

    With `adapter_indices` each token picks the weights of one of several adapters; one after the other is computed.

    Args:
        hidden_states: `(..., input_size)`, floating point.
        residual: `(..., hidden_size)`, added to the scaled branch; `None` gives the branch alone.
        down_weight: `(bottleneck_dim, input_size)`; with `adapter_indices`, as the next three, with a leading dimension
            `num_adapters`.
        down_bias: `(bottleneck_dim,)` or `None`.
        up_weight: `(hidden_size, bottleneck_dim)`.
        up_bias: `(hidden_size,)` or `None`.
        activation: a key of `ACTIVATIONS`.
        scaling: factor on the branch, bias included.
        adapter_indices: integers in [-1, num_adapters); their shape is the leading dimensions of `hidden_states`, or
            the first few of these: `(batch,)` gives all tokens of a sequence one adapter. -1 means no adapter.

    Returns:
        `(..., hidden_size)`, the dtype of the arguments. A token without an adapter gets its residual, or zeros.

    Raises:
        ValueError: an index, or the shape of the indices, breaks its rule.

    Source:
        Houlsby et al. 2019, section 2.1; scaling and parallel placement: He et al. 2021, section 3.
    """
    weights = (down_weight, down_bias, up_weight, up_bias)
    if adapter_indices is not None:
        return _one_adapter_after_the_other(hidden_states, residual, weights, adapter_indices, activation, scaling)
    pre_activation = functional.linear(hidden_states, down_weight, down_bias)
    branch = functional.linear(ACTIVATIONS[activation](pre_activation), up_weight, up_bias)
    return scaling * branch if residual is None else residual + scaling * branch


def _one_adapter_after_the_other(
    hidden_states: Tensor,
    residual: Tensor | None,
    weights: tuple[Tensor | None, ...],
    adapter_indices: Tensor,
    activation: str,
    scaling: float,
) -> Tensor:
    num_adapters, size = weights[0].shape[0], weights[2].shape[1]
    leading = hidden_states.shape[:-1]
    indices = _index_of_every_token(adapter_indices, leading, num_adapters=num_adapters)
    hidden_states = hidden_states.reshape(leading.numel(), hidden_states.shape[-1])
    output = hidden_states.new_zeros(len(hidden_states), size) if residual is None else residual.reshape(-1, size)
    for adapter in range(num_adapters):
        rows = (indices == adapter).nonzero().squeeze(-1)
        base = None if residual is None else output[rows]
        own = (None if weight is None else weight[adapter] for weight in weights)
        adapted = bottleneck_adapter(hidden_states[rows], base, *own, activation=activation, scaling=scaling)
        output = output.index_copy(0, rows, adapted)
    return output.reshape(*leading, size)


def _index_of_every_token(adapter_indices: Tensor, leading: torch.Size, *, num_adapters: int) -> Tensor:
    """Repeat the index of each sequence for its tokens; the result is one-dimensional."""
    if adapter_indices.shape != leading[: adapter_indices.dim()]:
        raise ValueError(
            "bottleneck_adapter: adapter_indices must have the leading dimensions of hidden_states, or the "
            f"first few of these, {tuple(leading)}, got {tuple(adapter_indices.shape)}"
        )
    if ((adapter_indices < -1) | (adapter_indices >= num_adapters)).any():
        raise ValueError(
            f"bottleneck_adapter: adapter_indices must be in [-1, {num_adapters}), "
            f"got values from {adapter_indices.min()} to {adapter_indices.max()}"
        )
    missing = len(leading) - adapter_indices.dim()
    return adapter_indices.reshape((*adapter_indices.shape, *[1] * missing)).expand(leading).reshape(-1)
