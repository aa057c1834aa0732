"""The names in a composition: which there are, what is left when adapters go, and what becomes of it by new names."""

from collections.abc import Collection, Iterator
from dataclasses import fields
from typing import Any

from adapterx.compose.expression import (
    Average,
    BatchSplit,
    Composition,
    Fuse,
    Parallel,
    Split,
    Stack,
    rebuilt,
    values_of,
)


def all_names(composition: Composition) -> Iterator[str]:
    """Yield every name in a composition as often as it stands there."""
    for part in composition.parts:
        if isinstance(part, Composition):
            yield from all_names(part)
        elif part is not None:
            yield part


def adapter_names_in(composition: Composition) -> tuple[str, ...]:
    """Return the names in a composition, each once, in order of application."""
    return tuple(dict.fromkeys(all_names(composition)))


def fusions_in(composition: Composition) -> tuple[Fuse, ...]:
    """Return the fusions in a composition, each once, in order of application."""
    if isinstance(composition, Fuse):
        return (composition,)
    inner = [part for part in composition.parts if isinstance(part, Composition)]
    return tuple(dict.fromkeys(fuse for part in inner for fuse in fusions_in(part)))


def trained_names(composition: Composition, *, train_fused: bool) -> frozenset[str]:
    """Return the names of the adapters that train with a composition: fused ones do not, unless they shall."""
    fused = set() if train_fused else {name for fuse in fusions_in(composition) for name in adapter_names_in(fuse)}
    return frozenset(adapter_names_in(composition)) - fused


def divides(composition: Composition) -> bool:
    """Tell whether a composition divides batches or sequences, and so serves those of one size alone, or copies."""
    inner = (part for part in composition.parts if isinstance(part, Composition))
    return isinstance(composition, (BatchSplit, Split, Parallel)) or any(map(divides, inner))


def copies_in(composition: Composition) -> int:
    """Return how many copies of a batch a composition wants, 0 where it holds no `Parallel`."""
    if isinstance(composition, Parallel):
        return len(composition.parts)
    return max((copies_in(part) for part in composition.parts if isinstance(part, Composition)), default=0)


def keep_names(composition: Composition, known: Collection[str]) -> Composition:
    """Return the composition without the adapters that are not among `known`, and without what they leave empty.

    A stretch of a batch or of the tokens, and a copy, stays, without an adapter. A fusion goes as a whole: what it has
    learnt is about all of its adapters.
    """
    if all(name in known for name in all_names(composition)):
        return composition
    if isinstance(composition, Fuse):
        return Stack()
    kept = [(index, part) for index, part in enumerate(_kept_parts(composition, known)) if part is not False]
    if not any(part is not None for _, part in kept):
        return Stack()
    changes: dict[str, Any] = {"parts": tuple(part for _, part in kept)}
    for field in fields(composition):  # one entry a part: weights, splits, batch_sizes
        value = getattr(composition, field.name)
        if field.name != "parts" and isinstance(value, tuple):
            changes[field.name] = tuple(value[index] for index, _ in kept)
    values = {**values_of(composition), **changes}
    if isinstance(composition, Average) and composition.normalize and not sum(values["weights"]):
        return Stack()  # what is left has no mean
    return rebuilt(type(composition), values)


def _kept_parts(composition: Composition, known: Collection[str]) -> Iterator[Any]:
    """Yield each part as it stays: None for a stretch without an adapter, False for a part that goes."""
    gone = None if isinstance(composition, (BatchSplit, Split, Parallel)) else False
    for part in composition.parts:
        if isinstance(part, Composition):
            part = keep_names(part, known)
            yield part if part.parts else gone
        else:
            yield part if part is None or part in known else gone


def renamed(composition: Composition, old: str, new: str) -> Composition:
    """Return the composition with another name for an adapter."""
    parts = tuple(
        renamed(part, old, new) if isinstance(part, Composition) else new if part == old else part
        for part in composition.parts
    )
    return rebuilt(type(composition), {**values_of(composition), "parts": parts})
