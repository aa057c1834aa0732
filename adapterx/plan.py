"""Build and check everything that an attachment adds before the model is touched; hang it on; take it off again."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from adapterx.bottleneck import BottleneckAdapter
from adapterx.composition import active_adapters, adapter_names, check_not_mixed, set_active, switchable_modules
from adapterx.config import AdapterConfig
from adapterx.errors import ConfigError, TargetError
from adapterx.modules import (
    ADAPTERS,
    COPIES,
    AdapterSet,
    InputCapture,
    ModuleCopies,
    Record,
    SwitchableModules,
    apply_adapters,
    apply_copies,
)
from adapterx.targets import Selection, Target, find_targets

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_ADAPTER_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Plain attribute of each base module that owns parameters: their `requires_grad` before the first attachment.
_FORMER_FLAGS = "_adapterx_former_requires_grad"


@dataclass(frozen=True)
class Attachment:
    """What `attach` has done; print it.

    Attributes:
        name: the adapter's name.
        rule: how the modules were chosen, in words.
        config: the adapter's configuration.
        targets: the adapted modules.
        modules_to_save: the modules of which the adapter trains a copy.
    """

    name: str
    rule: str
    config: AdapterConfig
    targets: tuple[Target, ...]
    modules_to_save: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"adapter {self.name!r} on {len(self.targets)} modules, chosen by {self.rule}"]
        for target in self.targets:
            width = self.config.resolve_bottleneck_dim(target.hidden_size)
            source = f", reads the input of {target.input_module}" if target.input_module else ""
            sizes = f"{target.input_size} -> {width} -> {target.hidden_size}"
            lines.append(f"  {target.module} ({target.position}): {sizes}{source}")
        lines += [f"  {name}: trained copy" for name in self.modules_to_save]
        return "\n".join(lines)


@dataclass(frozen=True)
class Plan:
    """Everything that `attach` will hang on the model, built and checked; the model is still as it was."""

    model: nn.Module
    report: Attachment
    adapters: dict[str, BottleneckAdapter]  # by qualified name of the base module
    copies: dict[str, nn.Module]  # likewise

    def commit(self, *, active: bool) -> Attachment:
        """Hang the planned modules on the model, freeze the rest, and report."""
        existing = switchable_modules(self.model)
        state = (active_adapters(self.model), max((s.disabled_depth for s in existing), default=0))
        freeze(self.model)
        for target in self.report.targets:
            adapters = _child(self.model.get_submodule(target.module), ADAPTERS, state)
            adapters[self.report.name] = self.adapters[target.module].requires_grad_(False)
            adapters.records[self.report.name] = Record(self.report.config, target, self.report.rule)
            if target.input_module is not None:
                capture = InputCapture(adapters, self.report.name)
                source = self.model.get_submodule(target.input_module)
                capture.handle = source.register_forward_pre_hook(capture.store, with_kwargs=True)
                adapters.captures[self.report.name] = capture
        for module_name, module in self.copies.items():
            copies = _child(self.model.get_submodule(module_name), COPIES, state)
            copies[self.report.name] = module.requires_grad_(False)
        if active:
            set_active(self.model, self.report.name)
        return self.report


def plan_attachment(
    model: nn.Module,
    config: AdapterConfig,
    name: str,
    *,
    generator: torch.Generator | None = None,
    saved: Sequence[str] | None = None,
    function: str = "attach",
) -> Plan:
    """Build and check all that `attach` adds, without touching the model; arguments and errors as there."""
    check_not_mixed(model, function=function)
    _check_name(model, name, function)
    modules = base_modules(model)
    selection = find_targets(
        modules,
        placement=config.placement,
        positions=config.positions,
        layers=config.layers,
        target_modules=config.target_modules,
        saved=saved,
    )
    adapters = {target.module: _build(modules, target, config, generator) for target in selection.targets}
    copies = {path: _copy_module(modules, path, selection) for path in config.modules_to_save}
    report = Attachment(name, selection.rule, config, selection.targets, config.modules_to_save)
    return Plan(model, report, adapters, copies)


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the model's own modules by qualified name, without what adapterx has added."""
    modules: dict[str, nn.Module] = {}
    added = [f"{name}." for name, module in model.named_modules() if isinstance(module, SwitchableModules)]
    for name, module in model.named_modules():
        if not any(f"{name}.".startswith(prefix) for prefix in added):
            modules[name] = module
    return modules


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
                    del switchable[name]
                    if isinstance(switchable, AdapterSet):
                        del switchable.records[name]
                        if name in switchable.captures:
                            switchable.captures.pop(name).handle.remove()
            switchable.active = tuple(name for name in switchable.active if name not in names)
            if not switchable:
                switchable.handle.remove()
                delattr(module, child)


