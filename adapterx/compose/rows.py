"""Serve one batch by an adapter that takes no part in a grouped call: it runs on its own sequences alone."""

import torch
from torch import Tensor

from adapterx.bottleneck import BottleneckAdapter
from adapterx.compose.batch import MixedBatch, lasting, sequences_of


class AdapterRows:
    """The sequences of a batch that picked one adapter.

    Args:
        name: of the adapter; picked by at least one sequence.
        batch: which sequence picks which.
        where: qualified name of the base module, for messages.
    """

    def __init__(self, name: str, batch: MixedBatch, where: str) -> None:
        self.batch, self.where = batch, where
        self.numbers = [number for number, picked in enumerate(batch.names) if picked == name]
        self._rows: dict[torch.device, Tensor] = {}

    def __call__(self, adapter: BottleneckAdapter, source: Tensor, base: Tensor, hidden_states: Tensor) -> Tensor:
        """Return the hidden states with those sequences as the adapter changes them.

        Args:
            adapter: the adapter.
            source: what it reads, `(batch, ..., input_size)`, or `(batch * tokens, input_size)`.
            base: what it adds to, likewise.
            hidden_states: what the other sequences keep, in the shape of `base`.

        Raises:
            ValueError: the first dimension does not fit the number of sequences.
        """
        split = sequences_of(hidden_states, self.batch, self.where)
        own_source = self._own(source)
        result = adapter(own_source, own_source if source is base else self._own(base))
        self.batch.refuse_late_backward(result, adapter)
        rows = self._on(hidden_states.device)
        result = result.to(split.dtype).view(len(rows), *split.shape[1:])
        return split.index_copy(0, rows, result).view_as(hidden_states)

    def _own(self, tensor: Tensor) -> Tensor:
        split = sequences_of(tensor, self.batch, self.where)
        own = split.index_select(0, self._on(tensor.device))
        # A share of a batch holds several sequences, which the adapter must be able to tell apart.
        return own.flatten(0, 1) if self.batch.in_shares and split.dim() > tensor.dim() else own

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._rows:
            with lasting():
                self._rows[device] = torch.tensor(self.numbers, device=device)
        return self._rows[device]
