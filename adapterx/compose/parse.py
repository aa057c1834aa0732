"""Compositions from what users say and from JSON, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from typing import Any

from adapterx.compose.expression import KINDS, BatchSplit, Composition, Parallel, Split, Stack, rebuilt, values_of
from adapterx.errors import ConfigError, speaker


def parse_composition(value: "str | Composition | Sequence[str | Composition] | None") -> Composition:
    """Return what the user means: a name, several to be stacked, a composition as it is, or None for nothing.

    Raises:
        ConfigError: it is none of these, or a name is repeated.
    """
    if isinstance(value, Composition):
        composition = value
    elif value is None or isinstance(value, str):
        composition = Stack() if value is None else Stack(value)
    elif isinstance(value, Sequence):
        composition = Stack(*value)
    else:
        raise ConfigError(f"{speaker()}: names must be names, a composition or None, got {value!r}")
    for names in chains(composition):
        if len(set(names)) < len(names):
            raise ConfigError(f"{speaker()}: names must not repeat, got {list(names)}")
    return composition


def chains(composition: Composition) -> list[tuple[str, ...]]:
    """Return the names that the same tokens meet: all together, or those of each stretch.

    Whoever divides a batch or a sequence may give an adapter to several stretches.
    """
    inner = [
        chains(part) if isinstance(part, Composition) else [() if part is None else (part,)]
        for part in composition.parts
    ]
    if isinstance(composition, (BatchSplit, Split, Parallel)):
        return list(dict.fromkeys(chain for found in inner for chain in found))
    # In a row of parts each stretch of one meets each stretch of the next; to find what repeats, pairs suffice.
    shared = tuple(name for found in inner if len(found) == 1 for name in found[0])
    divided = [found for found in inner if len(found) > 1]
    combined = [(*shared, *chain) for found in divided for chain in found]
    combined += [(*a, *b) for first, second in combinations(divided, 2) for a in first for b in second]
    return combined or [shared]


def composition_to_dict(composition: Composition) -> dict[str, Any]:
    """Return the composition as JSON can hold it; `composition_from_dict` is the inverse."""
    values = values_of(composition)
    parts = [part if part is None or isinstance(part, str) else composition_to_dict(part) for part in values["parts"]]
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {"kind": type(composition).__name__.lower(), **values, "parts": parts}


def composition_from_dict(values: Mapping[str, Any]) -> Composition:
    """Return the composition of which `composition_to_dict` made these values.

    Raises:
        ConfigError: the kind is unknown, a key is missing or unknown, or a value breaks its rule.
    """
    kind = KINDS.get(values.get("kind")) if isinstance(values, Mapping) else None
    if kind is None:
        raise ConfigError(f"composition_from_dict: kind must be one of {', '.join(KINDS)}, got {values!r}")
    given = {name: value for name, value in values.items() if name != "kind"}
    if set(given) != {field.name for field in fields(kind)}:
        raise ConfigError(f"composition_from_dict: keys of {kind.__name__} must be its fields, got {sorted(given)}")
    parts = [composition_from_dict(part) if isinstance(part, Mapping) else part for part in given["parts"]]
    return rebuilt(kind, {**given, "parts": parts})
