"""Hang what was planned on base modules, freeze them, and undo both."""

from collections.abc import Callable
from typing import Any

from torch import nn

from adapterx.host import (
    ADAPTERS,
    COPIES,
    AdapterSet,
    SwitchableModules,
    apply_adapters,
    apply_copies,
    base_modules,
)
from adapterx.records import Place, keep_rosters, rosters_of
from adapterx.targets.sizes import CONTAINERS

# Plain attribute of each base module that owns parameters: their `requires_grad` before the first attachment.
_FORMER_FLAGS = "_adapterx_former_requires_grad"


def hang(model: nn.Module, kind: type[SwitchableModules], module: nn.Module, place: Place) -> None:
    """Put one module into a base module's adapters or copies, which are made where there are none."""
    base, child = model.get_submodule(place.module), ADAPTERS if kind is AdapterSet else COPIES
    if child not in base._modules:
        switchable = kind(place.module)
        hook = apply_adapters if kind is AdapterSet else apply_copies
        # A copy answers in place of the base module; whatever else hangs there, adapters too, acts on its answer.
        switchable.handle = base.register_forward_hook(hook, with_kwargs=True, prepend=child == COPIES)
        setattr(base, child, switchable)
    name, hung = place.attachment.name, base._modules[child]
    hung.hang(name, module.requires_grad_(False), place)
    if place.target is not None and (source := place.target.input_module) is not None:
        hung.capture(name, source, model.get_submodule(source), _around(model, place.module, source))


def _around(model: nn.Module, first: str, second: str) -> nn.Module:
    """Return the innermost module that calls both: lists and dictionaries of modules are never called."""
    chain = [model]
    for part, other in zip(first.split("."), second.split("."), strict=False):
        if part != other:
            break
        chain.append(chain[-1]._modules[part])
    return next((module for module in reversed(chain) if not isinstance(module, CONTAINERS)), model)


def freeze(model: nn.Module) -> None:
    """Freeze the base parameters and note on each module which of them were trainable."""
    for module in base_modules(model).values():
        trainable = [name for name, parameter in module.named_parameters(recurse=False) if parameter.requires_grad]
        if trainable:
            setattr(module, _FORMER_FLAGS, (*getattr(module, _FORMER_FLAGS, ()), *trainable))
            for name in trainable:
                getattr(module, name).requires_grad_(False)


def unfreeze(model: nn.Module) -> None:
    """Give the base parameters back the `requires_grad` that they had before `freeze`."""
    for module in model.modules():
        for name in module.__dict__.pop(_FORMER_FLAGS, ()):
            getattr(module, name).requires_grad_(True)


def remove_adapters(model: nn.Module, names: tuple[str, ...]) -> None:
    """Take the named adapters and, where none is left, the hooks off the model; also what was recorded of them."""
    for module in list(model.modules()):
        keep_rosters(module, tuple(roster for roster in rosters_of(module) if roster.name not in names))
        for child in (ADAPTERS, COPIES):
            switchable = module._modules.get(child)
            if not isinstance(switchable, SwitchableModules):
                _remove_orphans(module, apply_adapters if child == ADAPTERS else apply_copies)
                continue
            for name in names:
                if name in switchable:
                    switchable.remove(name)
            if not switchable:
                switchable.handle.remove()
                delattr(module, child)


def _remove_orphans(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Take a hook off a module that got it from the one whose place it took."""
    for key in [key for key, other in module._forward_hooks.items() if other is hook]:
        module._forward_hooks.pop(key)
        module._forward_hooks_with_kwargs.pop(key, None)
