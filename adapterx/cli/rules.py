"""What a value of a run's documents must be, in words and as a test."""

from collections.abc import Callable
from typing import Any

Rule = tuple[str, Callable[[Any], bool]]


def is_text(value: Any) -> bool:
    """Return whether a value is a text that UTF-8 can hold, and not empty."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:  # half of a character, which no terminal and no file can take
        return False


def are_labels(value: Any) -> bool:
    """Return whether a value is a list of different texts."""
    return isinstance(value, list) and bool(value) and all(map(is_text, value)) and len(set(value)) == len(value)


LABELS: Rule = ("a list of different texts", are_labels)
