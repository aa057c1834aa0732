"""The adapter itself: two linear maps around an activation, a scaling, and dropout."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterx import ops
from adapterx.activations import FIRST_SLOPE, LEARNED
from adapterx.branch import Weights, compute_branch, drop_branches, layer_norm, mean_gate
from adapterx.branch_options import check_branch
from adapterx.checks import check_size
from adapterx.devices import compute_dtype
from adapterx.phm import Factors, PHMConfig, PHMProjection
from adapterx.reference import ACTIVATIONS

# Sigma of init_up="near_zero". With init="houlsby" a branch is then about 1e-4 of its hidden states: below what
# bfloat16 resolves, and still a normal number in float16, where 1e-5 would be subnormal.
NEAR_ZERO_SIGMA = 1e-4
GATE_SIGMA = 0.02  # of a gate's weight: it begins near one half


class Projection(nn.Linear):
    """A linear map of an adapter, which reads its weights and never calls it.

    The class tells those who exchange modules by their exact class, as `torch.ao.quantization` does, to leave it.
    """

    def draw(self, init: str, generator: torch.Generator | None) -> None:
        """Draw the weight from the distribution of this name."""
        if init == "zero":
            self.weight.zero_()
            return
        # Drawn on the CPU in float32, so that a seed means the same weights on every device and in every dtype.
        drawn = torch.empty(self.weight.shape, dtype=torch.float32, device="cpu")
        if init == "houlsby":
            nn.init.trunc_normal_(drawn, std=1e-2, a=-2e-2, b=2e-2, generator=generator)
        elif init == "xavier":
            nn.init.xavier_uniform_(drawn, generator=generator)
        elif init == "he":
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        else:
            drawn.normal_(std=NEAR_ZERO_SIGMA if init == "near_zero" else GATE_SIGMA, generator=generator)
        self.weight.copy_(drawn)


class BottleneckAdapter(nn.Module):
    """Compute `residual + scaling * up_proj(activation(down_proj(hidden_states)))`.

    Args:
        input_size: width of the hidden states that are read, in elements.
        hidden_size: width of the residual and of the result, in elements.
        bottleneck_dim: width of the bottleneck, in elements.
        activation: one of `adapterx.activations.ACTIVATIONS`.
        scaling: factor on the branch, or `"learned"`, or `"learned_per_channel"`.
        dropout: probability of dropping an element of the scaled branch in training, in [0, 1).
        down_bias: whether `down_proj` has a bias.
        up_bias: whether `up_proj` has a bias.
        init: distribution of the `down_proj` weight: `"houlsby"`, `"xavier"` or `"he"`.
        init_up: `"zero"` or `"near_zero"`.
        norm_before: whether a LayerNorm stands before `down_proj`.
        norm_after: `"branch"`, `"sum"` or None: what a LayerNorm norms.
        gating: whether the branch of each example is multiplied by a gate.
        stochastic_depth: probability of dropping the whole branch of an example in training, in [0, 1).
        phm: makes both maps sums of Kronecker products, which are put together in each forward pass; None does not.
        shared: what the maps of other modules share by `phm`; what is new is put there. None shares between the two
            maps alone.
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
        norm_before: bool = False,
        norm_after: str | None = None,
        gating: bool = False,
        stochastic_depth: float = 0.0,
        phm: PHMConfig | None = None,
        shared: dict[str, Factors] | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("input_size", input_size), ("hidden_size", hidden_size), ("bottleneck_dim", bottleneck_dim)
        ):  # fmt: skip
            check_size("BottleneckAdapter", name, size)
        numbers = check_branch(
            "BottleneckAdapter",
            activation=activation,
            scaling=scaling,
            dropout=dropout,
            down_bias=down_bias,
            up_bias=up_bias,
            init=init,
            init_up=init_up,
            norm_before=norm_before,
            norm_after=norm_after,
            gating=gating,
            stochastic_depth=stochastic_depth,
            phm=phm,
        )
        scaling, self.dropout, self.stochastic_depth = (
            numbers[name] for name in ("scaling", "dropout", "stochastic_depth")
        )
        self.activation, self.init, self.init_up = activation, init, init_up
        # skip_init: nn.Linear's own initialisation would draw from the global random numbers for nothing.
        place = {"device": device or "cpu", "dtype": dtype}
        if phm is None:
            self.down_proj = nn.utils.skip_init(Projection, input_size, bottleneck_dim, bias=down_bias, **place)
            self.up_proj = nn.utils.skip_init(Projection, bottleneck_dim, hidden_size, bias=up_bias, **place)
        else:
            options = {"config": phm, "shared": {} if shared is None else shared, **place}
            self.down_proj = PHMProjection(input_size, bottleneck_dim, bias=down_bias, name="down", **options)
            self.up_proj = PHMProjection(bottleneck_dim, hidden_size, bias=up_bias, name="up", **options)
        if isinstance(scaling, str):
            self.scaling = nn.Parameter(torch.empty(1 if scaling == "learned" else hidden_size, **place))
        else:
            self.scaling = scaling
        self.after = norm_after
        self.slope = nn.Parameter(torch.empty(1, **place)) if activation in LEARNED else None
        self.norm_before = nn.LayerNorm(input_size, **place) if norm_before else None
        self.norm_after = nn.LayerNorm(hidden_size, **place) if norm_after else None
        self.gate = nn.utils.skip_init(Projection, input_size, 1, **place) if gating else None
        used = (activation not in ACTIVATIONS, norm_before, norm_after, gating, self.stochastic_depth)
        self.is_plain = not any(used)
        """Whether the branch is what the operator computes, so that one call of it can serve several such adapters."""
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise all parameters, for example after `to_empty` has given a meta model its memory."""
        if next(self.parameters()).is_meta:
            return
        self.down_proj.draw(self.init, generator)
        self.up_proj.draw(self.init_up, generator)
        for projection in (self.down_proj, self.up_proj):
            if projection.bias is not None:
                projection.bias.zero_()
        if isinstance(self.scaling, nn.Parameter):
            self.scaling.fill_(1.0)
        if self.slope is not None:
            self.slope.fill_(FIRST_SLOPE)
        for norm in (self.norm_before, self.norm_after):
            if norm is not None:
                norm.reset_parameters()
        if self.gate is not None:
            self.gate.draw("gate", generator)
            self.gate.bias.zero_()

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """Return the adapted hidden states.

        Args:
            hidden_states: `(..., input_size)`, any floating dtype.
            residual: `(..., hidden_size)`; in sequential placement the same tensor object as `hidden_states`.

        Returns:
            `(..., hidden_size)` in the dtype of `residual`. With `up_proj` zero it equals a finite `residual` exactly.
        """
        weights, scaling = self._weights()
        dtype = compute_dtype(weights[0].dtype, hidden_states.device.type)
        if not self.is_plain:
            return self._compute_around(hidden_states, residual, weights, scaling, dtype)
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

    def _weights(self) -> tuple[Weights, float]:
        """Return the weights of both maps, a trained scaling multiplied in, and the factor that is left."""
        # Each attribute of a module costs a look-up of a microsecond, which small batches feel: each is read once.
        down_proj, up_proj, scaling = self.down_proj, self.up_proj, self.scaling
        up_weight, up_bias = up_proj.weight, up_proj.bias
        if isinstance(scaling, Tensor):
            up_weight = up_weight * scaling.unsqueeze(-1)
            up_bias = None if up_bias is None else up_bias * scaling
            scaling = 1.0
        return (down_proj.weight, down_proj.bias, up_weight, up_bias), scaling

    def _compute_around(
        self, hidden_states: Tensor, residual: Tensor, weights: Weights, scaling: float, dtype: torch.dtype
    ) -> Tensor:
        """Return the adapted hidden states with all that stands around the operator."""
        norm_before, norm_after, gate = self.norm_before, self.norm_after, self.gate
        source = hidden_states.to(dtype)
        read = source if norm_before is None else layer_norm(source, norm_before).to(dtype)
        branch = compute_branch(read, weights, self.activation, scaling, self.slope)
        branch = functional.dropout(branch, self.dropout, self.training)
        if gate is not None:
            branch = branch * mean_gate(source, gate.weight, gate.bias)
        if self.after == "branch":
            branch = layer_norm(branch, norm_after)
        if self.training and self.stochastic_depth:
            branch = drop_branches(branch, self.stochastic_depth)
        result = residual + branch
        return (layer_norm(result, norm_after) if self.after == "sum" else result).to(residual.dtype)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows beside the children."""
        scaling = "learned" if isinstance(self.scaling, Tensor) else self.scaling
        return f"activation={self.activation}, scaling={scaling}, dropout={self.dropout}"