def _check_name(model: nn.Module, name: str, function: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{function}: name must consist of letters, digits, '_' and '-', got {name!r}")
    if hasattr(SwitchableModules(), name) or hasattr(AdapterSet(), name):
        raise ConfigError(f"{function}: name must not be an attribute of torch.nn.ModuleDict, got {name!r}")
    if name in adapter_names(model):
        raise ConfigError(
            f"{function}: name must be new, got {name!r}, which is attached already; detach it or choose another"
        )


def _build(
    modules: dict[str, nn.Module], target: Target, config: AdapterConfig, generator: torch.Generator | None
) -> BottleneckAdapter:
    module = modules[target.module]
    if not isinstance(getattr(module, ADAPTERS, AdapterSet()), AdapterSet):
        raise TargetError(f"attach: {target.module} has an attribute {ADAPTERS!r} of its own")
    bottleneck_dim = config.resolve_bottleneck_dim(target.hidden_size)
    if bottleneck_dim > target.hidden_size:
        raise ConfigError(
            f"attach: bottleneck_dim must be at most the hidden size {target.hidden_size} of {target.module}, "
            f"got {bottleneck_dim}"
        )
    device, dtype = _device_and_dtype(module, modules[""])
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
        dtype=dtype,
    )
    return adapter.train(module.training)


def _device_and_dtype(module: nn.Module, model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return where the module computes, and its floating dtype (float32 if it stores integers or float8)."""
    tensors = [*module.parameters(), *module.buffers(), *model.parameters()]
    if not tensors:
        return torch.device("cpu"), torch.float32
    first = tensors[0]
    return first.device, first.dtype if first.dtype in _ADAPTER_DTYPES else torch.float32


def _copy_module(modules: dict[str, nn.Module], path: str, selection: Selection) -> nn.Module:
    """Return a copy of a module to be trained by one adapter, free of other adapters and their hooks."""
    if path not in modules or not path:
        raise TargetError(
            f"attach: modules_to_save must be qualified names of modules, got {path!r}; the top modules are "
            f"{', '.join(name for name in modules if name and '.' not in name) or 'none'}"
        )
    inside = [t.module for t in selection.targets if t.module == path or t.module.startswith(f"{path}.")]
    if inside:
        raise TargetError(f"attach: modules_to_save must not hold modules to be adapted, {path!r} holds {inside[0]!r}")
    if not isinstance(getattr(modules[path], COPIES, ModuleCopies()), ModuleCopies):
        raise TargetError(f"attach: {path} has an attribute {COPIES!r} of its own")
    parameters = list(modules[path].parameters())
    if not parameters or not all(parameter.is_floating_point() for parameter in parameters):
        raise TargetError(f"attach: modules_to_save must name modules with floating-point parameters, got {path!r}")
    duplicate = copy.deepcopy(modules[path])
    remove_adapters(duplicate, adapter_names(duplicate))
    return duplicate


def _child(module: nn.Module, child: str, state: tuple[tuple[str, ...], int]) -> SwitchableModules:
    """Return the module's adapter set or copies; a new one takes over which adapters are active in the model."""
    if child not in module._modules:
        switchable = AdapterSet() if child == ADAPTERS else ModuleCopies()
        switchable.active, switchable.disabled_depth = state
        hook = apply_adapters if child == ADAPTERS else apply_copies
        # A copy answers in place of the base module; whatever else hangs there, adapters too, then acts on its answer.
        switchable.handle = module.register_forward_hook(hook, with_kwargs=True, prepend=child == COPIES)
        setattr(module, child, switchable)
    return module._modules[child]
