"""Compositions from what users say and from JSON, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from typing import Any

from adapterx.compose.expression import KINDS, BatchSplit, Composition, Parallel, Split, Stack, rebuilt, values_of
from adapterx.compose.naming import fusions_in
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


def batch_of(names: Sequence[str | Composition | None]) -> BatchSplit:
    """Return the composition of a batch, from what the user gave for each of its sequences.

    Raises:
        TypeError: it is not a sequence of names, compositions and None.
        ValueError: it is empty.
        ConfigError: a composition cannot stand there.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"mixed: names must be a sequence of adapter names and None, got {names!r}")
    strangers = [name for name in names if name is not None and not isinstance(name, (str, Composition))]
    if strangers:
        raise TypeError(f"mixed: names must hold strings, compositions and None, got {strangers[0]!r} among them")
    if not names:
        raise ValueError("mixed: names must have one entry for each sequence of the batch, got none")
    composition = BatchSplit(*names)
    if fusions_in(composition):
        raise ConfigError(
            "mixed: names must not hold Fuse, which says what trains and for how long; use set_active with "
            "BatchSplit(..., batch_sizes=...)"
        )
    return parse_composition(composition)


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
