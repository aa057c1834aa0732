"""AdapterFusion as a step: the fused adapters of a module run in one call of the operator, side by side."""

from dataclasses import dataclass

import torch
from torch import Tensor

from adapterx.compose.batch import Shared
from adapterx.compose.group import AdapterGroup
from adapterx.compose.running import Step, run_steps
from adapterx.errors import TargetError
from adapterx.fusion import FUSIONS, AdapterFusion
from adapterx.targets.ports import Call, NormedSum, Port


@dataclass(frozen=True, eq=False)
class Attend:
    """Attend over what several adapters would add to the same hidden states.

    Attributes:
        name: of the last adapter, whose captured input serves all.
        port: theirs.
        key: name of the fusion.
        first: steps of the adapters before the last one of each part, on the parts' hidden states side by side.
        groups: the last adapters that one call of the operator serves, each for its part.
        others: the number of each part whose last adapter runs alone, and that adapter's name.
        count: how many parts there are.
        where: qualified name of the module, for messages.
        shared: what the modules share that run the composition.
    """

    name: str
    port: Port
    key: str
    first: tuple[Step, ...]
    groups: tuple[AdapterGroup, ...]
    others: tuple[tuple[int, str], ...]
    count: int
    where: str
    shared: Shared

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return what the adapters add to, and what they would add, attended."""
        source, base = self.port.read(call, hidden_states, self.name)
        read, added_to = self._widen(source), self._widen(base)
        if self.first:
            widened = call.changed(self._widen)
            read, added_to = self.port.read(
                widened, run_steps(self.first, widened, self._widen(hidden_states)), self.name
            )
        fusion = self._fusion(call)
        query = source
        if fusion.config.query_before_ln and isinstance(self.port, NormedSum):
            query = hidden_states - call.captured(self.name)
        return fusion(query, self._branches(call, read, added_to), base)

    def _widen(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(0).expand(self.count, *tensor.shape)

    def _branches(self, call: Call, read: Tensor, added_to: Tensor) -> Tensor:
        """Return what the last adapter of each part would add, `(parts, ..., hidden_size)`."""
        found = [group.branches(read) for group in self.groups]
        branches = found[0] if found else read.new_zeros(added_to.shape)
        for other in found[1:]:  # each is zero for the parts of the others
            branches = branches + other
        if not self.others:
            return branches
        parts = list(branches.unbind(0))
        for number, name in self.others:
            adapter = call.adapters[name]
            parts[number] = adapter(read[number], added_to[number]) - added_to[number]
            self.shared.refuse_late_backward(parts[number], adapter)
        return torch.stack(parts)

    def _fusion(self, call: Call) -> AdapterFusion:
        try:
            return call.module._modules[FUSIONS]._modules[self.key]
        except KeyError:
            raise TargetError(
                f"set_active: {self.where} must have the fusion {self.key!r}, it has been taken off; add it again with "
                "add_fusion, or activate another composition"
            ) from None
