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
    *,
    activation: str,
    scaling: float,
) -> Tensor:
    """Compute `residual + scaling * (activation(hidden_states @ down_weight.T + down_bias) @ up_weight.T + up_bias)`.

    Args:
        hidden_states: `(..., input_size)`, floating point.
        residual: `(..., hidden_size)`, added to the scaled branch; `None` gives the branch alone.
        down_weight: `(bottleneck_dim, input_size)`.
        down_bias: `(bottleneck_dim,)` or `None`.
        up_weight: `(hidden_size, bottleneck_dim)`.
        up_bias: `(hidden_size,)` or `None`.
        activation: a key of `ACTIVATIONS`.
        scaling: factor on the branch, bias included.

    Returns:
        `(..., hidden_size)`, the dtype of the arguments.

    Source:
        Houlsby et al. 2019, section 2.1; scaling and parallel placement: He et al. 2021, section 3.
    """
    pre_activation = functional.linear(hidden_states, down_weight, down_bias)
    branch = functional.linear(ACTIVATIONS[activation](pre_activation), up_weight, up_bias)
    return scaling * branch if residual is None else residual + scaling * branch


def grouped_bottleneck_adapter(
    hidden_states: Tensor,
    residual: Tensor | None,
    adapter_indices: Tensor,
    down_weight: Tensor,
    down_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    *,
    activation: str,
    scaling: float,
) -> Tensor:
    """Compute `bottleneck_adapter` with weights that each token picks for itself, one adapter after the other.

    Args:
        hidden_states: `(..., input_size)`, floating point.
        residual: `(..., hidden_size)`, added to the scaled branch; `None` gives the branch alone.
        adapter_indices: integers in [-1, num_adapters); their shape is the leading dimensions of `hidden_states`, or
            the first few of these: `(batch,)` gives all tokens of a sequence one adapter. -1 means no adapter.
        down_weight: `(num_adapters, bottleneck_dim, input_size)`.
        down_bias: `(num_adapters, bottleneck_dim)` or `None`.
        up_weight: `(num_adapters, hidden_size, bottleneck_dim)`.
        up_bias: `(num_adapters, hidden_size)` or `None`.
        activation: a key of `ACTIVATIONS`.
        scaling: factor on the branch, bias included.

    Returns:
        `(..., hidden_size)`, the dtype of the arguments. A token without an adapter gets its residual, or zeros.

    Raises:
        ValueError: an index, or the shape of the indices, breaks its rule.
    """
    leading = hidden_states.shape[:-1]
    indices = _index_of_every_token(adapter_indices, leading, num_adapters=len(down_weight))
    hidden_states = hidden_states.reshape(leading.numel(), hidden_states.shape[-1])
    size = up_weight.shape[1]
    output = hidden_states.new_zeros(len(hidden_states), size) if residual is None else residual.reshape(-1, size)
    for group in range(len(down_weight)):
        rows = (indices == group).nonzero().squeeze(-1)
        adapted = bottleneck_adapter(
            hidden_states[rows],
            None if residual is None else output[rows],
            down_weight[group],
            None if down_bias is None else down_bias[group],
            up_weight[group],
            None if up_bias is None else up_bias[group],
            activation=activation,
            scaling=scaling,
        )
        output = output.index_copy(0, rows, adapted)
    return output.reshape(*leading, size)


def _index_of_every_token(adapter_indices: Tensor, leading: torch.Size, *, num_adapters: int) -> Tensor:
    """Repeat the index of each sequence for its tokens; the result is one-dimensional."""
    if adapter_indices.shape != leading[: adapter_indices.dim()]:
        raise ValueError(
            "grouped_bottleneck_adapter: adapter_indices must have the leading dimensions of hidden_states, or the "
            f"first few of these, {tuple(leading)}, got {tuple(adapter_indices.shape)}"
        )
    if ((adapter_indices < -1) | (adapter_indices >= num_adapters)).any():
        raise ValueError(
            f"grouped_bottleneck_adapter: adapter_indices must be in [-1, {num_adapters}), "
            f"got values from {adapter_indices.min()} to {adapter_indices.max()}"
        )
    missing = len(leading) - adapter_indices.dim()
    return adapter_indices.reshape((*adapter_indices.shape, *[1] * missing)).expand(leading).reshape(-1)
