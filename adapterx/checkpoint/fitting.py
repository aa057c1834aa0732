"""Copy saved tensors into a module's own: all of them, or none."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapterx.errors import CheckpointError, speaker
from adapterx.sharding import like

_SHOWN = 8  # names in a message; a large model has thousands


def check_fit(
    own: Mapping[str, Tensor], saved: Mapping[str, Tensor], folder: str | Path, *, planned: bool = False
) -> None:
    """Check that `copy_into` can copy every saved tensor, and leaves none of the module's own as it is.

    Args:
        own: the module's tensors by name.
        saved: what was read from the folder; dtypes may differ, but not in being floating-point.
        folder: for the message.
        planned: whether `own` stands for tensors that have yet to be given memory, and may be on the meta device.

    Raises:
        CheckpointError: names or shapes differ, or there is nothing to copy into; the text lists what does not fit.
    """
    problems = []
    if missing := sorted(own.keys() - saved.keys()):
        problems.append(f"missing tensors {listed(missing)}")
    if extra := sorted(saved.keys() - own.keys()):
        problems.append(f"unknown tensors {listed(extra)}")
    shared = sorted(own.keys() & saved.keys())
    shapes = {name: (list(saved[name].shape), list(own[name].shape)) for name in shared}
    if wrong := [f"{name} {found} instead of {wanted}" for name, (found, wanted) in shapes.items() if found != wanted]:
        problems.append(f"wrong shapes {listed(wrong)}")
    if kinds := [name for name in shared if saved[name].is_floating_point() != own[name].is_floating_point()]:
        problems.append(f"wrong dtypes {listed(kinds)}")
    if not planned and (on_meta := [name for name in shared if own[name].is_meta]):
        problems.append(f"the model is on the meta device, give it memory first: {listed(on_meta)}")
    if problems:
        raise CheckpointError(f"{speaker()}: {folder} does not fit the model: {'; '.join(problems)}")


@torch.no_grad()
def copy_into(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy the saved tensors, converting dtype and device, into those of the same name, which keep their identity.

    Of a tensor that is sharded each process fills its part; none waits for another.
    """
    for name, tensor in own.items():
        tensor.copy_(like(tensor, saved[name]))


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{list(names[:_SHOWN])}{more}"
