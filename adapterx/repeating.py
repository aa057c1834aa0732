"""A model that repeats its inputs, for the parts of a `Parallel` composition."""

from typing import Any

from torch import nn

from adapterx.compose.batch import REPEATING
from adapterx.compose.expression import Composition, Stack
from adapterx.compose.naming import copies_in
from adapterx.host import switchable_modules
from adapterx.replicas import repeat_inputs

_HANDLES = "_adapterx_repeating"  # plain attribute of such a model: the handles of its hooks


def follow_composition(model: nn.Module, composition: Composition | None) -> None:
    """Let a model repeat its inputs where its composition wants copies, and not where it has none."""
    wanted = composition is not None and copies_in(composition) > 0
    if wanted and _HANDLES not in vars(model):
        before = model.register_forward_pre_hook(repeat_for_parts, with_kwargs=True)
        setattr(model, _HANDLES, (before, model.register_forward_hook(end_repeating, always_call=True)))
    elif not wanted:
        for handle in vars(model).pop(_HANDLES, ()):
            handle.remove()


def repeat_for_parts(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Forward pre-hook. A plain function: copies and pickles of a model so ask for their own composition."""
    first = next(iter(switchable_modules(model)), None)
    composition, shared = (Stack(), None) if first is None else first.route.in_effect()
    copies = copies_in(composition)
    if not copies or not shared.repeated:  # an open block has another composition, or repeats by itself
        return None
    REPEATING.add(id(model))
    return repeat_inputs(args, kwargs, copies, "set_active")[1:]


def end_repeating(model: nn.Module, *_: Any) -> None:
    """Forward hook, which an exception calls too."""
    REPEATING.discard(id(model))
