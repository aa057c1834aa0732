"""A number for each block of a model."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adapterx.checks import check_entries, is_block_index, shown
from adapterx.errors import ConfigError

DEFAULT = "default"


class PerBlock(Mapping):
    """A number for each block: that of its index, or else that of `"default"`. Immutable; compares by content.

    Args:
        owner: whose value it is, for messages.
        name: of the value, for messages.
        values: numbers by block index (an integer from 0 up, or its digits, as JSON has them) and `"default"`.
        check: takes owner, what is checked and a number; returns what is kept of it.

    Raises:
        ConfigError: a key or a number breaks its rule.
    """

    def __init__(
        self, owner: str, name: str, values: Mapping[Any, Any], check: Callable[[str, str, Any], float]
    ) -> None:
        entries: dict[int | str, float] = {}
        for key in check_entries(owner, name, values):
            index = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10 else key
            if index in entries or not (index == DEFAULT or is_block_index(index)):
                raise ConfigError(
                    f"{owner}: {name} must have different block indices from 0 up, or {DEFAULT!r}, for its keys, "
                    f"got {shown(values)}"
                )
            entries[index] = check(owner, f"{name}[{index!r}]", values[key])
        if not entries:
            raise ConfigError(f"{owner}: {name} must hold a number at least, got {shown(values)}")
        # In one order, so that equal meanings are written alike.
        self._entries = dict(sorted(entries.items(), key=lambda entry: (entry[0] == DEFAULT, entry[0])))

    def of_block(self, block: int | None) -> float | None:
        """Return the number for a block; None where neither its index nor `"default"` is among the keys."""
        return self._entries.get(block, self._entries.get(DEFAULT))

    def to_dict(self) -> dict[str, float]:
        """Return the numbers as JSON can hold them."""
        return {str(key): value for key, value in self._entries.items()}

    def __getitem__(self, key: int | str) -> float:
        return self._entries[key]

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        return hash(tuple(self._entries.items()))

    def __repr__(self) -> str:
        return repr(self._entries)
