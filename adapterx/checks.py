"""Rules that values of a configuration keep, and how a message quotes what breaks them."""

import re
import sys
from collections.abc import Iterable, Mapping
from itertools import islice

from adapterx.errors import ConfigError

# Far above what any model needs, and low enough that a stranger's file cannot make the reader run for hours.
LARGEST_SIZE = 2**63 - 1
MOST_ENTRIES = 10_000
LONGEST_EXPRESSION = 2_000


def check_size(owner: str, name: str, value: object) -> None:
    """Raise ConfigError unless `value` is an integer from 1 up, and a size that tensors can have."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{owner}: {name} must be an integer, got {shown(value)}")
    if value < 1:
        raise ConfigError(f"{owner}: {name} must be at least 1, got {shown(value)}")
    if value > LARGEST_SIZE:
        raise ConfigError(f"{owner}: {name} must be at most {LARGEST_SIZE}, got {shown(value)}")


def check_finite(owner: str, name: str, value: object) -> float:
    """Return `value` as a float; raise ConfigError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ConfigError(f"{owner}: {name} must be a finite number, got {shown(value)}")
    return float(value)


def check_probability(owner: str, name: str, value: object) -> float:
    """Return `value` as a float; raise ConfigError unless it is a number in [0, 1)."""
    number = check_finite(owner, name, value)
    if not 0.0 <= number < 1.0:
        raise ConfigError(f"{owner}: {name} must be in [0, 1), got {number!r}")
    return number


def check_flags(owner: str, **values: object) -> None:
    """Raise ConfigError unless all values are True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{owner}: {name} must be True or False, got {shown(value)}")


def check_choice(owner: str, name: str, value: object, allowed: tuple[str, ...], *, alternative: str = "") -> None:
    """Raise ConfigError unless `value` is one of the strings that are allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{owner}: {name} must be one of {alternative}{', '.join(allowed)}, got {shown(value)}")


def shown(value: object) -> str:
    """Return a value as a message quotes it: its `repr`, unless that is too long, too deep, or has too many digits."""
    if isinstance(value, int) and value.bit_length() > 8192:  # `repr` of such an integer raises ValueError
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (list, tuple, dict)) and len(value) > MOST_ENTRIES:
        return f"a {type(value).__name__} of {len(value)} entries"
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that cannot be shown"


def check_expression(owner: str, name: str, expression: str) -> None:
    """Raise ConfigError unless the text is a regular expression of a length that can be compiled soon."""
    if len(expression) > LONGEST_EXPRESSION:
        raise ConfigError(
            f"{owner}: {name} must be at most {LONGEST_EXPRESSION} characters long where it is a regular expression, "
            f"got {len(expression)}; a tuple of names may be longer"
        )
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError, MemoryError, Warning) as error:  # some turn warnings into errors
        raise ConfigError(
            f"{owner}: {name} must be suffixes or a valid regular expression, got {expression!r} ({error})"
        ) from error


def check_names(owner: str, name: str, value: object) -> tuple[str, ...]:
    """Return a sequence of different strings as a tuple; raise ConfigError if it is none."""
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ConfigError(f"{owner}: {name} must be a sequence of strings, got {shown(value)}")
    names = check_entries(owner, name, value)
    if not all(isinstance(item, str) and item for item in names):
        raise ConfigError(f"{owner}: {name} must hold strings that are not empty, got {shown(value)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"{owner}: {name} must not repeat a name, got {shown(value)}")
    return names


def check_block_indices(owner: str, name: str, value: object) -> tuple[int, ...]:
    """Return different block indices, sorted; raise ConfigError if they are none."""
    iterable = not isinstance(value, (str, Mapping)) and isinstance(value, Iterable)
    indices = check_entries(owner, name, value) if iterable else ()
    if not indices or not all(map(is_block_index, indices)) or len(set(indices)) < len(indices):
        raise ConfigError(f"{owner}: {name} must be different block indices from 0 up, got {shown(value)}")
    return tuple(sorted(indices))


def is_block_index(value: object) -> bool:
    """Tell whether a value can be the index of a block."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_SIZE


def check_entries(owner: str, name: str, value: Iterable) -> tuple:
    """Return what `value` holds, which may be endless; raise ConfigError if that is too much."""
    entries = tuple(islice(value, MOST_ENTRIES + 1))
    if len(entries) > MOST_ENTRIES:
        raise ConfigError(f"{owner}: {name} must hold at most {MOST_ENTRIES} entries, got {shown(value)}")
    return entries
