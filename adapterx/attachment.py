"""Hang adapters on a model and take them off again: plan and check everything, hang, freeze. Base modules stay."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from adapterx.active import check_not_mixed, keep_compositions, set_active, take_over
from adapterx.adapters import adapter_names, check_known
from adapterx.bottleneck import BottleneckAdapter
from adapterx.config import AdapterConfig
from adapterx.errors import ConfigError, TargetError, UnknownAdapterError, speaker, speaking_as
from adapterx.host import (
    ADAPTERS,
    COPIES,
    AdapterSet,
    Attachment,
    ModuleCopies,
    Place,
    SwitchableModules,
    apply_adapters,
    apply_copies,
    base_modules,
)
from adapterx.targets import Target, find_targets

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_ADAPTER_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Plain attribute of each base module that owns parameters: their `requires_grad` before the first attachment.
_FORMER_FLAGS = "_adapterx_former_requires_grad"


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
        dtype: floating dtype of the adapters' parameters; None takes that of each adapted module, and float32 where
            the module stores integers or float8.

    Returns:
        A report of the chosen modules; print it.

    Raises:
        TypeError: `config` is no AdapterConfig.
        ConfigError: the name, the dtype or the bottleneck does not fit.
        TargetError: the modules to adapt cannot be chosen. The model is then as it was.
        RuntimeError: the model is inside a `mixed` block.
    """
    generator = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    with speaking_as("attach"):
        return plan_attachment(model, config, name, generator=generator, dtype=dtype).commit(active=active)


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
        if name is not None:
            check_known(model, [name])
        elif not adapter_names(model):
            raise UnknownAdapterError("detach: model must have adapters, none is attached")
    remove_adapters(model, (name,) if name is not None else adapter_names(model))
    keep_compositions(model, adapter_names(model))
    if not adapter_names(model):
        unfreeze(model)


@dataclass(frozen=True)
class Plan:
    """Everything that `attach` will hang on the model, built and checked; the model is still as it was."""

    model: nn.Module
    report: Attachment
    adapters: dict[str, BottleneckAdapter]  # by qualified name of the base module
    copies: dict[str, nn.Module]  # likewise

    def commit(self, *, active: bool) -> Attachment:
        """Hang the planned modules on the model, freeze the rest, and report."""
        keep_compositions(self.model, adapter_names(self.model))
        freeze(self.model)
        added: dict[str, list[SwitchableModules]] = {}
        for target in self.report.targets:
            adapters = self._hang(target.module, AdapterSet, self.adapters[target.module], target, added)
            if target.input_module is not None:
                source = self.model.get_submodule(target.input_module)
                around = _around(self.model, target.module, target.input_module)
                adapters.capture(self.report.name, target.input_module, source, around)
        for path, module in self.copies.items():
            self._hang(path, ModuleCopies, module, None, added)
        take_over(self.model, added)
        if active:
            set_active(self.model, self.report.name)
        return self.report

    def _hang(
        self,
        path: str,
        kind: type[SwitchableModules],
        module: nn.Module,
        target: Target | None,
        added: dict[str, list[SwitchableModules]],
    ) -> SwitchableModules:
        """Put one module into the base module's adapters or copies, which are made where there are none."""
        base, child = self.model.get_submodule(path), ADAPTERS if kind is AdapterSet else COPIES
        if child not in base._modules:
            switchable = kind(path)
            hook = apply_adapters if kind is AdapterSet else apply_copies
            # A copy answers in place of the base module; whatever else hangs there, adapters too, acts on its answer.
            switchable.handle = base.register_forward_hook(hook, with_kwargs=True, prepend=child == COPIES)
            setattr(base, child, switchable)
            added.setdefault(path, []).append(switchable)
        place = Place(self.report, path, target)
        base._modules[child].hang(self.report.name, module.requires_grad_(False), place)
        return base._modules[child]


def _around(model: nn.Module, first: str, second: str) -> nn.Module:
    """Return the innermost module that calls both: lists and dictionaries of modules are never called."""
    shared = commonprefix([first.split("."), second.split(".")])
    chain = [model]
    for part in shared:
        chain.append(chain[-1]._modules[part])
    return next((module for module in reversed(chain) if not isinstance(module, CONTAINERS)), model)


