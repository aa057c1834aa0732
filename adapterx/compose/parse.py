"""Compositions from what users say and from JSON, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from adapterx.compose.expression import KINDS, Composition, Pick, Stack, all_names, rebuilt, values_of
from adapterx.errors import ConfigError


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
        raise ConfigError(f"set_active: names must be names, a composition or None, got {value!r}")
    names = [name for name in all_names(composition) if name is not None]
    if not isinstance(composition, Pick) and len(set(names)) < len(names):
        raise ConfigError(f"set_active: names must not repeat, got {names}")
    return composition


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
