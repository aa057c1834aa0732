"""Compositions as values: which adapters run and how their results are joined, without a link to any module.

A part of a composition is the name of an adapter or another composition. Values are immutable, compare by content,
print as they are written, and go to JSON and back.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from adapterx.errors import ConfigError


def _written(composition: "Composition") -> str:
    """Return the composition as a user writes it."""
    values = values_of(composition)
    parts = values.pop("parts")
    if isinstance(composition, Pick):
        return f"Pick({list(parts)!r})"
    options = [f"{name}={list(v) if isinstance(v, tuple) else v!r}" for name, v in values.items() if v is not True]
    if isinstance(composition, Average) and len(set(composition.weights)) == 1 and composition.normalize:
        options = []
    return f"{type(composition).__name__}({', '.join([*map(repr, parts), *options])})"


@dataclass(frozen=True, init=False, repr=False)
class Stack:
    """One part after the other behind each module; without parts the base model alone.

    Args:
        *parts: names of adapters or compositions, any number.

    Raises:
        ConfigError: a part is neither.

    Source:
        Pfeiffer et al. 2020 (MAD-X).
    """

    parts: tuple["str | Composition", ...]

    __repr__ = _written

    def __init__(self, *parts: "str | Composition") -> None:
        _set(self, parts=_checked_parts(self, parts, least=0))


@dataclass(frozen=True, init=False, repr=False)
class Average:
    """The weighted mean of what the parts give for the same hidden states.

    Args:
        *parts: two or more.
        weights: one finite number a part; None weighs all alike.
        normalize: divide the weights by their sum, so that parts that leave the hidden states alone do so together.

    Raises:
        ConfigError: a value breaks its rule.
    """

    parts: tuple["str | Composition", ...]
    weights: tuple[float, ...]
    normalize: bool = True

    __repr__ = _written

    def __init__(
        self, *parts: "str | Composition", weights: Sequence[float] | None = None, normalize: bool = True
    ) -> None:
        weights = [1.0] * len(parts) if weights is None else weights
        _set(self, parts=_checked_parts(self, parts, least=1), weights=_numbers(self, "weights", weights, len(parts)))
        if not isinstance(normalize, bool):
            raise ConfigError(f"Average: normalize must be True or False, got {normalize!r}")
        if normalize and not sum(self.weights):
            raise ConfigError(f"Average: weights must not sum to 0 to be normalized, got {self.weights}")
        _set(self, normalize=normalize)

    def factors(self) -> tuple[float, ...]:
        """Return what each part's result is multiplied with."""
        total = sum(self.weights) if self.normalize else 1.0
        return tuple(weight / total for weight in self.weights)


@dataclass(frozen=True, init=False, repr=False)
class Parallel:
    """Every part for a repeated batch of its own, from the first adapted module to the end of the model.

    Args:
        *parts: names of adapters or compositions, one or more.

    Raises:
        ConfigError: a value breaks its rule.
    """

    parts: tuple["str | Composition", ...]

    __repr__ = _written

    def __init__(self, *parts: "str | Composition") -> None:
        _set(self, parts=_checked_parts(self, parts, least=1))


@dataclass(frozen=True, init=False, repr=False)
class Split:
    """Every part for its own stretch of the tokens, `splits` tokens long.

    Args:
        *parts: names of adapters or compositions, one or more.
        splits: how many tokens are each part's, from 1 up.

    Raises:
        ConfigError: a value breaks its rule.
    """

    parts: tuple["str | Composition", ...]
    splits: tuple[int, ...]

    __repr__ = _written

    def __init__(self, *parts: "str | Composition", splits: Sequence[int]) -> None:
        _set(
            self,
            parts=_checked_parts(self, parts, least=1),
            splits=_numbers(self, "splits", splits, len(parts), whole=True),
        )


@dataclass(frozen=True, init=False, repr=False)
class BatchSplit:
    """Every part for its own stretch of the batch, `batch_sizes` sequences long.

    Args:
        *parts: names of adapters or compositions, one or more.
        batch_sizes: how many sequences are each part's, from 1 up.

    Raises:
        ConfigError: a value breaks its rule.
    """

    parts: tuple["str | Composition", ...]
    batch_sizes: tuple[int, ...]

    __repr__ = _written

    def __init__(self, *parts: "str | Composition", batch_sizes: Sequence[int]) -> None:
        sizes = _numbers(self, "batch_sizes", batch_sizes, len(parts), whole=True)
        _set(self, parts=_checked_parts(self, parts, least=1), batch_sizes=sizes)


