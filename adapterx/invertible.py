"""Invertible adapters (MAD-X): a change of the embeddings that is undone before the head of a language model."""

import torch
from torch import Tensor, nn

from adapterx.activations import FIRST_SLOPE, LEARNED
from adapterx.bottleneck import Projection, compute_dtype
from adapterx.branch import compute_branch

CLAMP = 5.0  # of the factors of "glow": their logarithm stays within about +-5


class Subnet(nn.Module):
    """Two linear maps around an activation; the second starts at zero, so a coupling starts as the identity."""

    def __init__(
        self, input_size: int, output_size: int, reduction_factor: float, activation: str, **place: object
    ) -> None:
        super().__init__()
        width = max(1, int(input_size / reduction_factor))
        self.activation = activation
        self.down_proj = nn.utils.skip_init(Projection, input_size, width, **place)
        self.up_proj = nn.utils.skip_init(Projection, width, output_size, **place)
        self.slope = nn.Parameter(torch.empty(1, **place)) if activation in LEARNED else None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the first map from a normal distribution, and let the second be zero."""
        if self.down_proj.weight.is_meta:
            return
        self.down_proj.draw("normal", generator)
        self.up_proj.draw("zero", generator)
        for bias in (self.down_proj.bias, self.up_proj.bias):
            bias.zero_()
        if self.slope is not None:
            self.slope.fill_(FIRST_SLOPE)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return `(..., output_size)` for `(..., input_size)`."""
        down_proj, up_proj = self.down_proj, self.up_proj
        weights = (down_proj.weight, down_proj.bias, up_proj.weight, up_proj.bias)
        return compute_branch(hidden_states, weights, self.activation, 1.0, self.slope)


class InvertibleAdapter(nn.Module):
    """Couple the two halves of the hidden states, so that the change can be undone.

    With `x1`, `x2` the halves, `"nice"` computes `y1 = x1 + f(x2)`, `y2 = x2 + g(y1)`, and `"glow"`
    `y1 = e(s) x1 + t` with `s, t = f(x2)`, `y2 = e(s') x2 + t'` with `s', t' = g(y1)`, where
    `e(s) = exp(0.636 c atan(s / c))` and c = 5.

    Args:
        kind: `"nice"` or `"glow"`.
        hidden_size: width of the hidden states, in elements; the first half is the smaller one.
        reduction_factor: width of a half divided by that of the bottleneck of `f` and `g`.
        activation: one of `adapterx.activations.ACTIVATIONS`.
        generator: source of the random numbers, on the CPU; None takes the global one.
        place: device and dtype of the parameters.

    Source:
        Pfeiffer et al. 2020 (MAD-X); Dinh et al. 2015 (NICE); Kingma and Dhariwal 2018 (Glow); its soft clamp:
        Ardizzone et al. 2019.
    """

    def __init__(
        self,
        kind: str,
        hidden_size: int,
        *,
        reduction_factor: float,
        activation: str,
        generator: torch.Generator | None = None,
        **place: object,
    ) -> None:
        super().__init__()
        self.kind, self.hidden_size = kind, hidden_size
        self.sizes = first, second = hidden_size // 2, hidden_size - hidden_size // 2
        outputs = 1 if kind == "nice" else 2
        self.f = Subnet(second, outputs * first, reduction_factor, activation, **place)
        self.g = Subnet(first, outputs * second, reduction_factor, activation, **place)
        self.f.reset_parameters(generator)
        self.g.reset_parameters(generator)

    def forward(self, hidden_states: Tensor, inverse: bool = False) -> Tensor:
        """Return the changed hidden states, or with `inverse` those that are changed into `hidden_states`.

        Args:
            hidden_states: `(..., hidden_size)`, any floating dtype.
            inverse: whether to undo the change.

        Returns:
            Shape and dtype of `hidden_states`.

        Raises:
            ValueError: the hidden states have another size.
        """
        if hidden_states.shape[-1] != self.hidden_size:
            raise ValueError(
                f"attach: hidden_states must be (..., {self.hidden_size}) for an invertible adapter, "
                f"got shape {tuple(hidden_states.shape)}"
            )
        dtype = compute_dtype(self.f.down_proj.weight.dtype, hidden_states.device.type)
        # Sums and factors keep what the hidden states hold; autocast lowers the maps alone.
        first, second = hidden_states.to(torch.promote_types(dtype, hidden_states.dtype)).split(self.sizes, dim=-1)
        if inverse:
            second = self._undo(second, self.g(first.to(dtype)))
            first = self._undo(first, self.f(second.to(dtype)))
        else:
            first = self._change(first, self.f(second.to(dtype)))
            second = self._change(second, self.g(first.to(dtype)))
        return torch.cat((first, second), dim=-1).to(hidden_states.dtype)

    def _change(self, half: Tensor, told: Tensor) -> Tensor:
        if self.kind == "nice":
            return half + told
        scale, shift = told.chunk(2, dim=-1)
        return _factor(scale) * half + shift

    def _undo(self, half: Tensor, told: Tensor) -> Tensor:
        if self.kind == "nice":
            return half - told
        scale, shift = told.chunk(2, dim=-1)
        return (half - shift) / _factor(scale)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows beside the children."""
        return f"{self.kind}, {self.hidden_size}"


def _factor(scale: Tensor) -> Tensor:
    return torch.exp(CLAMP * 0.636 * torch.atan(scale / CLAMP))
