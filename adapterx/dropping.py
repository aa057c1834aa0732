"""AdapterDrop in training: a random number of the lowest blocks goes without adapters in each step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from adapterx.active import skip_layers
from adapterx.checks import shown
from adapterx.errors import ConfigError
from adapterx.host import AdapterSet, switchable_modules


@contextmanager
def adapter_drop(
    model: nn.Module, at_most: int | None = None, *, generator: torch.Generator | None = None
) -> Iterator[int]:
    """Leave out the adapters of a random number of the lowest blocks inside the `with` block.

    With a new block for each training step the model learns to do without them, and may leave out as many as it can
    afford when it is used (`skip_layers`, or `set_active(skip_layers=)`).

    Args:
        model: any module that encloses the adapted ones. In an encoder-decoder, blocks of one index go together.
        at_most: how many blocks to leave out at most; None leaves at least one.
        generator: source of the random number, on the CPU; None takes the global one.

    Yields:
        How many blocks are left out, from 0 to `at_most` with equal probability.

    Raises:
        ConfigError: `at_most` is no number of blocks that the model has.

    Source:
        Rücklé et al. 2021 (AdapterDrop), section 3.
    """
    blocks = sorted(
        {
            target.block
            for hung in switchable_modules(model)
            if isinstance(hung, AdapterSet) and (target := next(iter(hung.places.values())).target).block is not None
        }
    )
    most = max(len(blocks) - 1, 0) if at_most is None else at_most
    if isinstance(most, bool) or not isinstance(most, int) or not 0 <= most <= len(blocks):
        raise ConfigError(
            f"adapter_drop: at_most must be a number of blocks from 0 to {len(blocks)}, got {shown(at_most)}"
        )
    count = int(torch.randint(most + 1, (), generator=generator))
    with skip_layers(model, blocks[:count]):
        yield count