@dataclass(frozen=True, init=False, repr=False)
class Fuse:
    """Attention over the results of several adapters, with weights of its own.

    Args:
        *parts: names of adapters, two or more.

    Raises:
        ConfigError: a value breaks its rule.

    Source:
        Pfeiffer et al. 2021 (AdapterFusion).
    """

    parts: tuple[str, ...]

    __repr__ = _written

    def __init__(self, *parts: str) -> None:
        _set(self, parts=_checked_parts(self, parts, least=2))
        if not all(isinstance(part, str) for part in self.parts):
            raise ConfigError(f"Fuse: parts must be names of adapters, got {self.parts!r}")


@dataclass(frozen=True, init=False, repr=False)
class Pick:
    """Each sequence of a batch with an adapter of its own, or with none.

    Args:
        parts: for each sequence a name or None.

    Raises:
        TypeError: `parts` is not a sequence of strings and None.
        ValueError: it is empty.
    """

    parts: tuple[str | None, ...]

    __repr__ = _written

    def __init__(self, parts: Sequence[str | None]) -> None:
        if isinstance(parts, str) or not isinstance(parts, Sequence):
            raise TypeError(f"mixed: names must be a sequence of adapter names and None, got {parts!r}")
        strangers = [name for name in parts if name is not None and not isinstance(name, str)]
        if strangers:
            raise TypeError(f"mixed: names must hold strings and None, got {strangers[0]!r} among them")
        if not parts:
            raise ValueError("mixed: names must have one entry for each sequence of the batch, got none")
        _set(self, parts=tuple(parts))


Composition = Stack | Average | Parallel | Split | BatchSplit | Fuse | Pick
"""Any of the compositions; `Stack`, `Average` and `Pick` can be run."""
KINDS = {kind.__name__.lower(): kind for kind in (Stack, Average, Parallel, Split, BatchSplit, Fuse, Pick)}


def adapter_names_in(composition: Composition) -> tuple[str, ...]:
    """Return the names in a composition, each once, in order of application."""
    return tuple(dict.fromkeys(name for name in all_names(composition) if name is not None))


def keep_names(composition: Composition, known: Sequence[str]) -> Composition:
    """Return the composition without the adapters that are not among `known`, and without what they leave empty."""
    if isinstance(composition, Pick) or all(name in known for name in adapter_names_in(composition)):
        return composition
    kept = []
    for index, part in enumerate(composition.parts):
        part = part if isinstance(part, str) else keep_names(part, known)
        if part in known if isinstance(part, str) else part.parts:
            kept.append((index, part))
    if not kept:
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


def _set(composition: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(composition, name, value)  # the dataclass is frozen for everyone else


def values_of(composition: Composition) -> dict[str, Any]:
    """Return the fields of a composition by name."""
    return {field.name: getattr(composition, field.name) for field in fields(composition)}


def rebuilt(kind: type, values: dict[str, Any]) -> Composition:
    """Build a composition from its fields."""
    parts = values.pop("parts")
    return kind(parts) if kind is Pick else kind(*parts, **values)


def all_names(composition: Composition) -> Iterator[str | None]:
    """Yield every name in a composition as often as it stands there, and None where a `Pick` has none."""
    for part in composition.parts:
        if isinstance(part, Composition):
            yield from all_names(part)
        else:
            yield part


def _checked_parts(owner: object, parts: tuple, *, least: int) -> tuple:
    kind = type(owner).__name__
    for part in parts:
        if not isinstance(part, (str, *KINDS.values())) or not part or isinstance(part, Pick):
            raise ConfigError(f"{kind}: parts must be names of adapters or compositions other than Pick, got {part!r}")
    if len(parts) < least:
        raise ConfigError(f"{kind}: parts must be at least {least}, got {len(parts)}")
    return tuple(parts)


def _numbers(owner: object, name: str, values: Sequence[float], count: int, *, whole: bool = False) -> tuple:
    kind, rule = type(owner).__name__, "integers from 1 up" if whole else "finite numbers"
    numbers = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
    plain = all(isinstance(v, int if whole else (int, float)) and not isinstance(v, bool) for v in numbers)
    if not plain or len(numbers) != count or not all(math.isfinite(v) and (not whole or v >= 1) for v in numbers):
        raise ConfigError(f"{kind}: {name} must be {rule}, one for each of {count} parts, got {values!r}")
    return numbers if whole else tuple(map(float, numbers))
