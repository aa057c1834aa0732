"""Compositions as values: which adapters run and how their results are joined, without a link to any module.

A part of a composition is the name of an adapter or another composition, or None for no adapter where a batch or a
sequence is divided. Values are immutable, compare by content, print as they are written, and go to JSON and back.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from adapterx.errors import ConfigError


def _written(composition: "Composition") -> str:
    """Return the composition as a user writes it."""
    values = values_of(composition)
    parts = values.pop("parts")
    shown = {name: value for name, value in values.items() if value is not True and value is not None}
    options = [f"{name}={list(value) if isinstance(value, tuple) else repr(value)}" for name, value in shown.items()]
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
    """Every part for a copy of the batch: the model that it is set on repeats its inputs, and returns N times as much.

    Args:
        *parts: one or more names of adapters or compositions, or None where a copy has no adapter.

    Raises:
        ConfigError: a value breaks its rule.
    """

    parts: tuple["str | Composition | None", ...]

    __repr__ = _written

    def __init__(self, *parts: "str | Composition | None") -> None:
        _set(self, parts=_checked_parts(self, parts, least=1, optional=True))


@dataclass(frozen=True, init=False, repr=False)
class Split:
    """Every part for its own stretch of the tokens, `splits` tokens long; the stretches make up the sequence.

    Args:
        *parts: one or more names of adapters or compositions, or None where a stretch has no adapter.
        splits: how many tokens are each part's, from 1 up: one number a part, or one for all parts.

    Raises:
        ConfigError: a value breaks its rule.
    """

    parts: tuple["str | Composition | None", ...]
    splits: tuple[int, ...]

    __repr__ = _written

    def __init__(self, *parts: "str | Composition | None", splits: int | Sequence[int]) -> None:
        numbers = _numbers(self, "splits", splits, len(parts), whole=True)
        _set(self, parts=_checked_parts(self, parts, least=1, optional=True), splits=numbers)


@dataclass(frozen=True, init=False, repr=False)
class BatchSplit:
    """Every part for its own stretch of the batch, `batch_sizes` sequences long; `mixed` gives one to each sequence.

    Args:
        *parts: one or more names of adapters or compositions, or None where sequences have no adapter.
        batch_sizes: how many sequences are each part's, from 1 up: one number a part, or one for all parts.

    Raises:
        ConfigError: a value breaks its rule.
    """

    parts: tuple["str | Composition | None", ...]
    batch_sizes: tuple[int, ...]

    __repr__ = _written

    def __init__(self, *parts: "str | Composition | None", batch_sizes: int | Sequence[int] = 1) -> None:
        sizes = _numbers(self, "batch_sizes", batch_sizes, len(parts), whole=True)
        _set(self, parts=_checked_parts(self, parts, least=1, optional=True), batch_sizes=sizes)


@dataclass(frozen=True, init=False, repr=False)
class Fuse:
    """Attention over the results of several adapters, with weights of its own, which `add_fusion` adds to a model.

    Args:
        *parts: two or more, names of adapters or stacks of them; of a stack the last adapter's result is attended to.
        name: of the weights; None makes it of the names, the last of each stack, joined by commas.

    Raises:
        ConfigError: a value breaks its rule.

    Source:
        Pfeiffer et al. 2021 (AdapterFusion).
    """

    parts: tuple["str | Stack", ...]
    name: str | None = None

    __repr__ = _written

    def __init__(self, *parts: "str | Stack", name: str | None = None) -> None:
        _set(self, parts=_checked_parts(self, parts, least=2))
        for part in self.parts:
            plain = isinstance(part, str) or (isinstance(part, Stack) and part.parts)
            if not plain or not all(isinstance(inner, str) for inner in getattr(part, "parts", ())):
                raise ConfigError(f"Fuse: parts must be names of adapters or stacks of them, got {part!r}")
        if name is not None and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_,-]+", name)):
            raise ConfigError(f"Fuse: name must consist of letters, digits, '_', '-' and ',', got {name!r}")
        _set(self, name=name)

    @property
    def key(self) -> str:
        """Name under which a model has the weights."""
        return self.name or ",".join(part if isinstance(part, str) else part.parts[-1] for part in self.parts)


Composition = Stack | Average | Parallel | Split | BatchSplit | Fuse
"""Any of the compositions."""
KINDS = {kind.__name__.lower(): kind for kind in (Stack, Average, Parallel, Split, BatchSplit, Fuse)}


def _set(composition: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(composition, name, value)  # the dataclass is frozen for everyone else


def values_of(composition: Composition) -> dict[str, Any]:
    """Return the fields of a composition by name."""
    return {field.name: getattr(composition, field.name) for field in fields(composition)}


def rebuilt(kind: type, values: dict[str, Any]) -> Composition:
    """Build a composition from its fields."""
    values = dict(values)
    return kind(*values.pop("parts"), **values)


def _checked_parts(owner: object, parts: tuple, *, least: int, optional: bool = False) -> tuple:
    kind, none = type(owner).__name__, ", or None" if optional else ""
    for part in parts:
        if part is None and optional:
            continue
        if not isinstance(part, (str, *KINDS.values())) or not part:
            raise ConfigError(f"{kind}: parts must be names of adapters or compositions{none}, got {part!r}")
    if len(parts) < least:
        raise ConfigError(f"{kind}: parts must be at least {least}, got {len(parts)}")
    return tuple(parts)


def _numbers(owner: object, name: str, values: Sequence[float], count: int, *, whole: bool = False) -> tuple:
    kind, rule = type(owner).__name__, "integers from 1 up" if whole else "finite numbers"
    if whole and isinstance(values, int):
        values = [values] * count
    numbers = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
    plain = all(isinstance(v, int if whole else (int, float)) and not isinstance(v, bool) for v in numbers)
    if not plain or len(numbers) != count or not all(math.isfinite(v) and (not whole or v >= 1) for v in numbers):
        raise ConfigError(f"{kind}: {name} must be {rule}, one for each of {count} parts, got {values!r}")
    return numbers if whole else tuple(map(float, numbers))
