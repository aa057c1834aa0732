"""Batches that consist of equal copies: repeat and divide the rows of whatever holds tensors, tell whether they agree.

A batch of N copies has the rows of the first copy first, then those of the second. What holds tensors may be a tuple, a
list, a mapping such as an output of transformers, or a cache of keys and values. Nothing is changed in its place.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

# Arguments of models that have the batch as their first dimension, by which its size is told.
_BATCHED = ("input_ids", "inputs_embeds", "decoder_input_ids", "pixel_values", "input_features", "input_values")
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor], *, caches: bool = False) -> Any:
    """Return the value with every tensor in it exchanged; `caches` says whether those in caches are too."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is dict:  # by itself, for torch.compile does not know copy.copy
        return {key: map_tensors(item, change, caches=caches) for key, item in value.items()}
    if isinstance(value, Mapping):
        changed = copy.copy(value)
        for key in value:
            changed[key] = map_tensors(value[key], change, caches=caches)
        return changed
    if isinstance(value, (tuple, list)):
        items = [map_tensors(item, change, caches=caches) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if caches and is_cache(value):
        changed, entry = copy.copy(value), partial(_change_entry, change)
        changed.__dict__ = {key: map_tensors(item, entry, caches=True) for key, item in vars(value).items()}
        return changed
    return value


def _change_entry(change: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    return change(tensor) if tensor.dim() > 1 else tensor  # numbers, and what is there before the first token


def leaves(value: Any) -> Iterator[Any]:
    """Yield every tensor in a value, and whatever is neither plain nor a container."""
    if isinstance(value, (tuple, list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(item)
    elif not isinstance(value, _PLAIN):
        yield value


def is_cache(value: Any) -> bool:
    """Tell whether a value is a cache of transformers, or one of its layers."""
    return type(value).__module__ == "transformers.cache_utils" and hasattr(value, "__dict__")


def repeat_inputs(args: tuple, kwargs: dict[str, Any], copies: int, owner: str) -> tuple[int, tuple, dict[str, Any]]:
    """Repeat what a model receives.

    Args:
        args: of the call.
        kwargs: likewise.
        copies: how often.
        owner: the public function that wants it, for the message.

    Returns:
        The number of sequences, and the arguments in which each tensor with one row a sequence is repeated; caches of
        keys and values are copied.

    Raises:
        ValueError: there is no tensor.
    """
    named = [kwargs[name] for name in _BATCHED if kwargs.get(name) is not None]
    tensors = [leaf for leaf in leaves((named, args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors:
        raise ValueError(f"{owner}: inputs must hold a tensor whose first dimension is the batch, got none")
    batch = tensors[0].shape[0]

    def repeat(tensor: Tensor) -> Tensor:
        return repeat_rows(tensor, copies) if tensor.dim() and tensor.shape[0] == batch else tensor

    return batch, map_tensors(args, repeat, caches=True), map_tensors(kwargs, repeat, caches=True)


def repeat_rows(tensor: Tensor, copies: int) -> Tensor:
    """Return all rows of a tensor, and again from the first, so many times."""
    return tensor.repeat(copies, *[1] * (tensor.dim() - 1))


def share_of_rows(tensor: Tensor, number: int, copies: int) -> Tensor:
    """Return one of so many equal shares of the rows, a view."""
    return tensor.unflatten(0, (copies, tensor.shape[0] // copies))[number]


@torch.no_grad()
def are_replicas(tensors: Sequence[Tensor], copies: int) -> bool:
    """Tell whether in each of these tensors all shares of the rows are equal; on a GPU this waits once."""
    shares = [tensor.unflatten(0, (copies, tensor.shape[0] // copies)) for tensor in tensors]
    return bool(torch.stack([(each == each[:1]).all() for each in shares]).all())
