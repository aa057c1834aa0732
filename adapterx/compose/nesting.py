"""Which compositions can be run: what may stand in what, and which adapters fit together."""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

from adapterx.compose.expression import Average, BatchSplit, Composition, Fuse, Parallel, Split, Stack
from adapterx.compose.lanes import lanes_of
from adapterx.compose.naming import adapter_names_in, all_names, divides, fusions_in
from adapterx.errors import ConfigError, speaker
from adapterx.targets.ports import NormedOutput, NormedSum, Port

_BEHIND = (NormedSum.reads, NormedOutput.reads)  # what adapters read that hang on the norm behind a sublayer
# What may stand in what: the nestings of AdapterHub's library, and those that cost nothing more here.
_INSIDE: dict[type, tuple[type, ...]] = {
    Stack: (Stack, Average, Fuse, Split, BatchSplit, Parallel),
    Average: (Stack, Average, Split, BatchSplit),
    Split: (Stack, Average, Split, BatchSplit),
    BatchSplit: (Stack, Average, Split, BatchSplit, Fuse),
    Fuse: (Stack,),
    Parallel: (Stack, Average, Fuse),
}


class Facts(NamedTuple):
    """What is known of the adapters in a composition.

    Attributes:
        sublayers: by adapter name: what its ports read, by sublayer.
        ports: by qualified name of the module: the ports of its adapters, by adapter name.
        fusions: by qualified name of the module: the names of its fusions.
        copied: the names of adapters that train copies of modules.
    """

    sublayers: Mapping[str, Mapping[tuple, str]]
    ports: Mapping[str, Mapping[str, Port]]
    fusions: Mapping[str, frozenset[str]]
    copied: frozenset[str]


def check_runnable(composition: Composition, facts: Facts) -> None:
    """Refuse what modules cannot run as it is said.

    Raises:
        ConfigError: a part may not stand where it stands, parts act on one sublayer at two places, which run in an
            order of their own, a batch or a sequence is divided in two ways, or a fusion is not there.
    """
    _check_kinds(composition)
    _check_copies(composition)
    for lane in lanes_of(composition).lanes:
        for item in lane.items:
            if isinstance(item, Average):
                for part in item.parts:
                    if isinstance(part, Composition):
                        check_runnable(part, facts)
    _check_order(composition, facts.sublayers)
    for fuse in fusions_in(composition):
        _check_fusion(fuse, facts)
    _check_split(composition, facts.copied)


def _check_kinds(composition: Composition) -> None:
    for part in composition.parts:
        if isinstance(part, Composition):
            _check_kinds(part)
            if not isinstance(part, _INSIDE[type(composition)]):
                allowed = ", ".join(kind.__name__ for kind in _INSIDE[type(composition)])
                raise ConfigError(
                    f"{speaker()}: parts of {type(composition).__name__} must be names of adapters or one of "
                    f"{allowed}, got {part!r}"
                )


def _check_copies(composition: Composition, *, outermost: bool = True) -> None:
    """Refuse `Parallel` where it is not the composition, or in a stack that is, or beside what divides a batch."""
    inner = [part for part in composition.parts if isinstance(part, Composition)]
    if outermost and isinstance(composition, Parallel):
        stray = [part for part in inner if divides(part)]
    elif outermost and isinstance(composition, Stack) and any(map(_holds_parallel, inner)):
        for part in inner:
            _check_copies(part)
        stray = [part for part in inner if divides(part) and not _holds_parallel(part)]
    else:
        stray = [part for part in inner if _holds_parallel(part)]
    if stray:
        raise ConfigError(
            f"{speaker()}: Parallel must be the composition, or a part of the Stack that is, without BatchSplit and "
            f"Split beside or in it, got {stray[0]!r} in {composition!r}"
        )


def _holds_parallel(composition: Composition) -> bool:
    inner = (part for part in composition.parts if isinstance(part, Composition))
    return isinstance(composition, Parallel) or any(map(_holds_parallel, inner))


def _check_order(part: str | Composition | None, sublayers: Mapping[str, Mapping[tuple, str]]) -> None:
    """Refuse adapters of one sublayer that cannot act in the order given: the norm runs behind the projection."""
    if part is None or isinstance(part, str):
        return
    for inner in part.parts:
        _check_order(inner, sublayers)
    if isinstance(part, (Split, BatchSplit, Parallel)):  # the parts never meet
        return
    for first, second in _pairs(part):
        for sublayer in sublayers[first].keys() & sublayers[second].keys():
            reads = sublayers[first][sublayer], sublayers[second][sublayer]
            # The norm runs behind the projection, so an adapter on the norm can only follow.
            if reads[0] != reads[1] and (not isinstance(part, Stack) or reads[0] in _BEHIND):
                raise ConfigError(
                    f"{speaker()}: parts of {type(part).__name__} must act on a sublayer in the order in which "
                    f"it runs, got {first!r}, which reads the {reads[0]}, before {second!r}, which reads the {reads[1]}"
                )


def _pairs(part: Composition) -> list[tuple[str, str]]:
    """Return the names in different parts that meet, the earlier one first."""
    groups = [(inner,) if isinstance(inner, str) else adapter_names_in(inner) for inner in part.parts if inner]
    return [(a, b) for first, second in combinations(groups, 2) for a in first for b in second]


def _check_fusion(fuse: Fuse, facts: Facts) -> None:
    names = set(all_names(fuse))
    for where, ports in facts.ports.items():
        fused = {name: port for name, port in ports.items() if name in names}
        if not fused:
            continue
        if fuse.key not in facts.fusions.get(where, ()):
            raise ConfigError(
                f"{speaker()}: fusion {fuse.key!r} must have been added to {where}, where {sorted(fused)} hang; call "
                f"add_fusion(model, {fuse!r})"
            )
        check_fused_ports(fused, where)


def check_fused_ports(ports: Mapping[str, Port], where: str) -> None:
    """Refuse adapters of one module that cannot be fused, for they read or add to different things."""
    if len(set(ports.values())) > 1:
        told = ", ".join(f"{name!r} {port}" for name, port in sorted(ports.items()))
        raise ConfigError(f"{speaker()}: adapters of Fuse must read and add to the same on {where}, got {told}")


def _check_split(composition: Composition, copied: frozenset[str]) -> None:
    if isinstance(composition, Split) and (names := sorted(copied & set(all_names(composition)))):
        raise ConfigError(
            f"{speaker()}: adapters in Split must not train copies of modules (modules_to_save), of which one alone "
            f"can answer for a sequence, got {', '.join(map(repr, names))}"
        )
    for part in composition.parts:
        if isinstance(part, Composition):
            _check_split(part, copied)
