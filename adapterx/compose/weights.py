"""The weights of several adapters as one call of the operator takes them, kept as long as nothing changes them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterx.compose.batch import Shared, lasting
from adapterx.devices import compute_dtype


class PlainAdapter(Protocol):
    """What a call of the operator for several adapters must know of each: a `BottleneckAdapter` that is plain."""

    down_proj: nn.Linear
    up_proj: nn.Linear
    scaling: float | Tensor
    activation: str
    dropout: float
    training: bool


# One adapter, or several whose branches are added up, each with the factor on its branch. Such a sum is one adapter:
# its bottleneck is theirs beside each other.
Blend = tuple[tuple[PlainAdapter, float], ...]


class Weights(NamedTuple):
    """The weights of several adapters, padded to the widest bottleneck and stacked."""

    down_weight: Tensor
    down_bias: Tensor | None
    up_weight: Tensor
    up_bias: Tensor | None
    scaling: float | Tensor


class StackedWeights:
    """The stacked weights of some blends: new ones while they are trained, otherwise those of an earlier forward pass.

    Args:
        blends: of adapters that share placement, activation, sizes, dtype and device; bottlenecks, biases and scaling
            may differ.
        shared: what the modules share that run the composition.
    """

    def __init__(self, blends: Sequence[Blend], shared: Shared) -> None:
        self.blends, self.shared = tuple(blends), shared
        self.adapters = tuple(adapter for blend in blends for adapter, _ in blend)
        self.cache: _Cache | None = None

    def get(self, device_type: str) -> Weights:
        """Return them in the dtype to compute in."""
        if torch.compiler.is_compiling():
            return stack_weights(self.blends, device_type)  # in the graph, which sees every change of a parameter
        trains, steps = torch.is_grad_enabled(), self.shared.optimizer_steps
        cache = self.cache  # another thread may take it away meanwhile
        if cache is not None and cache.is_current(steps, device_type, frozen=trains):
            return cache.weights
        if trains:
            weights = stack_weights(self.blends, device_type)
            if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in weights):
                self.cache = None
                self.shared.refuse_late_backward(weights.up_weight, *self.adapters)
                return weights
        else:
            with lasting():
                weights = stack_weights(self.blends, device_type)
        self.cache = _Cache.of(self.adapters, weights, steps)
        return weights


def stack_weights(blends: Sequence[Blend], device_type: str) -> Weights:
    """Pad and stack the weights in the dtype to compute in; scalings that differ are multiplied into `up_proj`."""
    flat = [_flattened(blend) for blend in blends]
    scaling = flat[0].scaling
    if isinstance(scaling, Tensor) or any(isinstance(one.scaling, Tensor) or one.scaling != scaling for one in flat):
        flat, scaling = [_scaled(one) for one in flat], 1.0
    like = flat[0].down_weight
    width, input_size = max(one.down_weight.shape[0] for one in flat), like.shape[1]
    hidden_size = flat[0].up_weight.shape[0]
    dtype = compute_dtype(like.dtype, device_type)
    return Weights(
        _stack([one.down_weight for one in flat], (width, input_size)).to(dtype),
        _stack_biases([one.down_bias for one in flat], like, width, dtype),
        _stack([one.up_weight for one in flat], (hidden_size, width)).to(dtype),
        _stack_biases([one.up_bias for one in flat], like, hidden_size, dtype),
        scaling,
    )


def _flattened(blend: Blend) -> Weights:
    """Return the weights of one adapter that adds what the blend adds, exactly."""
    own = [_factored(adapter, factor) for adapter, factor in blend]
    if len(own) == 1:
        return own[0]
    own = [_scaled(one) for one in own]
    down_bias = up_bias = None
    if any(one.down_bias is not None for one in own):
        biases = [one.down_weight.new_zeros(len(one.down_weight)) if one.down_bias is None else one.down_bias
                  for one in own]  # fmt: skip
        down_bias = torch.cat(biases)
    for one in own:
        if one.up_bias is not None:
            up_bias = one.up_bias if up_bias is None else up_bias + one.up_bias
    down_weight, up_weight = torch.cat([one.down_weight for one in own]), torch.cat([one.up_weight for one in own], 1)
    return Weights(down_weight, down_bias, up_weight, up_bias, 1.0)


def _factored(adapter: PlainAdapter, factor: float) -> Weights:
    # Each attribute of a module costs a look-up of a microsecond, which small batches feel: each is read once.
    down_proj, up_proj, scaling = adapter.down_proj, adapter.up_proj, adapter.scaling
    scaling = scaling if factor == 1.0 else scaling * factor
    return Weights(down_proj.weight, down_proj.bias, up_proj.weight, up_proj.bias, scaling)


def _scaled(one: Weights) -> Weights:
    """Return the weights with their scaling, if it is not 1, multiplied into `up_proj`."""
    factor = one.scaling
    if not isinstance(factor, Tensor) and factor == 1.0:
        return one
    column = factor.unsqueeze(-1) if isinstance(factor, Tensor) else factor
    up_bias = None if one.up_bias is None else one.up_bias * factor
    return one._replace(up_weight=one.up_weight * column, up_bias=up_bias, scaling=1.0)


def _stack_biases(biases: list[Tensor | None], like: Tensor, size: int, dtype: torch.dtype) -> Tensor | None:
    if all(bias is None for bias in biases):
        return None
    return _stack([like.new_zeros(size) if bias is None else bias for bias in biases], (size,)).to(dtype)


def _stack(tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Stack tensors that are appended with zeros up to the shape; a single one is not copied."""
    padded = [tensor if tensor.shape == shape else _pad(tensor, shape) for tensor in tensors]
    return torch.stack(padded) if len(padded) > 1 else padded[0].unsqueeze(0)


