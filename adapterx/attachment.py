"""Attach adapters to a model and take them off again. The base modules stay."""

import torch
from torch import nn

from adapterx.active import check_not_mixed, keep_compositions, rename_in_compositions
from adapterx.adapters import books_in, check_known, is_recorded, recorded_names
from adapterx.config import AdapterConfig
from adapterx.errors import UnknownAdapterError, speaking_as
from adapterx.fusion import FusionSet
from adapterx.hanging import remove_adapters, unfreeze
from adapterx.host import switchable_modules, walk
from adapterx.planning import check_name, plan_attachment
from adapterx.records import Attachment
from adapterx.route import SwitchableModules


def attach(
    model: nn.Module,
    config: AdapterConfig,
    name: str = "default",
    *,
    active: bool = True,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
) -> Attachment:
    """Hang new adapters on the model, in place, and freeze every parameter that is not an adapter's.

    Args:
        model: any module; the adapters become children (`adapterx`) of the modules they adapt.
        config: what the adapters look like and where they go.
        name: letters, digits, `_` and `-`; not in use yet.
        active: whether this adapter, and no other, becomes the active one; if not, nothing else changes.
        seed: for initial weights that do not depend on the global random numbers and do not move them.
        dtype: floating dtype of what is trained, adapters and trained copies; None takes that of each module, and
            float32 where the module stores 16 bits or fewer, or integers: in float16 or bfloat16 small updates are
            lost, and a GradScaler refuses the gradients. The forward pass returns what the base module returns.

    Returns:
        A report of the chosen modules; print it.

    Raises:
        TypeError: `config` is no AdapterConfig.
        ConfigError: the name, the dtype or the bottleneck does not fit.
        TargetError: the modules to adapt cannot be chosen, or the model is sharded. The model is then as it was.
        RuntimeError: the model is inside a `mixed` block.
    """
    generator = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    with speaking_as("attach"):
        return plan_attachment(model, config, name, generator=generator, dtype=dtype).commit(active=active)


def rename_adapter(model: nn.Module, old: str, new: str) -> None:
    """Give an attached adapter another name, in compositions and fusions, too; nothing else changes.

    Args:
        model: any module that encloses everything that was attached under this name.
        old: its name.
        new: letters, digits, `_` and `-`; not in use yet.

    Raises:
        UnknownAdapterError: it is not attached.
        ConfigError: the new name is none for an adapter, or taken.
        RuntimeError: the model is inside a `mixed` block.
    """
    with speaking_as("rename_adapter"):
        check_not_mixed(model)
        check_known(model, [old])
        check_name(model, new)
    for book in books_in(model):
        book.rename(old, new)
    for _, module in walk(model):
        if isinstance(module, SwitchableModules) and old in module:
            place = module.places[old]
            place.book.strike((place.module, module.child), old)
            place.book.note((place.module, module.child), new)
            module.rename(old, new)
        elif isinstance(module, FusionSet):
            module.rename_adapter(old, new)
    rename_in_compositions(model, old, new)


def detach(model: nn.Module, name: str | None = None) -> None:
    """Undo `attach`; when no adapter is left, parameters get back the `requires_grad` that they had.

    Args:
        model: any module that encloses the adapted ones.
        name: the adapter to take off; None takes off all.

    Raises:
        UnknownAdapterError: it is not attached, or nothing is.
        RuntimeError: the model is inside a `mixed` block.
    """
    with speaking_as("detach"):
        check_not_mixed(model)
        if name is not None and not is_recorded(model, name):
            check_known(model, [name])
        known = (name,) if name is not None else recorded_names(model)
        if not known:
            raise UnknownAdapterError("detach: model must have adapters, none is attached")
    remove_adapters(model, known)
    keep_compositions(model)
    if not any(switchable_modules(model)):
        unfreeze(model)
