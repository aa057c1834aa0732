"""From a composition and the adapters of one module to the steps that the module runs, in order."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from adapterx.bottleneck import BottleneckAdapter
from adapterx.compose.attend import Attend
from adapterx.compose.batch import Shared
from adapterx.compose.expression import Average, BatchSplit, Composition, Fuse, Parallel, Split, Stack
from adapterx.compose.group import AdapterGroup
from adapterx.compose.lanes import Item, Lane, lanes_of
from adapterx.compose.naming import adapter_names_in
from adapterx.compose.regions import Extent, Region
from adapterx.compose.running import Step
from adapterx.compose.steps import Apply, ApplyGroup, ApplySum, Cut, Guarded, Mean, Sized
from adapterx.compose.weights import Blend, StackedWeights
from adapterx.targets.ports import Port


class Member(NamedTuple):
    """One adapter of a module, and its port there."""

    adapter: BottleneckAdapter
    port: Port


class Module(NamedTuple):
    """The module that runs a composition.

    Attributes:
        members: those of its adapters that the composition names.
        where: its qualified name, for messages.
        shared: what the modules share that run the composition.
    """

    members: Mapping[str, Member]
    where: str
    shared: Shared


class Block(NamedTuple):
    """What one call of the operator can serve as one adapter: a blend, with the names of its adapters.

    `key` tells apart what cannot be served together.
    """

    key: tuple
    names: tuple[str, ...]
    blend: Blend


def build_steps(composition: Composition, module: Module) -> tuple[Step, ...]:
    """Return what one module runs; parts without an adapter on this module change nothing here."""
    if isinstance(composition, Stack):
        return tuple(step for part in composition.parts for step in _steps_of(part, module))
    return _steps_of(composition, module)


def readers(steps: tuple[Step, ...]) -> Iterator[str]:
    """Yield the names under which the steps take captured inputs."""
    for step in steps:
        if isinstance(step, Mean):
            for branch in step.branches:
                yield from readers(branch)
        elif isinstance(step, (Cut, Sized)):
            yield from readers(step.steps)
        elif isinstance(step, Guarded):
            yield step.step.name
        else:
            yield step.name
            yield from readers(getattr(step, "steps", ()) + getattr(step, "first", ()))


def _steps_of(part: Item | None, module: Module) -> tuple[Step, ...]:
    if part is None or not _present(part, module):
        return ()
    if isinstance(part, str):
        return (_apply(part, module),)
    if isinstance(part, Stack):
        return build_steps(part, module)
    if isinstance(part, Average):
        return _average(part, module)
    if isinstance(part, Fuse):
        return (_attend(part, module),)
    return _divided(part, module)


def _present(part: Item, module: Module) -> bool:
    return any(name in module.members for name in _names(part))


def _names(part: Item) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else adapter_names_in(part)


def _apply(name: str, module: Module) -> Step:
    step = Apply(name, module.members[name].port)
    return Guarded(step, module.shared) if module.shared.in_block else step


def _average(part: Average, module: Module) -> tuple[Step, ...]:
    branches = tuple(_steps_of(inner, module) for inner in part.parts)
    factors = part.factors()
    if len(branches) == 1 and factors == (1.0,):
        return branches[0]
    steps = (Mean(branches, factors),)
    block = _block(part, module)
    if block is None:
        return steps
    absent = sum(factor for branch, factor in zip(branches, factors, strict=True) if not branch)
    name, weights = block.names[0], StackedWeights([block.blend], module.shared)
    return (ApplySum(name, module.members[name].port, weights, sum(factors) - absent, absent, steps),)


def _block(item: Item, module: Module) -> Block | None:
    """Return an item as what one call of the operator can serve; None: it takes steps of its own.

    An average of plain adapters that act alike is one adapter, whose bottleneck is theirs beside each other.
    """
    if isinstance(item, str):
        named = [(item, 1.0)]
    elif isinstance(item, Average) and all(isinstance(part, str) for part in item.parts):
        named = [pair for pair in zip(item.parts, item.factors(), strict=True) if pair[0] in module.members]
    else:
        return None
    keys = {_key(module.members[name]) for name, _ in named}
    if len(keys) != 1 or None in keys:
        return None
    blend = tuple((module.members[name].adapter, factor) for name, factor in named)
    return Block(keys.pop(), tuple(name for name, _ in named), blend)


def _key(member: Member) -> tuple | None:
    """Return what adapters share that one call of the operator can serve; None: it cannot serve this one."""
    adapter, port = member
    if not adapter.is_plain:
        return None
    weight = adapter.down_proj.weight
    return port, adapter.activation, weight.dtype, weight.device


def _divided(part: BatchSplit | Split | Parallel, module: Module) -> tuple[Step, ...]:
    """Return the rounds of grouped calls that serve the regions of a batch: the k-th item of each in the k-th round."""
    lanes, extent = lanes_of(part).on(module.members, _names)
    if len(lanes) == 1:  # all sequences and tokens pass through the same
        inner = build_steps(Stack(*lanes[0].items), module)
        return (Sized(inner, extent, module.shared, module.where),) if inner else ()
    rounds = max(len(lane.items) for lane in lanes)
    return tuple(step for number in range(rounds) for step in _round(lanes, number, extent, module))


def _round(
    lanes: tuple[Lane, ...], number: int, extent: Extent, module: Module, *, apart: bool = False
) -> Iterator[Step]:
    groups: dict[tuple, list[tuple[Region, Block]]] = defaultdict(list)
    for region, items in lanes:
        if number >= len(items):
            continue
        block = _groupable(items[number], module)
        if block is None:
            steps = _steps_of(items[number], module)
            yield Cut(region, steps, extent, module.shared, module.where)
        else:
            groups[block.key].append((region, block))
    for (port, *_), found in sorted(groups.items(), key=lambda item: min(block.names for _, block in item[1])):
        yield ApplyGroup(min(block.names for _, block in found)[0], port, _group(found, extent, module, apart=apart))


def _groupable(item: Item, module: Module) -> Block | None:
    """Return a block that can be one of several: all of its parts are here, drop nothing, and make up the whole."""
    block = _block(item, module)
    if block is None or isinstance(item, str):
        return block
    whole = len(block.blend) == len(item.parts) and abs(sum(item.factors()) - 1.0) < 1e-12
    return block if whole and not any(adapter.dropout for adapter, _ in block.blend) else None


def _group(found: list[tuple[Region, Block]], extent: Extent, module: Module, *, apart: bool) -> AdapterGroup:
    """Return the group of some blocks, each of which serves all regions that name it.

    Their order is that of their names, so that what was compiled serves another order of the same adapters.
    """
    numbers: dict[Blend, int] = {}
    for _, block in sorted(found, key=lambda entry: entry[1].names):
        numbers.setdefault(block.blend, len(numbers))
    entries = tuple((region, numbers[block.blend]) for region, block in found)
    choice = module.shared.choice(extent, entries, len(numbers))
    return AdapterGroup(list(numbers), choice, module.shared, module.where, apart=apart)


def _attend(part: Fuse, module: Module) -> Step:
    """Return the fusion of those adapters that the module has, of a stack in a fusion likewise."""
    chains = [[name for name in _names(inner) if name in module.members] for inner in part.parts]
    chains = [chain for chain in chains if chain]
    count, longest = len(chains), max(map(len, chains))
    extent = Extent(count)
    first: list[Step] = []
    for number in range(longest - 1):  # all end together, so that one call serves the last adapters
        depth = longest - 1 - number
        before = [(Region((i,)), chain[-1 - depth]) for i, chain in enumerate(chains) if len(chain) > depth]
        first += _round(tuple(Lane(region, (name,)) for region, name in before), 0, extent, module, apart=True)
    groups: dict[tuple, list[tuple[Region, Block]]] = defaultdict(list)
    others: list[tuple[int, str]] = []
    for number, chain in enumerate(chains):
        block = _block(chain[-1], module)
        if block is None:
            others.append((number, chain[-1]))
        else:
            groups[block.key].append((Region((number,)), block))
    last = chains[-1][-1]
    return Attend(
        last,
        module.members[last].port,
        part.key,
        tuple(first),
        tuple(_group(found, extent, module, apart=True) for found in groups.values()),
        tuple(others),
        count,
        module.where,
        module.shared,
    )