def plan_attachment(
    model: nn.Module,
    config: AdapterConfig,
    name: str,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    saved: Sequence[str] | None = None,
) -> Plan:
    """Build and check all that `attach` adds, without touching the model; arguments and errors as there.

    `saved` holds the qualified names of the modules that a checkpoint adapts; see `find_targets`.
    """
    if not isinstance(config, AdapterConfig):
        hint = "; AdapterConfig.from_dict makes one of a mapping" if isinstance(config, Mapping) else ""
        raise TypeError(f"{speaker()}: config must be an AdapterConfig, got {type(config).__name__}{hint}")
    check_dtype(dtype)
    check_not_mixed(model)
    check_name(model, name)
    modules = base_modules(model)
    targets, rule = find_targets(modules, config, saved=saved)
    for target in targets:
        _check_free(modules, target)
    adapters = {target.module: _build(modules, target, config, generator, dtype) for target in targets}
    copies = {path: _copy_module(modules, path, targets) for path in config.modules_to_save}
    return Plan(model, Attachment(name, rule, config, targets, config.modules_to_save), adapters, copies)


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
    """Take the named adapters and, where none is left, the hooks off the model."""
    for module in list(model.modules()):
        for child in (ADAPTERS, COPIES):
            switchable = module._modules.get(child)
            if not isinstance(switchable, SwitchableModules):
                continue
            for name in names:
                if name in switchable:
                    switchable.remove(name)
            if not switchable:
                switchable.handle.remove()
                delattr(module, child)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise ConfigError unless adapters can have this dtype, or the one of their modules (None)."""
    if dtype is not None and dtype not in _ADAPTER_DTYPES:
        known = ", ".join(str(known).removeprefix("torch.") for known in _ADAPTER_DTYPES)
        raise ConfigError(f"{speaker()}: dtype must be one of {known}, got {dtype!r}")


def check_name(model: nn.Module, name: str) -> None:
    """Raise ConfigError unless a new adapter of the model can have this name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{speaker()}: name must consist of letters, digits, '_' and '-', got {name!r}")
    if hasattr(AdapterSet(), name):
        raise ConfigError(f"{speaker()}: name must not be an attribute of torch.nn.ModuleDict, got {name!r}")
    if name in adapter_names(model):
        raise ConfigError(
            f"{speaker()}: name must be new, got {name!r}, which is attached already; detach it or choose another"
        )


def _check_free(modules: dict[str, nn.Module], target: Target) -> None:
    """Refuse a module that has a child of our name, or adapters whose ports begin or end in another way."""
    hung = getattr(modules[target.module], ADAPTERS, None)
    if hung is None:
        return
    if not isinstance(hung, AdapterSet):
        raise TargetError(f"{speaker()}: {target.module} has an attribute {ADAPTERS!r} of its own")
    others = {place.target.port.reads for place in hung.places.values()}
    if others - {target.port.reads}:
        raise TargetError(
            f"{speaker()}: adapters of one module must read alike, {target.module} has some that read its "
            f"{others.pop()}, got one that reads its {target.port.reads}"
        )


def _build(
    modules: dict[str, nn.Module],
    target: Target,
    config: AdapterConfig,
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
) -> BottleneckAdapter:
    module = modules[target.module]
    bottleneck_dim = config.resolve_bottleneck_dim(target.hidden_size)
    if bottleneck_dim > target.hidden_size:
        raise ConfigError(
            f"{speaker()}: bottleneck_dim must be at most the hidden size {target.hidden_size} of {target.module}, "
            f"got {bottleneck_dim}"
        )
    device, own_dtype = _device_and_dtype(module, modules[""])
    adapter = BottleneckAdapter(
        target.input_size,
        target.hidden_size,
        bottleneck_dim,
        activation=config.activation,
        scaling=config.scaling,
        dropout=config.dropout,
        down_bias=config.down_bias,
        up_bias=config.up_bias,
        init=config.init,
        init_up=config.init_up,
        generator=generator,
        device=device,
        dtype=dtype or own_dtype,
    )
    return adapter.train(module.training)


def _device_and_dtype(module: nn.Module, model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return where the module computes, and its floating dtype (float32 if it stores integers or float8)."""
    tensors = [*module.parameters(), *module.buffers(), *model.parameters()]
    if not tensors:
        return torch.device("cpu"), torch.float32
    first = tensors[0]
    return first.device, first.dtype if first.dtype in _ADAPTER_DTYPES else torch.float32


def _copy_module(modules: dict[str, nn.Module], path: str, targets: Sequence[Target]) -> nn.Module:
    """Return a copy of a module to be trained by one adapter, free of other adapters and their hooks."""
    if path not in modules or not path:
        raise TargetError(
            f"{speaker()}: modules_to_save must be qualified names of modules, got {path!r}; the top modules are "
            f"{', '.join(name for name in modules if name and '.' not in name) or 'none'}"
        )
    inside = [t.module for t in targets if t.module == path or t.module.startswith(f"{path}.")]
    if inside:
        raise TargetError(
            f"{speaker()}: modules_to_save must not hold modules to be adapted, {path!r} holds {inside[0]!r}"
        )
    if not isinstance(getattr(modules[path], COPIES, ModuleCopies()), ModuleCopies):
        raise TargetError(f"{speaker()}: {path} has an attribute {COPIES!r} of its own")
    parameters = list(modules[path].parameters())
    if not parameters or not all(parameter.is_floating_point() for parameter in parameters):
        raise TargetError(
            f"{speaker()}: modules_to_save must name modules with floating-point parameters, got {path!r}"
        )
    duplicate = copy.deepcopy(modules[path])
    remove_adapters(duplicate, adapter_names(duplicate))
    keep_compositions(duplicate, ())
    return duplicate
