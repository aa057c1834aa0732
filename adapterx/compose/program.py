"""From a composition and the adapters of one module to the steps that the module runs, in order."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from torch import Tensor

from adapterx.bottleneck import BottleneckAdapter
from adapterx.compose.batch import MixedBatch
from adapterx.compose.expression import Average, Composition, Pick, Stack, adapter_names_in
from adapterx.compose.group import AdapterGroup
from adapterx.compose.rows import AdapterRows
from adapterx.errors import ConfigError, speaker
from adapterx.targets.ports import Call, NormedOutput, NormedSum, Port

_BEHIND = (NormedSum.reads, NormedOutput.reads)  # what adapters read that hang on the norm behind a sublayer
# Takes the hidden states that the step before gave; asks its port, with the call, what to read and what to add to.
Step = Callable[[Call, Tensor], Tensor]


class Member(NamedTuple):
    """One adapter of a module, and its port there."""

    adapter: BottleneckAdapter
    port: Port


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
class ApplyGroup:
    """Run several adapters in one call of the operator, each for the sequences that picked it."""

    name: str  # of the first adapter, whose captured input serves all
    port: Port
    group: AdapterGroup

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return the hidden states as the adapters change them; sequences without one of these stay as they are."""
        source, base = self.port.read(call, hidden_states, self.name)
        result = self.group(source, base)
        return result if base is hidden_states else self.group.keep_others(result, hidden_states)


@dataclass(frozen=True, eq=False)
class ApplyRows:
    """Run one adapter that the operator alone does not compute, for the sequences that picked it."""

    name: str
    port: Port
    rows: AdapterRows

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return the hidden states as the adapter changes them; the other sequences stay as they are."""
        source, base = self.port.read(call, hidden_states, self.name)
        return self.rows(call.adapters[self.name], source, base, hidden_states)


@dataclass(frozen=True)
class Mean:
    """Run several lists of steps on the same hidden states and take the weighted mean of what they give."""

    branches: tuple[tuple[Step, ...], ...]
    factors: tuple[float, ...]

    def __call__(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return the mean."""
        total = sum(self.factors)
        # As a sum of differences, so that adapters which change nothing change nothing together, bit for bit.
        result = hidden_states if abs(total - 1.0) < 1e-12 else hidden_states * total
        for steps, factor in zip(self.branches, self.factors, strict=True):
            if steps:
                result = result + factor * (run_steps(steps, call, hidden_states) - hidden_states)
        return result


def run_steps(steps: tuple[Step, ...], call: Call, hidden_states: Tensor) -> Tensor:
    """Run the steps one after the other."""
    for step in steps:
        hidden_states = step(call, hidden_states)
    return hidden_states


def check_runnable(composition: Composition, sublayers: Mapping[str, Mapping[tuple, str]]) -> None:
    """Refuse what modules cannot run as it is said.

    Args:
        composition: what shall run.
        sublayers: by adapter name: what its ports read, by sublayer.

    Raises:
        NotImplementedError: a part is of another kind than Stack and Average.
        ConfigError: parts act on one sublayer at two places, which run in an order of their own.
    """
    if not isinstance(composition, (Stack, Average)):
        hint = "; `mixed` picks an adapter for each sequence" if isinstance(composition, Pick) else ""
        raise NotImplementedError(
            f"{speaker()}: names must be made of adapter names, Stack and Average, got "
            f"{type(composition).__name__}, which cannot be run{hint}"
        )
    for part in composition.parts:
        if not isinstance(part, str):
            check_runnable(part, sublayers)
    names = adapter_names_in(composition)
    for first, second in combinations(names, 2):
        for sublayer in sublayers[first].keys() & sublayers[second].keys():
            reads = sublayers[first][sublayer], sublayers[second][sublayer]
            # The norm runs behind the projection, so an adapter on the norm can only follow.
            if reads[0] != reads[1] and (isinstance(composition, Average) or reads[0] in _BEHIND):
                raise ConfigError(
                    f"{speaker()}: parts of {type(composition).__name__} must act on a sublayer in the order in which "
                    f"it runs, got {first!r}, which reads the {reads[0]}, before {second!r}, which reads the {reads[1]}"
                )


def build_steps(
    composition: Composition, members: Mapping[str, Member], where: str, batch: MixedBatch | None
) -> tuple[Step, ...]:
    """Return what one module runs; parts without an adapter on this module change nothing here.

    Args:
        composition: what runs in the model.
        members: the module's adapters by name.
        where: qualified name of the module, for messages.
        batch: who picks whom, where the composition is a `Pick`.
    """
    if batch is not None:
        return _group_steps(members, where, batch)
    if isinstance(composition, Stack):
        return tuple(step for part in composition.parts for step in _steps_of(part, members, where))
    branches = tuple(_steps_of(part, members, where) for part in composition.parts)
    return (Mean(branches, composition.factors()),) if any(branches) else ()


def readers(steps: tuple[Step, ...]) -> Iterator[str]:
    """Yield the names under which the steps take captured inputs."""
    for step in steps:
        if isinstance(step, Mean):
            for branch in step.branches:
                yield from readers(branch)
        else:
            yield step.name


def _steps_of(part: str | Composition, members: Mapping[str, Member], where: str) -> tuple[Step, ...]:
    if isinstance(part, str):
        return (Apply(part, members[part].port),) if part in members else ()
    return build_steps(part, members, where, None)


def _group_steps(members: Mapping[str, Member], where: str, batch: MixedBatch) -> tuple[Step, ...]:
    """Group the adapters that the batch picks by what one call of the operator can serve; others run one by one."""
    groups: dict[tuple, dict[str, BottleneckAdapter]] = {}
    steps: list[Step] = []
    picked = set(batch.names)
    for name, (adapter, port) in members.items():
        if name in picked and adapter.is_plain:
            weight = adapter.down_proj.weight
            groups.setdefault((port, adapter.activation, weight.dtype, weight.device), {})[name] = adapter
        elif name in picked:
            steps.append(ApplyRows(name, port, AdapterRows(name, batch, where)))
    grouped = [
        ApplyGroup(next(iter(group)), port, AdapterGroup(group, batch, where)) for (port, *_), group in groups.items()
    ]
    return (*grouped, *steps)