def _pad(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    # functional.pad takes pairs of (before, after) and begins with the last dimension.
    missing = [size - own for size, own in zip(reversed(shape), reversed(tensor.shape), strict=True)]
    return functional.pad(tensor, [count for after in missing for count in (0, after)])


class _Cache:
    """Stacked weights, and what tells whether the parameters are still those that were stacked."""

    def __init__(self, weights: Weights, optimizer_steps: int, sources: list[tuple[dict, str, nn.Parameter]]) -> None:
        self.weights, self.optimizer_steps = weights, optimizer_steps
        self.sources = [(table, key, p, p._version, p.data_ptr()) for table, key, p in sources]

    @classmethod
    def of(cls, adapters: Sequence[PlainAdapter], weights: Weights, optimizer_steps: int) -> "_Cache | None":
        """Return a cache, or None where a change could go unnoticed: the weights are not plain parameters."""
        modules = [module for adapter in adapters for module in (adapter.down_proj, adapter.up_proj, adapter)]
        sources = [(m._parameters, key, p) for m in modules for key, p in m._parameters.items() if p is not None]
        plain = all(type(parameter) is nn.Parameter and not parameter.is_inference() for _, _, parameter in sources)
        # A parametrised weight is not among the parameters of its module, and under a fake mode nothing is real.
        whole = all("weight" in m._parameters for a in adapters for m in (a.down_proj, a.up_proj))
        if not plain or not whole or type(weights.down_weight) is not Tensor:
            return None
        return cls(weights, optimizer_steps, sources)

    def is_current(self, optimizer_steps: int, device_type: str, *, frozen: bool) -> bool:
        """Tell whether stacking anew would give the same, and if `frozen`, whether no parameter requires gradients."""
        if optimizer_steps != self.optimizer_steps:
            return False
        for table, key, parameter, version, address in self.sources:
            if table.get(key) is not parameter or parameter._version != version or parameter.data_ptr() != address:
                return False
            if frozen and parameter.requires_grad:
                return False
        return compute_dtype(self.sources[0][2].dtype, device_type) == self.weights.down_weight.dtype
