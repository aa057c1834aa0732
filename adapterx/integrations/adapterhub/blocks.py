"""Options by block: `adapters` numbers the blocks of a second stack on, `AdapterConfig` counts in each from 0."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterx.errors import CheckpointError, speaker
from adapterx.integrations.adapterhub.families import Place, layer_numbers


class Uneven(CheckpointError):
    """An option treats the blocks of two stacks differently.

    Attributes:
        kept: stack and index of the blocks whose value is true.
    """

    def __init__(self, message: str, values: Mapping[tuple[str, int], Any]) -> None:
        super().__init__(message)
        self.kept = {block for block, value in values.items() if value}


def layers_of(leave_out: Any, places: Sequence[Place], source: Path) -> tuple[int, ...] | None:
    """Return `layers`, the blocks that have adapters, for `leave_out`, those that have none.

    Raises:
        CheckpointError: `leave_out` holds other than numbers, all of them, or differs between two stacks (Uneven).
    """
    if not isinstance(leave_out, Sequence) or not all(
        isinstance(n, int) and not isinstance(n, bool) for n in leave_out
    ):
        raise CheckpointError(f"{speaker()}: leave_out of {source} must hold numbers of layers, got {leave_out!r}")
    kept = _by_index({block: n not in leave_out for block, n in layer_numbers(places).items()}, "leave_out", source)
    if all(kept.values()):
        return None
    if not any(kept.values()):
        raise CheckpointError(f"{speaker()}: leave_out of {source} must leave a layer, got {leave_out!r}")
    return tuple(index for index, keep in kept.items() if keep)


def widths_of(factor: Any, places: Sequence[Place], sizes: set[int], source: Path) -> dict[str, Any]:
    """Return `reduction_factor`, or `bottleneck_dim` where that alone says what `adapters` makes of the factor.

    Raises:
        CheckpointError: a factor is no positive number, or missing, or differs between two stacks.
    """
    if not isinstance(factor, Mapping):
        return _width(factor, sizes, source)
    numbers = layer_numbers(places)
    given = {block: factor.get(str(n), factor.get("default")) for block, n in numbers.items()}
    by_index = {index: _width(f, sizes, source) for index, f in _by_index(given, "reduction_factor", source).items()}
    option = "reduction_factor" if all("reduction_factor" in width for width in by_index.values()) else "bottleneck_dim"
    if option == "bottleneck_dim" and len(sizes) > 1:
        raise _odd_factor(factor, sizes, source)
    size = min(sizes)
    return {
        option: {
            index: width.get(option, None) or _floored(size, width["reduction_factor"])
            for index, width in by_index.items()
        }
    }


def _width(factor: Any, sizes: set[int], source: Path) -> dict[str, Any]:
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor > 0:
        raise CheckpointError(
            f"{speaker()}: reduction_factor of {source} must be a number above 0 for each layer, got {factor!r}"
        )
    # Both round down, but `adapters` by `//`, which may end one lower: 1.0 // 0.1 is 9.
    if all(_floored(size, factor) == max(1, int(size / factor)) for size in sizes):
        return {"reduction_factor": factor}
    if len(sizes) > 1:
        raise _odd_factor(factor, sizes, source)
    return {"bottleneck_dim": _floored(min(sizes), factor)}


def _floored(size: int, factor: float) -> int:
    return max(1, int(size // factor))


def _odd_factor(factor: Any, sizes: set[int], source: Path) -> CheckpointError:
    return CheckpointError(
        f"{speaker()}: reduction_factor of {source} must divide the widths {sorted(sizes)} alike, got {factor!r}"
    )


def _by_index(values: Mapping[tuple[str, int], Any], option: str, source: Path) -> dict[int, Any]:
    """Return the values by index of the block, which must be the same in all stacks."""
    found: dict[int, Any] = {}
    for (_, index), value in values.items():
        if found.setdefault(index, value) != value:
            raise Uneven(
                f"{speaker()}: {option} of {source} must treat the blocks {index} of all stacks alike, since an "
                f"AdapterConfig counts in each stack, got {value!r} and {found[index]!r}",
                values,
            )
    return found


def numbers_of(kept: Iterable[Place], everywhere: Sequence[Place]) -> list[int]:
    """Return `leave_out` for an adapter that hangs at some of all places of its positions.

    Raises:
        CheckpointError: it has some positions of a block and not the others.
    """
    blocks: dict[tuple[str, int], set[bool]] = {}
    kept = set(kept)
    for place in everywhere:
        blocks.setdefault((place.stack, place.block), set()).add(place in kept)
    if mixed := sorted(block for block, states in blocks.items() if len(states) > 1):
        raise CheckpointError(
            f"{speaker()}: the adapter must hang behind the same sublayers of each block for AdapterHub, it lacks some "
            f"in block {mixed[0][1]}"
        )
    return sorted(number for block, number in layer_numbers(everywhere).items() if blocks[block] == {False})


def factor_of(given: Any, widths: Mapping[Place, tuple[int, int]], everywhere: Sequence[Place]) -> Any:
    """Return `reduction_factor`, one number or a mapping by layer, of which `adapters` makes these widths.

    Args:
        given: our own factor; kept where it says the same there.
        widths: by place the hidden size and the width of the bottleneck.
        everywhere: all places of the model, which its layers are numbered by.

    Raises:
        CheckpointError: the adapters of one block differ.
    """
    sizes = set(widths.values())
    if isinstance(given, float) and all(_floored(size, given) == width for size, width in sizes):
        return _plain(given)
    if len(sizes) == 1:
        return _factor(*sizes.pop())
    numbers, found = layer_numbers(everywhere), {}
    for place, (size, width) in widths.items():
        number = str(numbers[place.stack, place.block])
        if found.setdefault(number, (size, width)) != (size, width):
            raise CheckpointError(
                f"{speaker()}: the adapters of a block must be of one width for AdapterHub, layer {number}'s are not"
            )
    factors = {number: _factor(size, width) for number, (size, width) in found.items()}
    return factors | {"default": max(factors.values())}


def _factor(size: int, width: int) -> float:
    factor = size / width
    while int(size // factor) < width:  # `//` may end one lower
        factor = math.nextafter(factor, 0.0)
    return _plain(factor)


def _plain(factor: float) -> float:
    """Return an integer where it is one: with shared blocks, `adapters` makes sizes of a quotient by it."""
    return int(factor) if factor.is_integer() else factor
