"""Trained copies of one module that answer in its place: one of them, several averaged, or each for its sequences."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapterx.compose.batch import MixedBatch, lasting
from adapterx.compose.expression import Average, Composition, Stack

# Takes the base module, positional and keyword arguments of a call, and what it returned; None stands for the latter.
Answer = Callable[[nn.Module, tuple, dict[str, Any], Any], Any]


def build_answer(
    composition: Composition, copies: Mapping[str, nn.Module], where: str, batch: MixedBatch | None
) -> Answer | None:
    """Return what answers in place of a module; None: the module itself.

    Args:
        composition: what runs; of stacked copies the last one answers.
        copies: the trained copies by adapter name.
        where: qualified name of the module, for messages.
        batch: who picks whom, where the composition is a `Pick`.
    """
    if batch is not None:
        picked = {name: module for name, module in copies.items() if name in batch.names}
        return CopyGroup(picked, batch, where) if picked else None
    return _answer_of(composition, copies, where)


def _answer_of(part: str | Composition, copies: Mapping[str, nn.Module], where: str) -> Answer | None:
    if isinstance(part, str):
        return _CopyAnswer(copies, part) if part in copies else None
    answers = [_answer_of(each, copies, where) for each in part.parts]
    if isinstance(part, Stack):
        return next((answer for answer in reversed(answers) if answer is not None), None)
    if isinstance(part, Average):
        return _MeanAnswer(tuple(answers), part.factors(), where) if any(answers) else None
    raise NotImplementedError(f"set_active: {type(part).__name__} cannot be run, use names, Stack and Average")


class _CopyAnswer:
    """One copy. Looked up anew in each call, so that a module that was replaced in its place is found."""

    def __init__(self, copies: Mapping[str, nn.Module], name: str) -> None:
        self.copies, self.name = copies, name

    def __call__(self, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        return run_copy(self.copies[self.name], base, args, kwargs, output)


class _MeanAnswer:
    """The weighted mean of what several copies return; the module itself stands for parts without one."""

    def __init__(self, answers: tuple[Answer | None, ...], factors: tuple[float, ...], where: str) -> None:
        self.answers, self.factors, self.where = answers, factors, where

    def __call__(self, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        outputs = [output if answer is None else answer(base, args, kwargs, output) for answer in self.answers]
        return join_outputs(outputs, self._mean, "set_active", self.where)

    def _mean(self, tensors: list[Tensor]) -> Tensor:
        return sum(factor * tensor for factor, tensor in zip(self.factors, tensors, strict=True)).to(tensors[0].dtype)


def run_copy(module: nn.Module, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """Run a copy in its own dtype, and return what it gives in the dtypes of what the base module gave.

    A module in 16 bits has a copy in float32, unless the user chose otherwise; those around it know nothing of that.
    """
    own, wanted = _floating_dtype(module), _floating_dtype(base)
    if own is None or own == wanted:
        return module(*args, **kwargs)
    answer = module(*_cast(args, own), **_cast(kwargs, own))
    return _cast_like(answer, output)


def _floating_dtype(module: nn.Module) -> torch.dtype | None:
    for parameter in module.parameters():
        return parameter.dtype
    return None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors in a value, and in plain containers, to a dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_cast(item, dtype) for item in value)
    return {key: _cast(item, dtype) for key, item in value.items()} if type(value) is dict else value


def _cast_like(value: Any, like: Any) -> Any:
    """Cast the floating-point tensors in a value, and in containers, to the dtypes of those at the same places."""
    if isinstance(value, Tensor):
        is_floating = isinstance(like, Tensor) and value.is_floating_point() and like.is_floating_point()
        return value.to(like.dtype) if is_floating else value
    if type(value) is not type(like):
        return value
    if isinstance(value, Mapping):
        cast = copy.copy(value)
        for key in value:
            cast[key] = _cast_like(value[key], like.get(key))
        return cast
    if isinstance(value, (tuple, list)) and len(value) == len(like):
        items = [_cast_like(item, other) for item, other in zip(value, like, strict=True)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def join_outputs(outputs: list[Any], join: Callable[[list[Tensor]], Tensor], owner: str, where: str) -> Any:
    """Join the tensors, and whatever holds them, of several outputs of the same structure.

    `owner` and `where`, the public function and the name of the module, are for the message.

    Raises:
        TypeError: the structures differ, or hold different things that are not tensors.
    """
    first = outputs[0]
    if all(isinstance(output, Tensor) for output in outputs):
        return join(outputs)
    if all(type(output) is type(first) for output in outputs):
        if isinstance(first, (tuple, list)) and len({len(output) for output in outputs}) == 1:
            items = [join_outputs([output[i] for output in outputs], join, owner, where) for i in range(len(first))]
            return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
        if isinstance(first, Mapping) and all(output.keys() == first.keys() for output in outputs):
            joined = copy.copy(first)
            for key in first:
                joined[key] = join_outputs([output[key] for output in outputs], join, owner, where)
            return joined
        plain = isinstance(first, (bool, int, float, str))
        if all(output is first or (plain and output == first) for output in outputs):
            return first
    raise TypeError(
        f"{owner}: the trained copies of {where} and the module itself must return tensors in the same containers, "
        f"got {', '.join(sorted({type(output).__name__ for output in outputs}))}"
    )


class _Rows(NamedTuple):
    """For which sequences an output counts, and whether the module ran on these only."""

    rows: Tensor
    is_cut: bool


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

    def __call__(self, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output in which each sequence's entry comes from its own copy.

        A copy runs on its own sequences where the module receives a single tensor, and on the whole batch otherwise:
        which of several tensors belong to sequences cannot be told from their shapes.

        Raises:
            ValueError: an output does not fit the number of sequences, or the copies disagree about its shape.
            TypeError: the copies return different things that are not tensors.
        """
        if self.others is None and len(self.copies) == 1:
            return self._run(self.copies[0], base, args, kwargs, output)
        single = self._single_tensor(args, kwargs)
        outputs, places = ([], []) if self.others is None else ([output], [_Rows(self.others, is_cut=False)])
        for module, rows in zip(self.copies, self.own, strict=True):
            inputs = (args, kwargs) if single is None else _replaced(args, kwargs, single, self._cut(single, rows))
            outputs.append(self._run(module, base, *inputs, output))
            places.append(_Rows(rows, is_cut=single is not None))
        return join_outputs(outputs, partial(self._merge, places), "mixed", self.where)

    def _run(self, module: nn.Module, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        answer = run_copy(module, base, args, kwargs, output)
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
            return values[0] if self.batch.split(values[0]) is not None else None
        return None

    def _cut(self, tensor: Tensor, rows: Tensor) -> Tensor:
        split = self.batch.split(tensor)
        cut = split.index_select(0, rows)
        return cut.flatten(0, 1) if split.dim() > tensor.dim() else cut

    def _merge(self, places: list[_Rows], outputs: list[Tensor]) -> Tensor:
        """Put the sequences of several outputs into the order of the batch."""
        pieces = []
        for place, output in zip(places, outputs, strict=True):
            piece = self.batch.split(output, len(place.rows) if place.is_cut else None)
            if piece is None:
                raise ValueError(
                    f"mixed: the output of {self.where} must have a first dimension of {self.batch.size}, one entry of "
                    f"names per sequence, or be a matrix with equally many consecutive rows per sequence, "
                    f"got shape {tuple(output.shape)}"
                )
            pieces.append(piece if place.is_cut else piece.index_select(0, place.rows))
        shapes = list(dict.fromkeys(tuple(piece.shape[1:]) for piece in pieces))
        if len(shapes) > 1:
            raise ValueError(
                f"mixed: the trained copies of {self.where} and the module itself must return the same shape for a "
                f"sequence, got {' and '.join(map(str, shapes))}"
            )
        merged = torch.cat(pieces).index_select(0, self.position)
        return merged.flatten(0, 1) if pieces[0].dim() > outputs[0].dim() else merged


def _replaced(args: tuple, kwargs: dict[str, Any], old: Tensor, new: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a call with one tensor replaced."""
    return (
        tuple(new if value is old else value for value in args),
        {key: new if value is old else value for key, value in kwargs.items()},
    )
