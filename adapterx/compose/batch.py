"""Which adapter each sequence of a batch picks, and where its rows are."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapterx import ops
from adapterx.compose.expression import Pick


class MixedBatch:
    """Which adapter each sequence of a batch picks inside one `mixed` block, and what the block must remember.

    Args:
        pick: the names.
        in_shares: whether each name is for an equal share of the batch, however large that is, and not for a sequence.
    """

    def __init__(self, pick: Pick, *, in_shares: bool = False) -> None:
        self.pick, self.names, self.in_shares = pick, pick.parts, in_shares
        self.size = len(self.names)
        self.optimizer_steps = 0  # of all optimizers since the block began
        self.refrozen: list[nn.Parameter] = []  # trained inside the block, frozen again by its end
        self._indices: dict[tuple[tuple[str, ...], torch.device], Tensor] = {}
        self._sorted: dict[tuple[tuple[str, ...], torch.device], _Sorted] = {}
        self._captured: dict[int, Tensor] = {}  # sorted indices that CUDA graphs read

    def split(self, tensor: Tensor, count: int | None = None) -> Tensor | None:
        """Return a view with one entry of the first dimension per name; None if the shape does not allow it.

        Args:
            tensor: `(batch, ...)`, or a matrix of which equally many consecutive rows belong to each sequence.
            count: of how many names it holds the entries; None means all.
        """
        count = self.size if count is None else count
        rows = tensor.shape[0] if tensor.dim() else 0
        if self.in_shares and rows != count:
            return tensor.unflatten(0, (count, rows // count)) if rows and rows % count == 0 else None
        return split_sequences(tensor, count)

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

    def sorted_indices(self, members: tuple[str, ...], indices: Tensor, tokens: Tensor) -> Tensor:
        """Return the indices of the members as the operator works with them best for `(batch, ..., size)` tokens.

        The kernels of a GPU sort the tokens by adapter. The order is that of the layer before, so one sort serves all.
        """
        # What is recorded must serve other numbers of tokens and other devices.
        if indices.device.type not in ops.SORTING_DEVICES or torch.jit.is_tracing() or torch.compiler.is_exporting():
            return indices
        num_tokens = tokens.shape[:-1].numel()
        if torch.compiler.is_compiling():
            return ops.sort_tokens(indices, num_tokens, len(members))  # a training graph makes one of equal calls
        return self._sort(members, indices, num_tokens)

    def _sort(self, members: tuple[str, ...], indices: Tensor, num_tokens: int) -> Tensor:
        """Return the last result where it still holds: memory is filled in the order of one stream."""
        key = members, indices.device
        stream, capturing = _stream(indices.device)
        last = self._sorted.get(key)
        # A graph runs when what was queued before its capture is over, and as long as the block lasts.
        if last is not None and last.num_tokens == num_tokens and (capturing or last.stream == stream):
            if capturing:
                self._captured[id(last.result)] = last.result
            return last.result
        with lasting():
            result = ops.sort_tokens(indices, num_tokens, len(members))
        # A capture runs nothing: until the graph does, the memory holds no order. Under a fake mode it never will.
        if not capturing and type(result) is Tensor:
            self._sorted[key] = _Sorted(num_tokens, stream, result)
        return result

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


def sequences_of(tensor: Tensor, batch: MixedBatch, where: str) -> Tensor:
    """Return the hidden states of a module, of the name `where`, with one entry of the first dimension per sequence.

    Raises:
        ValueError: the shape does not fit the number of sequences.
    """
    split = batch.split(tensor) if tensor.dim() > 1 else None
    if split is None:
        raise ValueError(
            f"mixed: the hidden states of {where} must be ({batch.size}, ..., hidden_size), one entry of names per "
            f"sequence, or a matrix with equally many consecutive rows per sequence, got shape {tuple(tensor.shape)}"
        )
    return split
