"""What the modules that run one composition share: who picks whom in a batch, and in what order tokens are sorted."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from adapterx import ops
from adapterx.compose.regions import Extent, Region


class Choice:
    """Which of several members each token of a batch picks, none where no region names one; made by `Shared.choice`.

    Args:
        extent: how many sequences and tokens the batch has, as far as that is fixed.
        entries: disjoint regions, each with the number of the member that is picked there.
        count: how many members there are.
    """

    def __init__(self, extent: Extent, entries: tuple[tuple[Region, int], ...], count: int) -> None:
        self.extent, self.entries, self.count = extent, entries, count
        self._indices: dict[torch.device, Tensor] = {}
        self._sorted: dict[tuple[torch.device, tuple[int, ...]], _Sorted] = {}
        self._captured: dict[int, Tensor] = {}  # sorted indices that CUDA graphs read

    def indices(self, device: torch.device) -> Tensor:
        """Return the numbers, -1 for none: int64 `(rows,)`, `(1, tokens)` or `(rows, tokens)`, made once."""
        if device not in self._indices:
            with lasting():
                self._indices[device] = self._table().to(device)
        return self._indices[device]

    def _table(self) -> Tensor:
        rows, tokens = self.extent
        table = torch.full((rows or 1, tokens or 1), -1)
        for region, number in self.entries:
            chosen = slice(None) if region.rows is None else list(region.rows)
            table[chosen, slice(None) if region.tokens is None else slice(*region.tokens)] = number
        return table[:, 0].contiguous() if tokens is None else table

    def sorted_indices(self, indices: Tensor, tokens: Tensor) -> Tensor:
        """Return the indices as the operator works with them best.

        The kernels of a GPU sort the tokens by adapter. The order is that of the layer before, so one sort serves all.
        """
        # What is recorded must serve other numbers of tokens and other devices.
        if indices.device.type not in ops.SORTING_DEVICES or torch.jit.is_tracing() or torch.compiler.is_exporting():
            return indices
        num_tokens = tokens.shape[:-1].numel()
        if torch.compiler.is_compiling():
            return ops.sort_tokens(indices, num_tokens, self.count)  # a training graph makes one of equal calls
        return self._sort(indices, num_tokens)

    def _sort(self, indices: Tensor, num_tokens: int) -> Tensor:
        """Return the last result where it still holds: memory is filled in the order of one stream."""
        key = indices.device, tuple(indices.shape)
        stream, capturing = _stream(indices.device)
        last = self._sorted.get(key)
        # A graph runs when what was queued before its capture is over, and as long as the composition lasts.
        if last is not None and last.num_tokens == num_tokens and (capturing or last.stream == stream):
            if capturing:
                self._captured[id(last.result)] = last.result
            return last.result
        with lasting():
            result = ops.sort_tokens(indices, num_tokens, self.count)
        # A capture runs nothing: until the graph does, the memory holds no order. Under a fake mode it never will.
        if not capturing and type(result) is Tensor:
            self._sorted[key] = _Sorted(num_tokens, stream, result)
        return result


class _Steps:
    """How many steps all optimizers have taken: a fused one changes parameters without counting up their versions."""

    count = 0
    handle: Any = None

    @classmethod
    def watch(cls) -> None:
        """Count from now on."""
        if cls.handle is None:
            cls.handle = register_optimizer_step_post_hook(cls._note)

    @classmethod
    def _note(cls, *_: Any) -> None:
        cls.count += 1


REPEATING: set[int] = set()
"""Identities of the modules that run now, and have repeated their inputs for `Parallel`."""


class Shared:
    """What the modules share that run one composition.

    Args:
        speaker: the public function that chose the composition, for messages in forward passes.
        in_block: whether the end of a `with` block freezes again what trains now.
        in_shares: whether each entry is for an equal share of the batch, however large that is, and not for a sequence.
        repeated: whether a model must have repeated its inputs for these shares, as for `Parallel`.
    """

    def __init__(
        self, speaker: str = "set_active", *, in_block: bool = False, in_shares: bool = False, repeated: bool = False
    ) -> None:
        self.speaker, self.in_block, self.in_shares, self.repeated = speaker, in_block, in_shares or repeated, repeated
        self.refrozen: list[nn.Parameter] = []  # trained inside the block, frozen again by its end
        self._choices: dict[tuple, Choice] = {}
        _Steps.watch()

    @property
    def optimizer_steps(self) -> int:
        """How many steps all optimizers have taken so far."""
        return _Steps.count

    def choice(self, extent: Extent, entries: tuple[tuple[Region, int], ...], count: int) -> Choice:
        """Return one choice for all modules that choose alike, so that they share its order."""
        key = extent, entries, count
        if key not in self._choices:
            self._choices[key] = Choice(extent, entries, count)
        return self._choices[key]

    def refuse_late_backward(self, output: Tensor, *modules: nn.Module) -> None:
        """Let the backward pass complain where the end of the block would make autograd drop gradients of `modules`."""
        if self.in_block and output.requires_grad and not torch.compiler.is_compiling():
            output.register_hook(partial(self._check_open, modules))

    def _check_open(self, modules: tuple[nn.Module, ...], _gradient: Tensor) -> None:
        lost = {id(parameter) for parameter in self.refrozen if not parameter.requires_grad}
        if lost and any(id(parameter) in lost for module in modules for parameter in module.parameters()):
            raise RuntimeError(
                "mixed: backward() must run inside the `with` block; its end has frozen adapters that were frozen "
                "before it, and their gradients would be lost"
            )

    def spread(self, tensor: Tensor, extent: Extent, where: str) -> Tensor:
        """Return a view of hidden states, `(rows, tokens, ..., size)` as far as the extent fixes these.

        Raises:
            ValueError: the shape does not fit; the message names the module, `where`.
        """
        rows, tokens = extent
        if tokens is None:
            spread = tensor if rows is None else self.split(tensor, rows) if tensor.dim() > 1 else None
        elif tensor.dim() == 2 and tensor.shape[0] % tokens == 0 and rows in (None, tensor.shape[0] // tokens):
            spread = tensor.unflatten(0, (-1, tokens))
        else:
            fits = tensor.dim() > 2 and tensor.shape[1] == tokens and rows in (None, tensor.shape[0])
            spread = tensor if fits else None
        if spread is None:
            raise ValueError(
                f"{self.speaker}: the hidden states of {where} must be {self._wanted(extent)}, got shape "
                f"{tuple(tensor.shape)}"
            )
        return spread

    def split(self, tensor: Tensor, count: int) -> Tensor | None:
        """Return a view with one entry of the first dimension per sequence, or share; None if the shape forbids it."""
        rows = tensor.shape[0] if tensor.dim() else 0
        if self.repeated and not REPEATING and torch._C._current_graph_task_id() == -1:  # a backward pass may recompute
            raise RuntimeError(
                "set_active: a model with Parallel must be called as a whole, for it repeats its inputs; call the "
                "module that it was set on"
            )
        if self.in_shares and rows != count:
            return tensor.unflatten(0, (count, rows // count)) if rows and rows % count == 0 else None
        return split_sequences(tensor, count)

    def _wanted(self, extent: Extent) -> str:
        rows, tokens = extent
        if tokens is None:
            named = "one entry of names per sequence" if self.in_block else "the sum of batch_sizes"
            return f"({rows}, ..., hidden_size), {named}, or a matrix with equally many consecutive rows per sequence"
        return (
            f"({'batch' if rows is None else rows}, {tokens}, ..., hidden_size), the sum of splits being the length of "
            f"the sequence, or a matrix with {tokens} consecutive rows per sequence"
        )


class _Sorted(NamedTuple):
    """What `sort_tokens` returned for so many tokens, and the stream on which it did."""

    num_tokens: int
    stream: int
    result: Tensor


def _stream(device: torch.device) -> tuple[int, bool]:
    """Return the stream that work on the device is queued on, and whether a CUDA graph is captured from it."""
    if device.type != "cuda":
        return 0, False
    return torch.cuda.current_stream(device).cuda_stream, torch.cuda.is_current_stream_capturing()


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
