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
