"""Serve one batch by several adapters of one module in one call of the operator."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from adapterx import ops
from adapterx.compose.batch import Choice, Shared
from adapterx.compose.weights import Blend, StackedWeights, Weights


class AdapterGroup:
    """Adapters of one module, or sums of such, that one call of the operator serves: each token picks one or none.

    They share placement, activation, sizes, dtype and device; bottlenecks, biases, scaling and dropout may differ.

    Args:
        blends: what can be picked, by number.
        choice: which token picks which.
        shared: what the modules share that run the composition.
        where: qualified name of the base module, for messages.
        apart: whether exports compute the rows one after the other: a node of theirs has one adapter.
    """

    def __init__(
        self, blends: Sequence[Blend], choice: Choice, shared: Shared, where: str, *, apart: bool = False
    ) -> None:
        self.apart = apart
        self.weights, self.choice, self.shared, self.where = StackedWeights(blends, shared), choice, shared, where
        self.table = choice.indices(blends[0][0][0].down_proj.weight.device)

    def __call__(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """Return what `BottleneckAdapter.forward` would return for each token with the adapter that it picks.

        Args:
            hidden_states: `(batch, ..., input_size)`, or `(batch * tokens, input_size)`; any floating dtype.
            residual: likewise; in sequential placement the same tensor object as `hidden_states`.

        Returns:
            Shape and dtype of `residual`; tokens that pick none of these adapters are unchanged.

        Raises:
            ValueError: the shape does not fit the batch that was promised.
        """
        source = self._spread(hidden_states)
        base = source if residual is hidden_states else self._spread(residual)
        result = self._apply(source, base).to(residual.dtype)
        return result if base.dim() == residual.dim() else result.flatten(0, 1)

    def branches(self, hidden_states: Tensor) -> Tensor:
        """Return the branches alone, without dropout, in the dtype of the adapters; zeros where none is picked.

        Args:
            hidden_states: `(batch, ..., input_size)`.
        """
        weights = self.weights.get(hidden_states.device.type)
        source = hidden_states.to(weights.down_weight.dtype)
        return self._run(source, None, weights, self._indices(source))

    def keep_others(self, result: Tensor, hidden_states: Tensor) -> Tensor:
        """Return `result` for the tokens that picked one of these adapters, and `hidden_states` for the others."""
        spread = self._spread(result)
        picked = self._indices(spread) >= 0
        picked = picked.view(*picked.shape, *[1] * (spread.dim() - picked.dim()))
        return torch.where(picked, spread, self._spread(hidden_states)).view_as(result)

    def _indices(self, tokens: Tensor) -> Tensor:
        """Return the number that each sequence or token of `(batch, ..., size)` picks."""
        table = self.table
        if table.device != tokens.device:  # the model has moved meanwhile
            table = self.table = self.choice.indices(tokens.device)
        rows, stretch = self.choice.extent
        return table.expand(tokens.shape[0], -1).contiguous() if rows is None and stretch is not None else table

    def _spread(self, tensor: Tensor) -> Tensor:
        return self.shared.spread(tensor, self.choice.extent, self.where)

    def _apply(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        weights = self.weights.get(hidden_states.device.type)
        dtype = weights.down_weight.dtype
        source = hidden_states.to(dtype)
        indices = self._indices(source)
        rates = [blend[0][0].dropout if blend[0][0].training else 0.0 for blend in self.weights.blends]
        # A residual that the adapters' dtype cannot hold (float32 under autocast to bfloat16) must not be rounded.
        if not any(rates) and torch.promote_types(residual.dtype, dtype) == dtype:
            base = source if residual is hidden_states else residual.to(dtype)
            return self._run(source, base, weights, indices)
        return residual + _drop(self._run(source, None, weights, indices), rates, indices)

    def _run(self, source: Tensor, residual: Tensor | None, weights: Weights, indices: Tensor) -> Tensor:
        *tensors, scaling = weights
        activation = self.weights.adapters[0].activation
        if self.apart and torch.compiler.is_exporting():
            return self._one_by_one(source, residual, tensors, activation, scaling)
        sorted_indices = self.choice.sorted_indices(indices, source)
        return ops.bottleneck_adapter(source, residual, *tensors, activation, scaling, adapter_indices=sorted_indices)

    def _one_by_one(
        self, source: Tensor, residual: Tensor | None, tensors: list[Tensor | None], activation: str, scaling: float
    ) -> Tensor:
        """Compute the rows one after the other."""
        numbers = {row: number for region, number in self.choice.entries for row in region.rows or ()}
        rows = []
        for row in range(self.choice.extent.rows):
            added_to = None if residual is None else residual[row]
            if row in numbers:
                own = [tensor if tensor is None else tensor[numbers[row]] for tensor in tensors]
                rows.append(ops.bottleneck_adapter(source[row], added_to, *own, activation, scaling))
            else:
                shape = (*source.shape[1:-1], tensors[2].shape[-2])
                rows.append(source.new_zeros(shape) if added_to is None else added_to)
        return torch.stack(rows)


def _drop(branch: Tensor, rates: list[float], indices: Tensor) -> Tensor:
    """Drop elements of each token with the probability of its adapter, and scale up the others."""
    if len(set(rates)) == 1:
        return functional.dropout(branch, rates[0])
    keep = torch.ones_like(indices, dtype=torch.float32)
    for index, rate in enumerate(rates):
        keep = keep.masked_fill(indices == index, 1.0 - rate)
    keep = keep.view(*keep.shape, *[1] * (branch.dim() - keep.dim())).expand(branch.shape)
    return branch * (torch.bernoulli(keep) / keep).to(branch.dtype)
