"""The adapter itself: two linear maps around an activation, a scaling, and dropout."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterx import ops
from adapterx.config import check_branch, check_size

# Sigma of init_up="near_zero". With init="houlsby" a branch is then about 1e-4 of its hidden states: below what
# bfloat16 resolves, and still a normal number in float16, where 1e-5 would be subnormal.
NEAR_ZERO_SIGMA = 1e-4


class Projection(nn.Linear):
    """A linear map of an adapter, which reads its weights and never calls it.

    The class tells those who exchange modules by their exact class, as `torch.ao.quantization` does, to leave it.
    """


class BottleneckAdapter(nn.Module):
    """Compute `residual + scaling * up_proj(activation(down_proj(hidden_states)))`.

    Args:
        input_size: width of the hidden states that are read, in elements.
        hidden_size: width of the residual and of the result, in elements.
        bottleneck_dim: width of the bottleneck, in elements.
        activation: a key of `adapterx.config.ACTIVATIONS`.
        scaling: factor on the branch, or `"learned"`, or `"learned_per_channel"`.
        dropout: probability of dropping an element of the scaled branch in training, in [0, 1).
        down_bias: whether `down_proj` has a bias.
        up_bias: whether `up_proj` has a bias.
        init: distribution of the `down_proj` weight: `"houlsby"`, `"xavier"` or `"he"`.
        init_up: `"zero"` or `"near_zero"`.
        generator: source of the random numbers, on the CPU; None takes the global one.
        device: where the parameters live.
        dtype: floating dtype of the parameters.

    Raises:
        ConfigError: a value breaks its rule.

    Source:
        Houlsby et al. 2019, section 2.1; learned scaling and parallel placement: He et al. 2021, section 3.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bottleneck_dim: int,
        *,
        activation: str = "gelu",
        scaling: float | str = 1.0,
        dropout: float = 0.0,
        down_bias: bool = True,
        up_bias: bool = True,
        init: str = "houlsby",
        init_up: str = "zero",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("input_size", input_size), ("hidden_size", hidden_size), ("bottleneck_dim", bottleneck_dim)
        ):  # fmt: skip
            check_size("BottleneckAdapter", name, size)
        scaling, dropout = check_branch(
            "BottleneckAdapter",
            activation=activation,
            scaling=scaling,
            dropout=dropout,
            down_bias=down_bias,
            up_bias=up_bias,
            init=init,
            init_up=init_up,
        )
        self.activation, self.dropout, self.init, self.init_up = activation, dropout, init, init_up
        # skip_init: nn.Linear's own initialisation would draw from the global random numbers for nothing.
        place = {"device": device or "cpu", "dtype": dtype}
        self.down_proj = nn.utils.skip_init(Projection, input_size, bottleneck_dim, bias=down_bias, **place)
        self.up_proj = nn.utils.skip_init(Projection, bottleneck_dim, hidden_size, bias=up_bias, **place)
        if isinstance(scaling, str):
            self.scaling = nn.Parameter(torch.empty(1 if scaling == "learned" else hidden_size, **place))
        else:
            self.scaling = scaling
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise all parameters, for example after `to_empty` has given a meta model its memory."""
        if self.down_proj.weight.is_meta:
            return
        # Drawn on the CPU in float32, so that a seed means the same weights on every device and in every dtype.
        draw = torch.empty(self.down_proj.weight.shape, dtype=torch.float32, device="cpu")
        if self.init == "houlsby":
            nn.init.trunc_normal_(draw, std=1e-2, a=-2e-2, b=2e-2, generator=generator)
        elif self.init == "xavier":
            nn.init.xavier_uniform_(draw, generator=generator)
        else:
            nn.init.kaiming_uniform_(draw, a=math.sqrt(5), generator=generator)
        self.down_proj.weight.copy_(draw)
        if self.init_up == "zero":
            self.up_proj.weight.zero_()
        else:
            draw = torch.empty(self.up_proj.weight.shape, dtype=torch.float32, device="cpu")
            self.up_proj.weight.copy_(draw.normal_(std=NEAR_ZERO_SIGMA, generator=generator))
        for projection in (self.down_proj, self.up_proj):
            if projection.bias is not None:
                projection.bias.zero_()
        if isinstance(self.scaling, nn.Parameter):
            self.scaling.fill_(1.0)

    @property
    def is_plain(self) -> bool:
        """Whether the branch is what the operator computes, so that one call of it can serve several such adapters."""
        return True

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """Return the adapted hidden states.

        Args:
            hidden_states: `(..., input_size)`, any floating dtype.
            residual: `(..., hidden_size)`; in sequential placement the same tensor object as `hidden_states`.

        Returns:
            `(..., hidden_size)` in the dtype of `residual`. With `up_proj` zero it equals a finite `residual` exactly.
        """
        # Each attribute of a module costs a look-up of a microsecond, which small batches feel: each is read once.
        down_proj, up_proj, scaling = self.down_proj, self.up_proj, self.scaling
        down_weight, up_weight, up_bias = down_proj.weight, up_proj.weight, up_proj.bias
        if isinstance(scaling, Tensor):
            up_weight = up_weight * scaling.unsqueeze(-1)
            up_bias = None if up_bias is None else up_bias * scaling
            scaling = 1.0
        weights = (down_weight, down_proj.bias, up_weight, up_bias)
        dtype = compute_dtype(down_weight.dtype, hidden_states.device.type)
        source = hidden_states.to(dtype)
        dropping = self.training and self.dropout > 0.0
        # A residual that the adapter's dtype cannot hold (float32 under autocast to bfloat16) must not be rounded.
        if not dropping and torch.promote_types(residual.dtype, dtype) == dtype:
            base = source if residual is hidden_states else residual.to(dtype)
            result = ops.bottleneck_adapter(source, base, *weights, activation=self.activation, scaling=scaling)
            return result.to(residual.dtype)
        branch = ops.bottleneck_adapter(source, None, *weights, activation=self.activation, scaling=scaling)
        branch = functional.dropout(branch, self.dropout, self.training)
        return (residual + branch).to(residual.dtype)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows beside the children."""
        scaling = "learned" if isinstance(self.scaling, Tensor) else self.scaling
        return f"activation={self.activation}, scaling={scaling}, dropout={self.dropout}"


def compute_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """Return what an adapter with weights of this dtype computes in, here and now."""
    # Autocast leaves float64 as it is and refuses to say anything about the meta device. The call that asks whether it
    # knows a device breaks the graph of torch.compile under torch 2.11.
    if dtype != torch.float64 and device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype
