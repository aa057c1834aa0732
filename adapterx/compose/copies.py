"""Trained copies of one module that answer in its place: one of them, several averaged, or each for its sequences."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapterx.compose.batch import Shared, lasting
from adapterx.compose.expression import Average, Composition, Stack
from adapterx.compose.lanes import Item, lanes_of

# Takes the base module, positional and keyword arguments of a call, and what it returned; None stands for the latter.
Answer = Callable[[nn.Module, tuple, dict[str, Any], Any], Any]


def build_answer(
    composition: Composition, copies: Mapping[str, nn.Module], where: str, shared: Shared
) -> Answer | None:
    """Return what answers in place of a module; None: the module itself.

    Of stacked copies the last one answers, averaged ones are averaged, each sequence of a divided batch has the copy of
    its own adapter, and for fused adapters the module itself answers.

    Args:
        composition: what runs.
        copies: the trained copies by adapter name.
        where: qualified name of the module, for messages.
        shared: what the modules share that run the composition.
    """
    lanes, extent = lanes_of(composition)
    answers: dict[Answer | None, dict[int, None]] = {}
    for region, items in lanes:
        answer = _last_answer(items, copies, where, shared)
        if region.rows is None:
            return answer
        answers.setdefault(answer, {}).update(dict.fromkeys(region.rows))  # stretches of tokens share their rows
    if set(answers) == {None}:
        return None
    rows = {answer: tuple(found) for answer, found in answers.items()}
    return CopyGroup(rows, extent.rows, where, shared)


def _last_answer(items: tuple[Item, ...], copies: Mapping[str, nn.Module], where: str, shared: Shared) -> Answer | None:
    for item in reversed(items):
        if isinstance(item, str) and item in copies:
            return _CopyAnswer(item, copies, shared)
        if isinstance(item, Average):
            parts = [part if isinstance(part, Composition) else Stack(part) for part in item.parts]
            answers = tuple(build_answer(part, copies, where, shared) for part in parts)
            if any(answer is not None for answer in answers):
                return _MeanAnswer(answers, item.factors(), where, shared.speaker)
    return None


@dataclass(frozen=True)
class _CopyAnswer:
    """One copy. Looked up anew in each call, so that a module that was replaced in its place is found."""

    divides: ClassVar[bool] = False
    name: str
    copies: Mapping[str, nn.Module] = field(compare=False)
    shared: Shared = field(compare=False)

    def __call__(self, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        module = self.copies[self.name]
        answer = first = run_copy(module, base, args, kwargs, output)
        while isinstance(first, (tuple, list, Mapping)) and first:
            first = next(iter(first.values() if isinstance(first, Mapping) else first))
        if isinstance(first, Tensor):
            self.shared.refuse_late_backward(first, module)
        return answer


@dataclass(frozen=True)
class _MeanAnswer:
    """The weighted mean of what several copies return; the module itself stands for parts without one."""

    answers: tuple[Answer | None, ...]
    factors: tuple[float, ...]
    where: str
    speaker: str

    @property
    def divides(self) -> bool:
        """Whether it must see its own sequences alone."""
        return any(answer is not None and answer.divides for answer in self.answers)

    def __call__(self, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        outputs = [output if answer is None else answer(base, args, kwargs, output) for answer in self.answers]
        return join_outputs(outputs, self._mean, self.speaker, self.where)

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


class CopyGroup:
    """Trained copies of one module that answer for their own sequences; the base module answers for the others.

    Args:
        answers: for what answers (None: the base module), the sequences that are its.
        size: how many sequences the batch has.
        where: qualified name of the base module, for messages.
        shared: what the modules share that run the composition.
    """

    divides = True

    def __init__(self, answers: Mapping[Answer | None, tuple[int, ...]], size: int, where: str, shared: Shared) -> None:
        self.size, self.where, self.shared = size, where, shared
        self.answers = sorted(answers.items(), key=lambda item: item[0] is not None)  # the base module first
        position = {row: i for i, row in enumerate(row for _, rows in self.answers for row in rows)}
        self.order = tuple(position[row] for row in range(size))
        self.places: dict[torch.device, tuple[list[Tensor], Tensor]] = {}

    def _on(self, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Return the rows of each answer, and the order that brings their results back into that of the batch."""
        if device not in self.places:
            with lasting():
                rows = [torch.tensor(own, device=device) for _, own in self.answers]
                self.places[device] = rows, torch.tensor(self.order, device=device)
        return self.places[device]

    def __call__(self, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output in which each sequence's entry comes from its own copy.

        A copy runs on its own sequences where the module receives a single tensor, and on the whole batch otherwise:
        which of several tensors belong to sequences cannot be told from their shapes.

        Raises:
            ValueError: an output does not fit the number of sequences, or the copies disagree about its shape.
            TypeError: the copies return different things that are not tensors.
        """
        if len(self.answers) == 1:
            return self.answers[0][0](base, args, kwargs, output)
        single = self._single_tensor(args, kwargs)
        outputs, is_cut = [], []
        for number, (answer, _) in enumerate(self.answers):
            cut = answer is not None and single is not None
            if answer is not None and answer.divides and not cut:
                raise TypeError(
                    f"{self.shared.speaker}: {self.where} must receive a single tensor where a part of the batch is "
                    "divided again, it receives several"
                )
            inputs = args, kwargs
            if cut:
                inputs = _replaced(args, kwargs, single, self._cut(single, number))
            outputs.append(output if answer is None else answer(base, *inputs, output))
            is_cut.append(cut)
        return join_outputs(outputs, partial(self._merge, is_cut), self.shared.speaker, self.where)

    def _single_tensor(self, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        """Return the one tensor among the arguments, if it is the only thing in them that can differ by sequence."""
        values = [value for value in (*args, *kwargs.values()) if not isinstance(value, (bool, int, float, str))]
        values = [value for value in values if value is not None]
        if len(values) == 1 and isinstance(values[0], Tensor):
            return values[0] if self.shared.split(values[0], self.size) is not None else None
        return None

    def _cut(self, tensor: Tensor, number: int) -> Tensor:
        split = self.shared.split(tensor, self.size)
        cut = split.index_select(0, self._on(tensor.device)[0][number])
        return cut.flatten(0, 1) if split.dim() > tensor.dim() else cut

    def _merge(self, is_cut: list[bool], outputs: list[Tensor]) -> Tensor:
        """Put the sequences of several outputs into the order of the batch."""
        rows, order = self._on(outputs[0].device)
        pieces = []
        for own, cut, output in zip(rows, is_cut, outputs, strict=True):
            piece = self.shared.split(output, len(own) if cut else self.size)
            if piece is None:
                raise ValueError(
                    f"{self.shared.speaker}: the output of {self.where} must have a first dimension of {self.size}, "
                    "one entry per sequence of the batch, or be a matrix with equally many consecutive rows per "
                    f"sequence, got shape {tuple(output.shape)}"
                )
            pieces.append(piece if cut else piece.index_select(0, own))
        shapes = list(dict.fromkeys(tuple(piece.shape[1:]) for piece in pieces))
        if len(shapes) > 1:
            raise ValueError(
                f"{self.shared.speaker}: the trained copies of {self.where} and the module itself must return the same "
                f"shape for a sequence, got {' and '.join(map(str, shapes))}"
            )
        merged = torch.cat(pieces).index_select(0, order)
        return merged.flatten(0, 1) if pieces[0].dim() > outputs[0].dim() else merged


def _replaced(args: tuple, kwargs: dict[str, Any], old: Tensor, new: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a call with one tensor replaced."""
    return (
        tuple(new if value is old else value for value in args),
        {key: new if value is old else value for key, value in kwargs.items()},
    )
