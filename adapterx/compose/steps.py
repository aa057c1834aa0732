"""The steps that a module runs for a composition: callables on the hidden states of one call."""

from dataclasses import dataclass

import torch
from torch import Tensor

from adapterx import ops
from adapterx.compose.batch import Shared
from adapterx.compose.group import AdapterGroup
from adapterx.compose.regions import Extent, Region
from adapterx.compose.running import Step, run_steps
from adapterx.compose.weights import StackedWeights
from adapterx.targets.ports import Call, Port


@dataclass(frozen=True)
class Apply:
    """Run one adapter. Looked up by name in each call, so that a module that was replaced in its place is found."""

    name: str
    port: Port

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return the hidden states as the adapter changes them."""
        source, base = self.port.read(call, hidden_states, self.name)
        return call.adapters[self.name](source, base)


@dataclass(frozen=True, eq=False)
class Guarded:
    """Run one adapter and let its backward pass complain where the end of a `with` block would lose gradients."""

    step: Apply
    shared: Shared

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return the hidden states as the adapter changes them."""
        result = self.step(call, hidden_states)
        self.shared.refuse_late_backward(result, call.adapters[self.step.name])
        return result


@dataclass(frozen=True, eq=False)
class ApplyGroup:
    """Run several adapters in one call of the operator, each for the tokens that picked it."""

    name: str  # of the first adapter, whose captured input serves all
    port: Port
    group: AdapterGroup

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return the hidden states as the adapters change them; tokens without one of these stay as they are."""
        source, base = self.port.read(call, hidden_states, self.name)
        result = self.group(source, base)
        return result if base is hidden_states else self.group.keep_others(result, hidden_states)


@dataclass(frozen=True, eq=False)
class ApplySum:
    """Run several adapters as one, whose bottleneck is theirs beside each other: one call of the operator.

    Attributes:
        name: of the first adapter, whose captured input serves all.
        port: theirs.
        weights: their weights, each with its factor.
        present: the sum of the factors of the adapters.
        absent: the sum of the factors of parts that leave the hidden states as they are.
        steps: the same, an adapter at a time: where branches are dropped in training, each drops for itself.
    """

    name: str
    port: Port
    weights: StackedWeights
    present: float
    absent: float
    steps: tuple[Step, ...]

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return the sum of what the adapters give, each times its factor."""
        if any(adapter.dropout and adapter.training for adapter in self.weights.adapters):
            return run_steps(self.steps, call, hidden_states)
        source, base = self.port.read(call, hidden_states, self.name)
        if base is hidden_states:
            residual = _times(hidden_states, self.present + self.absent)
        else:
            residual = _times(base, self.present)
            residual = residual + self.absent * hidden_states if self.absent else residual
        down_weight, down_bias, up_weight, up_bias, scaling = self.weights.get(source.device.type)
        weights = [tensor if tensor is None else tensor[0] for tensor in (down_weight, down_bias, up_weight, up_bias)]
        activation, dtype = self.weights.adapters[0].activation, down_weight.dtype
        if torch.promote_types(residual.dtype, dtype) != dtype:
            # A residual that the adapters' dtype cannot hold (float32 under autocast to bfloat16) must not be rounded.
            branch = ops.bottleneck_adapter(source.to(dtype), None, *weights, activation, scaling)
            return (residual + branch).to(hidden_states.dtype)
        cast = source.to(dtype)
        added_to = cast if residual is source else residual.to(dtype)
        return ops.bottleneck_adapter(cast, added_to, *weights, activation, scaling).to(hidden_states.dtype)


def _times(tensor: Tensor, factor: float) -> Tensor:
    # Left as it is, so that adapters which change nothing change nothing together, bit for bit.
    return tensor if abs(factor - 1.0) < 1e-12 else tensor * factor


@dataclass(frozen=True)
class Mean:
    """Run several lists of steps on the same hidden states and take the weighted mean of what they give."""

    branches: tuple[tuple[Step, ...], ...]
    factors: tuple[float, ...]

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return the mean."""
        # As a sum of differences, so that adapters which change nothing change nothing together, bit for bit.
        result = _times(hidden_states, sum(self.factors))
        for steps, factor in zip(self.branches, self.factors, strict=True):
            if steps:
                result = result + factor * (run_steps(steps, call, hidden_states) - hidden_states)
        return result


@dataclass(frozen=True, eq=False)
class Cut:
    """Run steps that no grouped call serves on one region of the batch."""

    region: Region
    steps: tuple[Step, ...]
    extent: Extent
    shared: Shared
    where: str

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return the hidden states as the steps change them in the region; elsewhere they stay as they are."""
        spread = self._spread(hidden_states)
        first = getattr(self.steps[0], "step", self.steps[0])
        if len(self.steps) == 1 and isinstance(first, Apply):
            # What it reads is that of the whole batch, so that trained copies of a norm see their own sequences.
            source, base = first.port.read(call, hidden_states, first.name)
            own = self._cut(source)
            piece = call.adapters[first.name](own, own if base is source else self._cut(base))
            self.shared.refuse_late_backward(piece, call.adapters[first.name])
        else:
            piece = run_steps(self.steps, call.changed(self._cut), self._cut(hidden_states))
        result = self.region.put(spread, piece.reshape(self.region.cut(spread).shape))
        return result if spread.dim() == hidden_states.dim() else result.flatten(0, 1)

    def _spread(self, tensor: Tensor) -> Tensor:
        return self.shared.spread(tensor, self.extent, self.where)

    def _cut(self, tensor: Tensor) -> Tensor:
        spread = self._spread(tensor)
        piece = self.region.cut(spread)
        # A share of a batch holds several sequences, which an adapter must be able to tell apart.
        return piece.flatten(0, 1) if self.shared.in_shares and spread.dim() > tensor.dim() else piece


@dataclass(frozen=True, eq=False)
class Sized:
    """Run steps that serve the whole batch, after a look at whether it has the size that was promised."""

    steps: tuple[Step, ...]
    extent: Extent
    shared: Shared
    where: str

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return what the steps give."""
        self.shared.spread(hidden_states, self.extent, self.where)
        return run_steps(self.steps, call, hidden_states)
