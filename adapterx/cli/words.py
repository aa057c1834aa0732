"""What is typed as one word on the command line, and what it means: numbers, lists, values by name."""

import re
from collections.abc import Callable
from typing import Any

from adapterx.errors import ConfigError

MOST_BLOCKS = 10_000  # more than any model has; what is typed is never made into a list without bounds
_BLOCKS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def _number_or_name(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _number(word: str) -> int | float | str:
    try:
        return int(word)
    except ValueError:
        return _number_or_name(word)


def _by_block(word: str) -> Any:
    """Return one number, or a mapping of numbers; AdapterConfig refuses what is neither."""
    if "=" not in word:
        return _number(word)
    return _values_by_name(word)


def _values_by_name(word: str) -> dict[str, Any]:
    """Return values by name, of `name=value` after `name=value`; AdapterConfig refuses those that it does not know."""
    parts = (part.partition("=") for part in word.split(","))
    return {name.strip(): {"true": True, "false": False}.get(value, _number(value)) for name, _, value in parts}


def _block_list(word: str) -> tuple[int, ...]:
    blocks: list[int] = []
    for part in word.split(","):
        match = _BLOCKS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < MOST_BLOCKS:  # also a range that runs backwards
            raise ConfigError(
                f"train: layers must be block numbers from 0 to {MOST_BLOCKS - 1}, such as 0,1,8-11, got {word!r}"
            )
        blocks += range(first, last + 1)
    return tuple(blocks)


READ_FROM_A_WORD: dict[str, Callable[[str], Any]] = {
    "scaling": _number_or_name,
    "layers": _block_list,
    "bottleneck_dim": _by_block,
    "reduction_factor": _by_block,
    "phm": _values_by_name,
}
"""Fields of AdapterConfig that are typed as one word, because they are of several types, or many values in one."""
