"""One batch with an adapter for each sequence, as PEFT asks for it: `model(..., adapter_names=[...])`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from adapterx.active import mixed
from adapterx.integrations.peft.choosing import wrappers

BASE = "__base__"  # PEFT's word for a sequence without an adapter


@contextmanager
def mixed_batch(model: nn.Module, known: Collection[str], options: Mapping[str, Any]) -> Iterator[None]:
    """Run each sequence with the adapter that `adapter_names` among the options names; without it nothing changes.

    The adapted modules call the operator once for all adapters (`adapterx.mixed`); modules to save are run by PEFT,
    each adapter's on its own sequences.

    Args:
        model: what the `PeftModel` wraps.
        known: the adapters that there are.
        options: keyword arguments of the forward pass, or of `generate`.

    Raises:
        ValueError: the model is in training mode, an adapter is not known, or has no copy of a module to save.
    """
    names = options.get("adapter_names")
    if names is None:
        yield
        return
    _check(model, names, known)
    copies = _rows_per_sequence(options)
    expanded = [name for name in names for _ in range(copies)]
    encoder = model.get_encoder() if copies > 1 and getattr(model.config, "is_encoder_decoder", False) else None
    with ExitStack() as stack:
        _enter(stack, model, expanded)
        if encoder is not None:  # which runs before the sequences are repeated
            _enter(stack, encoder, names)
        yield


def _enter(stack: ExitStack, model: nn.Module, names: Sequence[str]) -> None:
    stack.enter_context(mixed(model, [None if name == BASE else name for name in names]))
    for wrapper in wrappers(model):
        handle = wrapper.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "adapter_names": list(names)}), with_kwargs=True
        )
        stack.callback(handle.remove)


def _rows_per_sequence(options: Mapping[str, Any]) -> int:
    """Return how often `generate` repeats each sequence of the batch."""
    settings = options.get("generation_config")
    counts = []
    for name in ("num_beams", "num_return_sequences"):
        count = options.get(name, getattr(settings, name, None))
        counts.append(count if isinstance(count, int) else 1)
    return max(1, *counts)


def _check(model: nn.Module, names: Sequence[str], known: Collection[str]) -> None:
    if model.training:
        raise ValueError("adapter_names: the model must be in eval mode, got training mode; adapterx.mixed trains, too")
    wanted = set(names) - {BASE}
    if strange := sorted(wanted - set(known)):
        raise ValueError(f"adapter_names: each must be an adapter of the model or {BASE!r}, got {strange}")
    for wrapper in wrappers(model):
        active = wrapper.active_adapters
        if lacking := sorted(wanted - wrapper._adapters) or (not active and sorted(wanted)):
            raise ValueError(
                f"adapter_names: adapters of one batch must all have the same modules_to_save, and the active one too, "
                f"got none for {lacking} of {type(wrapper.original_module).__name__}"
            )
