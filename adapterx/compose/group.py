"""Serve one batch by several adapters of one module in one call of the operator: each sequence has its own."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterx import ops
from adapterx.bottleneck import BottleneckAdapter, compute_dtype
from adapterx.compose.batch import MixedBatch, lasting, sequences_of


class Weights(NamedTuple):
    """The weights of several adapters, padded to the widest bottleneck and stacked."""

    down_weight: Tensor
    down_bias: Tensor | None
    up_weight: Tensor
    up_bias: Tensor | None
    scaling: float


class AdapterGroup:
    """Adapters of one module that one call of the operator serves.

    They share placement, activation, sizes, dtype and device; bottlenecks, biases, scaling and dropout may differ.

    Args:
        adapters: by name; each picked by at least one sequence of the batch.
        batch: which sequence picks which.
        where: qualified name of the base module, for messages.
    """

    def __init__(self, adapters: Mapping[str, BottleneckAdapter], batch: MixedBatch, where: str) -> None:
        self.names, self.adapters, self.batch, self.where = tuple(adapters), tuple(adapters.values()), batch, where
        self.indices = batch.indices(self.names, self.adapters[0].down_proj.weight.device)
        self.cache: _Cache | None = None

    def __call__(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """Return what `BottleneckAdapter.forward` would return for each sequence with its own adapter.

        Args:
            hidden_states: `(batch, ..., input_size)`, or `(batch * tokens, input_size)`; any floating dtype.
            residual: likewise; in sequential placement the same tensor object as `hidden_states`.

        Returns:
            Shape and dtype of `residual`; sequences that picked none of these adapters are unchanged.

        Raises:
            ValueError: the first dimension does not fit the number of sequences.
        """
        source = self._split(hidden_states)
        base = source if residual is hidden_states else self._split(residual)
        result = self._apply(source, base).to(residual.dtype)
        return result if base is residual else result.flatten(0, 1)

    def keep_others(self, result: Tensor, hidden_states: Tensor) -> Tensor:
        """Return `result` for the sequences that picked one of these adapters, and `hidden_states` for the others."""
        split = self._split(result)
        picked = (self.batch.indices(self.names, result.device) >= 0).view(-1, *[1] * (split.dim() - 1))
        return torch.where(picked, split, self._split(hidden_states)).view_as(result)

    def _split(self, tensor: Tensor) -> Tensor:
        return sequences_of(tensor, self.batch, self.where)

    def _apply(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        device = hidden_states.device
        *weights, scaling = self._weights(device.type)
        dtype = weights[0].dtype
        source = hidden_states.to(dtype)
        indices = self.indices
        if indices.device != device:  # the model has moved inside the block
            indices = self.indices = self.batch.indices(self.names, device)
        sorted_indices = self.batch.sorted_indices(self.names, indices, source)
        rates = [adapter.dropout if adapter.training else 0.0 for adapter in self.adapters]
        options = {"activation": self.adapters[0].activation, "scaling": scaling, "adapter_indices": sorted_indices}
        # A residual that the adapters' dtype cannot hold (float32 under autocast to bfloat16) must not be rounded.
        if not any(rates) and torch.promote_types(residual.dtype, dtype) == dtype:
            base = source if residual is hidden_states else residual.to(dtype)
            return ops.bottleneck_adapter(source, base, *weights, **options)
        branch = ops.bottleneck_adapter(source, None, *weights, **options)
        return residual + _drop(branch, rates, indices)

    def _weights(self, device_type: str) -> Weights:
        """Return the stacked weights: new ones while they are trained, otherwise those of an earlier forward pass."""
        if torch.compiler.is_compiling():
            return stack_weights(self.adapters, device_type)  # in the graph, which sees every change of a parameter
        trains, steps = torch.is_grad_enabled(), self.batch.optimizer_steps
        cache = self.cache  # another thread may take it away meanwhile
        if cache is not None and cache.is_current(steps, device_type, frozen=trains):
            return cache.weights
        if trains:
            weights = stack_weights(self.adapters, device_type)
            if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in weights):
                self.cache = None
                self.batch.refuse_late_backward(weights.up_weight, *self.adapters)
                return weights
        else:
            with lasting():
                weights = stack_weights(self.adapters, device_type)
        self.cache = _Cache.of(self.adapters, weights, steps)
        return weights


def stack_weights(adapters: Sequence[BottleneckAdapter], device_type: str) -> Weights:
    """Pad and stack the weights in the dtype to compute in; scalings that differ are multiplied into `up_proj`."""
    projections = [(adapter.down_proj, adapter.up_proj, adapter.scaling) for adapter in adapters]
    down_weights = [down_proj.weight for down_proj, _, _ in projections]
    down_biases = [down_proj.bias for down_proj, _, _ in projections]
    up_weights = [up_proj.weight for _, up_proj, _ in projections]
    up_biases = [up_proj.bias for _, up_proj, _ in projections]
    factors = [scaling for _, _, scaling in projections]
    scaling = factors[0]
    if isinstance(scaling, Tensor) or any(isinstance(f, Tensor) or f != scaling for f in factors):
        up_weights = [weight * _column(f) for weight, f in zip(up_weights, factors, strict=True)]
        up_biases = [None if bias is None else bias * f for bias, f in zip(up_biases, factors, strict=True)]
        scaling = 1.0
    width, input_size = max(weight.shape[0] for weight in down_weights), down_weights[0].shape[1]
    hidden_size = up_weights[0].shape[0]
    dtype = compute_dtype(down_weights[0].dtype, device_type)
    return Weights(
        _stack(down_weights, (width, input_size)).to(dtype),
        _stack_biases(down_biases, down_weights[0], width, dtype),
        _stack(up_weights, (hidden_size, width)).to(dtype),
        _stack_biases(up_biases, down_weights[0], hidden_size, dtype),
        scaling,
    )


def _column(factor: float | Tensor) -> float | Tensor:
    return factor.unsqueeze(-1) if isinstance(factor, Tensor) else factor


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


def _drop(branch: Tensor, rates: list[float], indices: Tensor) -> Tensor:
    """Drop elements of each sequence with the probability of its adapter, and scale up the others."""
    if len(set(rates)) == 1:
        return functional.dropout(branch, rates[0])
    keep = torch.ones_like(indices, dtype=torch.float32)
    for index, rate in enumerate(rates):
        keep = keep.masked_fill(indices == index, 1.0 - rate)
    keep = keep.view(-1, *[1] * (branch.dim() - 1)).expand(branch.shape)
    return branch * (torch.bernoulli(keep) / keep).to(branch.dtype)


class _Cache:
    """Stacked weights, and what tells whether the parameters are still those that were stacked."""

    def __init__(self, weights: Weights, optimizer_steps: int, sources: list[tuple[dict, str, nn.Parameter]]) -> None:
        self.weights, self.optimizer_steps = weights, optimizer_steps
        self.sources = [(table, key, p, p._version, p.data_ptr()) for table, key, p in sources]

    @classmethod
    def of(cls, adapters: Sequence[BottleneckAdapter], weights: Weights, optimizer_steps: int) -> "_Cache | None":
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
