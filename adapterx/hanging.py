"""Hang what was planned on base modules, freeze them, and undo both."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from adapterx.couplings import INVERTIBLES, OutputCouplings, change_input, change_output
from adapterx.devices import copy_in_memory
from adapterx.fusion import FUSIONS, FusionSet
from adapterx.host import (
    ADAPTERS,
    COPIES,
    AdapterSet,
    ModuleCopies,
    apply_adapters,
    apply_copies,
    base_modules,
    is_hung,
    walk,
)
from adapterx.neighbours import others_parameters
from adapterx.records import Place, book_of, close_book
from adapterx.route import SwitchableModules
from adapterx.targets.sizes import CONTAINERS

# Plain attribute of each base module that owns parameters: their `requires_grad` before the first attachment.
_FORMER_FLAGS = "_adapterx_former_requires_grad"


def hang(model: nn.Module, kind: type[SwitchableModules], module: nn.Module, place: Place) -> SwitchableModules | None:
    """Put one module among those of its kind that hang on a base module; return these if they are new."""
    base, child = model.get_submodule(place.module), kind.child
    new = None
    if child not in base._modules:
        new = switchable = kind(place.module)
        switchable.handle = _register(kind, base)
        setattr(base, child, switchable)
    name, hung = place.attachment.name, base._modules[child]
    hung.hang(name, module.requires_grad_(False), place)
    if place.target is not None and (source := place.target.input_module) is not None:
        hung.capture(name, source, model.get_submodule(source), _around(model, place.module, source))
    return new


_HOOKS = {ADAPTERS: (apply_adapters,), COPIES: (apply_copies,), INVERTIBLES: (change_output, change_input)}


def _register(kind: type[SwitchableModules], base: nn.Module) -> RemovableHandle:
    if issubclass(kind, AdapterSet):
        return base.register_forward_hook(apply_adapters, with_kwargs=True)
    if kind is ModuleCopies:
        # A copy answers in place of the base module; whatever else hangs there, adapters too, acts on its answer.
        return base.register_forward_hook(apply_copies, with_kwargs=True, prepend=True)
    if kind is OutputCouplings:
        return base.register_forward_hook(change_output, with_kwargs=True)
    # Before the hooks that capture what a module receives.
    return base.register_forward_pre_hook(change_input, with_kwargs=True, prepend=True)


def _around(model: nn.Module, first: str, second: str) -> nn.Module:
    """Return the innermost module that calls both: lists and dictionaries of modules are never called."""
    chain = [model]
    for part, other in zip(first.split("."), second.split("."), strict=False):
        if part != other:
            break
        chain.append(chain[-1]._modules[part])
    return next((module for module in reversed(chain) if not isinstance(module, CONTAINERS)), model)


def freeze(model: nn.Module) -> None:
    """Freeze the base parameters, but for what PEFT trains there; note on each module which of them were trainable."""
    modules = base_modules(model)
    others = others_parameters(modules)
    for module in modules.values():
        trainable = [
            name
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad and id(parameter) not in others
        ]
        if trainable:
            setattr(module, _FORMER_FLAGS, (*getattr(module, _FORMER_FLAGS, ()), *trainable))
            for name in trainable:
                getattr(module, name).requires_grad_(False)


def unfreeze(model: nn.Module) -> None:
    """Give the base parameters back the `requires_grad` that they had before `freeze`."""
    for module in base_modules(model).values():
        for name in module.__dict__.pop(_FORMER_FLAGS, ()):
            getattr(module, name).requires_grad_(True)


def remove_adapters(model: nn.Module, names: Collection[str]) -> None:
    """Take the named adapters and, where none is left, the hooks off the model; also what was recorded of them.

    Fusions of a named adapter go with it: they have learnt about it, and not about the next one of its name.
    """
    for module in base_modules(model).values():
        if (book := book_of(module)) is not None:
            for name in names:
                book.forget(name)
            if not book.hung:
                close_book(module)
        for child, hooks in _HOOKS.items():
            switchable = module._modules.get(child)
            if not isinstance(switchable, SwitchableModules):
                _remove_orphans(module, hooks)
                continue
            for name in names:
                if name in switchable:
                    switchable.remove(name)
            if not switchable:
                switchable.handle.remove()
                delattr(module, child)
        fusions = module._modules.get(FUSIONS)
        if isinstance(fusions, FusionSet):
            fusions.remove_those_of(names)
            if not fusions:
                delattr(module, FUSIONS)


def bare_copy(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Return a copy of a base module without what hangs in it, which is never copied; arguments as `copy_in_memory`."""
    paths = {name: each for name, each in walk(module) if is_hung(each)}
    duplicate = copy_in_memory(module, dtype, list(base_modules(module).values()), without=list(paths.values()))
    for path in paths:
        owner, _, child = path.rpartition(".")
        delattr(duplicate.get_submodule(owner), child)
    for each in duplicate.modules():
        close_book(each)
        for hooks in _HOOKS.values():
            _remove_orphans(each, hooks)
    return duplicate


def _remove_orphans(module: nn.Module, hooks: tuple[Callable[..., Any], ...]) -> None:
    """Take hooks off a module that got them from the one whose place it took."""
    for registered, marks in (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for key in [key for key, other in registered.items() if other in hooks]:
            registered.pop(key)
            marks.pop(key, None)
