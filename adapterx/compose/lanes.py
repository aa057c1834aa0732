"""A composition as lanes: which rows of a batch and which tokens pass through what, one thing after the other.

`Stack`, `BatchSplit`, `Split` and `Parallel`, however nested, only say who passes where. Their lanes are disjoint
regions of the batch, each with a row of items: names of adapters, or compositions of other kinds, which join results.
"""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from types import UnionType
from typing import NamedTuple

from adapterx.compose.expression import BatchSplit, Composition, Parallel, Split, Stack
from adapterx.compose.regions import Extent, Region
from adapterx.errors import ConfigError, speaker

Item = str | Composition
_DIVIDING = BatchSplit | Split | Parallel


class Lane(NamedTuple):
    """A region, and what its hidden states pass in this order."""

    region: Region
    items: tuple[Item, ...]


class Lanes(NamedTuple):
    """All lanes of a composition, which do not overlap and leave nothing out, and what they need of the batch."""

    lanes: tuple[Lane, ...]
    extent: Extent

    def on(self, known: Collection[str], names_of: Callable[[Item], tuple[str, ...]]) -> "Lanes":
        """Return the lanes with those items only of which an adapter is known; lanes of the same items are one.

        Args:
            known: names of adapters.
            names_of: the names in an item.
        """
        kept = [
            Lane(region, tuple(item for item in items if any(name in known for name in names_of(item))))
            for region, items in self.lanes
        ]
        return Lanes(_merged(kept), self.extent)


def _merged(lanes: Sequence[Lane]) -> tuple[Lane, ...]:
    """Return the lanes, those of the same items and tokens as one."""
    merged: dict[tuple, list[int] | None] = {}
    for region, items in lanes:
        key = items, region.tokens
        if region.rows is None:
            merged[key] = None
        else:
            merged.setdefault(key, []).extend(region.rows)
    return tuple(
        Lane(Region(None if rows is None else tuple(rows), tokens), items) for (items, tokens), rows in merged.items()
    )


@lru_cache(maxsize=64)  # every module of a model asks
def lanes_of(part: Item | None) -> Lanes:
    """Return the lanes of a composition, one for the same items in several regions of the same tokens.

    Raises:
        ConfigError: parts of it need other numbers of sequences or of tokens than what is around them has.
    """
    rows, tokens = _needed(part, BatchSplit | Parallel), _needed(part, Split)
    return Lanes(_merged(_lanes(part, Region(), rows, tokens)), Extent(rows, tokens))


def _needed(part: Item | None, kind: UnionType | type[Split]) -> int | None:
    """Return how many sequences (or copies) or tokens the outermost splits of this kind divide; None without these."""
    if isinstance(part, kind):
        return sum(_sizes(part))
    if not isinstance(part, Stack | _DIVIDING):
        return None
    needed = {count for inner in part.parts if (count := _needed(inner, kind)) is not None}
    if len(needed) > 1:
        what = "Split" if kind is Split else "BatchSplit or Parallel"
        raise ConfigError(
            f"{speaker()}: every {what} for the same hidden states must divide equally many, "
            f"got {' and '.join(map(str, sorted(needed)))} in {part!r}"
        )
    return needed.pop() if needed else None


def _sizes(part: BatchSplit | Split | Parallel) -> tuple[int, ...]:
    if isinstance(part, Parallel):
        return (1,) * len(part.parts)
    return part.batch_sizes if isinstance(part, BatchSplit) else part.splits


def _lanes(part: Item | None, region: Region, rows: int | None, tokens: int | None) -> list[Lane]:
    """Return the lanes of a part in a region of `rows` sequences of `tokens` tokens."""
    if isinstance(part, Stack):
        lanes = [Lane(region, ())]
        for inner in part.parts:
            lanes = _joined(lanes, _lanes(inner, region, rows, tokens))
        return lanes
    if not isinstance(part, _DIVIDING):
        return [Lane(region, () if part is None else (part,))]
    sizes, is_batch = _sizes(part), not isinstance(part, Split)
    if sum(sizes) != (rows if is_batch else tokens):
        what, whole = ("batch_sizes", f"{rows} sequences") if is_batch else ("splits", f"{tokens} tokens")
        raise ConfigError(f"{speaker()}: {what} must make up the {whole} that {part!r} divides, got {sum(sizes)}")
    own = region.rows or tuple(range(sum(sizes)))
    first = region.tokens[0] if region.tokens else 0
    found = []
    for inner, (start, end) in zip(part.parts, pairwise(accumulate(sizes, initial=0)), strict=True):
        if is_batch:
            found += _lanes(inner, region._replace(rows=own[start:end]), end - start, tokens)
        else:
            stretch = first + start, first + end
            found += _lanes(inner, region._replace(tokens=stretch), rows, end - start)
    return found


def _joined(before: list[Lane], after: list[Lane]) -> list[Lane]:
    """Return the lanes of two parts of a stack: each region of one is divided by the regions of the other."""
    if len(before) == 1:
        return [Lane(region, (*before[0].items, *items)) for region, items in after]
    if len(after) == 1:
        return [Lane(region, (*items, *after[0].items)) for region, items in before]
    return [
        Lane(region, (*first.items, *second.items))
        for first in before
        for second in after
        if (region := _common(first.region, second.region)) is not None
    ]


def _common(one: Region, other: Region) -> Region | None:
    """Return what two regions share; None: nothing."""
    rows, tokens = one.rows, one.tokens
    theirs = set(other.rows or ())
    if rows is None or other.rows is None:
        rows = rows or other.rows
    elif not (rows := tuple(row for row in rows if row in theirs)):
        return None
    if tokens is None or other.tokens is None:
        tokens = tokens or other.tokens
    elif (tokens := (max(tokens[0], other.tokens[0]), min(tokens[1], other.tokens[1])))[0] >= tokens[1]:
        return None
    return Region(rows, tokens)
