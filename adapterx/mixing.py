"""Serve the sequences of one batch differently: who picks what, and trained copies that answer for their own."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class MixedBatch:
    """Which adapter each sequence of a batch picks inside one `mixed` block."""

    def __init__(self, names: Sequence[str | None]) -> None:
        self.names = tuple(names)
        self.size = len(self.names)
        self.optimizer_steps = 0  # of all optimizers since the block began
        self.refrozen: list[nn.Parameter] = []  # trained inside the block, frozen again by its end
        self._indices: dict[tuple[tuple[str, ...], torch.device], Tensor] = {}

    def note_optimizer_step(self, *_: Any) -> None:
        """Post hook of every optimizer: a fused step changes parameters without counting up their versions."""
        self.optimizer_steps += 1

    def indices(self, members: tuple[str, ...], device: torch.device) -> Tensor:
        """Return which of the members each sequence picks, -1 for none of them: int64 `(size,)`, made once."""
        if (members, device) not in self._indices:
            index = {name: number for number, name in enumerate(members)}
            with lasting():
                picked = torch.tensor([index.get(name, -1) for name in self.names], device=device)
            self._indices[members, device] = picked
        return self._indices[members, device]

    def refuse_late_backward(self, output: Tensor, *modules: nn.Module) -> None:
        """Let the backward pass complain where the end of the block would make autograd drop gradients of `modules`."""
        if output.requires_grad and not torch.compiler.is_compiling():
            output.register_hook(partial(self._check_open, modules))

    def _check_open(self, modules: tuple[nn.Module, ...], _gradient: Tensor) -> None:
        lost = {id(parameter) for parameter in self.refrozen if not parameter.requires_grad}
        if lost and any(id(parameter) in lost for module in modules for parameter in module.parameters()):
            raise RuntimeError(
                "mixed: backward() must run inside the `with` block; its end has frozen adapters that were frozen "
                "before it, and their gradients would be lost"
            )


@contextmanager
def lasting() -> Iterator[None]:
    """Make tensors without history that training may still use, even where `torch.inference_mode` is on."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def split_sequences(tensor: Tensor, count: int) -> Tensor | None:
    """Return a view with one entry of the first dimension per sequence; None if the shape does not allow it.

    Either the first dimension is the batch already, or the tensor is a matrix of which equally many consecutive rows
    belong to each sequence.
    """
    rows = tensor.shape[0] if tensor.dim() else 0
    if tensor.dim() and rows == count:
        return tensor
    if tensor.dim() == 2 and rows % count == 0:
        return tensor.unflatten(0, (count, rows // count))
    return None


class _Part(NamedTuple):
    """What the base module or a copy has returned, and for which sequences it counts."""

    output: Any
    rows: Tensor
    is_cut: bool  # whether it ran on these sequences only


class CopyGroup:
    """Trained copies of one module that answer for their own sequences; the base module answers for the others.

    Args:
        copies: by adapter name; each picked by at least one sequence of the batch.
        batch: which sequence picks which.
        where: qualified name of the base module, for messages.
    """

    def __init__(self, copies: Mapping[str, nn.Module], batch: MixedBatch, where: str) -> None:
        self.copies, self.batch, self.where = tuple(copies.values()), batch, where
        own = [[i for i, name in enumerate(batch.names) if name == copied] for copied in copies]
        others = [i for i, name in enumerate(batch.names) if name not in copies]
        position = {row: i for i, row in enumerate(row for rows in (others, *own) for row in rows)}
        device = next(self.copies[0].parameters()).device
        with lasting():
            self.others = torch.tensor(others, device=device) if others else None
            self.own = [torch.tensor(rows, device=device) for rows in own]
            self.position = torch.tensor([position[row] for row in range(batch.size)], device=device)

    def __call__(self, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output in which each sequence's entry comes from its own copy.

        A copy runs on its own sequences where the module receives a single tensor, and on the whole batch otherwise:
        which of several tensors belong to sequences cannot be told from their shapes.

        Raises:
            ValueError: an output does not fit the number of sequences, or the copies disagree about its shape.
            TypeError: the copies return different things that are not tensors.
        """
        if self.others is None and len(self.copies) == 1:
            return self._run(self.copies[0], args, kwargs)
        parts = [] if self.others is None else [_Part(output, self.others, is_cut=False)]
        single = self._single_tensor(args, kwargs)
        for module, rows in zip(self.copies, self.own, strict=True):
            inputs = (args, kwargs) if single is None else _replaced(args, kwargs, single, self._cut(single, rows))
            parts.append(_Part(self._run(module, *inputs), rows, is_cut=single is not None))
        return self._merge(parts)

    def _run(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        answer = module(*args, **kwargs)
        first = answer
        while isinstance(first, (tuple, list, Mapping)) and first:
            first = next(iter(first.values() if isinstance(first, Mapping) else first))
        if isinstance(first, Tensor):
            self.batch.refuse_late_backward(first, module)
        return answer

    def _single_tensor(self, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        """Return the one tensor among the arguments, if it is the only thing in them that can differ by sequence."""
        values = [value for value in (*args, *kwargs.values()) if not isinstance(value, (bool, int, float, str))]
        values = [value for value in values if value is not None]
        if len(values) == 1 and isinstance(values[0], Tensor):
            return values[0] if split_sequences(values[0], self.batch.size) is not None else None
        return None

    def _cut(self, tensor: Tensor, rows: Tensor) -> Tensor:
        split = split_sequences(tensor, self.batch.size)
        cut = split.index_select(0, rows)
        return cut.flatten(0, 1) if split.dim() > tensor.dim() else cut

    def _merge(self, parts: list[_Part]) -> Any:
        """Join tensors, and whatever holds them, in the order of the batch."""
        first = parts[0].output
        if all(isinstance(part.output, Tensor) for part in parts):
            return self._merge_tensors(parts)
        if all(type(part.output) is type(first) for part in parts):
            if isinstance(first, (tuple, list)) and len({len(part.output) for part in parts}) == 1:
                items = [self._merge([p._replace(output=p.output[i]) for p in parts]) for i in range(len(first))]
                return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
            if isinstance(first, Mapping) and all(part.output.keys() == first.keys() for part in parts):
                merged = copy.copy(first)
                for key in first:
                    merged[key] = self._merge([part._replace(output=part.output[key]) for part in parts])
                return merged
            plain = isinstance(first, (bool, int, float, str))
            if all(part.output is first or (plain and part.output == first) for part in parts):
                return first
        raise TypeError(
            f"mixed: the trained copies of {self.where} and the module itself must return tensors in the same "
            f"containers, got {', '.join(sorted({type(part.output).__name__ for part in parts}))}"
        )

    def _merge_tensors(self, parts: list[_Part]) -> Tensor:
        pieces = []
        for part in parts:
            piece = split_sequences(part.output, len(part.rows) if part.is_cut else self.batch.size)
            if piece is None:
                raise ValueError(
                    f"mixed: the output of {self.where} must have a first dimension of {self.batch.size}, one entry of "
                    f"names per sequence, or be a matrix with equally many consecutive rows per sequence, "
                    f"got shape {tuple(part.output.shape)}"
                )
            pieces.append(piece if part.is_cut else piece.index_select(0, part.rows))
        shapes = list(dict.fromkeys(tuple(piece.shape[1:]) for piece in pieces))
        if len(shapes) > 1:
            raise ValueError(
                f"mixed: the trained copies of {self.where} and the module itself must return the same shape for a "
                f"sequence, got {' and '.join(map(str, shapes))}"
            )
        merged = torch.cat(pieces).index_select(0, self.position)
        return merged.flatten(0, 1) if pieces[0].dim() > parts[0].output.dim() else merged


def _replaced(args: tuple, kwargs: dict[str, Any], old: Tensor, new: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a call with one tensor replaced."""
    return (
        tuple(new if value is old else value for value in args),
        {key: new if value is old else value for key, value in kwargs.items()},
    )
