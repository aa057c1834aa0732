"""Parts of a batch: some of its rows, and a stretch of their tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Extent(NamedTuple):
    """How many sequences and how many tokens of each a composition needs; None: any number."""

    rows: int | None = None
    tokens: int | None = None


class Region(NamedTuple):
    """Some rows of a batch and a stretch of their tokens; None: all."""

    rows: tuple[int, ...] | None = None
    tokens: tuple[int, int] | None = None

    def cut(self, tensor: Tensor) -> Tensor:
        """Return what lies in the region, of a tensor `(batch, tokens, ...)`."""
        if self.rows is not None:
            first, last = self.rows[0], self.rows[-1]
            in_a_row = self.rows == tuple(range(first, last + 1))
            tensor = tensor[first : last + 1] if in_a_row else tensor.index_select(0, _index(self.rows, tensor))
        return tensor if self.tokens is None else tensor[:, self.tokens[0] : self.tokens[1]]

    def put(self, tensor: Tensor, piece: Tensor) -> Tensor:
        """Return the tensor with another piece in this region."""
        if self.tokens is not None:
            whole = Region(self.rows).cut(tensor)
            piece = torch.cat([whole[:, : self.tokens[0]], piece, whole[:, self.tokens[1] :]], dim=1)
        if self.rows is None:
            return piece
        own = set(self.rows)
        others = [row for row in range(tensor.shape[0]) if row not in own]
        place = {row: index for index, row in enumerate((*others, *self.rows))}
        order = _index([place[row] for row in range(tensor.shape[0])], tensor)
        return torch.cat([tensor.index_select(0, _index(others, tensor)), piece]).index_select(0, order)


def _index(rows: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=like.device)
