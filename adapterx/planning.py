"""Plan an attachment: choose the modules, build and check everything, and only then touch the model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from adapterx.active import check_not_mixed, keep_compositions, set_active, take_over
from adapterx.adapters import check_whole, is_attached
from adapterx.bottleneck import BottleneckAdapter
from adapterx.config import AdapterConfig
from adapterx.couplings import INVERTIBLES, Couplings, HeadCouplings, InputCouplings, OutputCouplings
from adapterx.devices import ADAPTER_DTYPES, device_and_dtype, trained_dtype
from adapterx.errors import ConfigError, TargetError, speaker
from adapterx.hanging import bare_copy, freeze, hang
from adapterx.host import ADAPTERS, COPIES, AdapterSet, ModuleCopies, base_modules
from adapterx.invertible import InvertibleAdapter
from adapterx.neighbours import outside_of_others, replaced_by_others
from adapterx.phm import Factors
from adapterx.records import Attachment, Place, open_book
from adapterx.sharding import check_not_sharded
from adapterx.targets import Ends, Target, find_ends, find_norms, find_targets
from adapterx.untrained import warn_of_fresh_heads

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Plan:
    """Everything that `attach` will hang on the model, built and checked; the model is still as it was."""

    model: nn.Module
    report: Attachment
    adapters: dict[str, BottleneckAdapter]  # by qualified name of the base module
    copies: dict[str, nn.Module]  # likewise
    invertible: InvertibleAdapter | None = None
    ends: Ends | None = None  # where it acts

    def commit(self, *, active: bool, holder: type[AdapterSet] = AdapterSet) -> Attachment:
        """Hang the planned modules on the model, freeze the rest, and report; `holder` is what adapters hang in."""
        report, model = self.report, self.model
        warn_of_fresh_heads(model, report.modules_to_save)
        keep_compositions(model)
        freeze(model)
        book, added = open_book(model), []
        for target in report.targets:
            place = Place(report, target.module, target, book)
            added.append(hang(model, holder, self.adapters[target.module], place))
        for path, module in self.copies.items():
            added.append(hang(model, ModuleCopies, module, Place(report, path, None, book)))
        if self.ends is not None:
            kinds = (InputCouplings if self.ends.is_block else OutputCouplings, HeadCouplings)
            for path, kind in zip(report.invertible, kinds, strict=False):
                added.append(hang(model, kind, self.invertible, Place(report, path, None, book)))
        take_over(model, [switchable for switchable in added if switchable is not None])
        if active:
            set_active(model, report.name)
        return report


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
    check_not_sharded(base_modules(model).values())
    check_whole(model)
    check_name(model, name)
    modules = outside_of_others(base_modules(model))
    targets, rule, notes = find_targets(modules, config, saved=saved)
    for target in targets:
        _check_free(modules, target)
    shared: dict[str, Factors] = {}
    adapters = {target.module: _build(modules, target, config, shared, generator, dtype) for target in targets}
    norms = norms_to_train(modules, targets, config)
    copies = {path: _copy_module(modules, path, targets, dtype) for path in config.modules_to_save}
    copies |= {path: _copy_module(modules, path, (), dtype) for path in norms}
    ends = None if config.invertible is None else find_ends(modules, targets)
    invertible = None if ends is None else build_invertible(modules, ends, config, generator, dtype)
    acts_at = () if ends is None else tuple(filter(None, (ends.module, ends.head)))
    report = Attachment(name, rule, config, targets, tuple(copies), acts_at, notes=notes)
    return Plan(model, report, adapters, copies, invertible, ends)


def build_invertible(
    modules: dict[str, nn.Module],
    ends: Ends,
    config: AdapterConfig,
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    *,
    device: str | None = None,
) -> InvertibleAdapter:
    """Return an invertible adapter for these ends of the model.

    Raises:
        TargetError: a module there has a child of our name.
    """
    for path in filter(None, (ends.module, ends.head)):
        if not isinstance(getattr(modules[path], INVERTIBLES, Couplings()), Couplings):
            raise TargetError(f"{speaker()}: {path} has an attribute {INVERTIBLES!r} of its own")
    own_device, own_dtype = device_and_dtype(modules[ends.module], modules[""])
    return InvertibleAdapter(
        config.invertible,
        ends.size,
        reduction_factor=config.invertible_reduction_factor,
        activation=config.activation,
        generator=generator,
        device=device or own_device,
        dtype=dtype or trained_dtype(own_dtype),
    ).train(modules[ends.module].training)


def norms_to_train(modules: dict[str, nn.Module], targets: Sequence[Target], config: AdapterConfig) -> tuple[str, ...]:
    """Return the norms of which an adapter trains copies, without those that are in copies of larger modules.

    Raises:
        TargetError: there are none in the adapted blocks.
    """
    if not config.train_norms:
        return ()
    saved = tuple(f"{path}." for path in config.modules_to_save)
    return tuple(path for path in find_norms(modules, targets) if not f"{path}.".startswith(saved or "."))


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise ConfigError unless adapters can have this dtype, or one that follows from their modules (None)."""
    if dtype is not None and dtype not in ADAPTER_DTYPES:
        known = ", ".join(str(known).removeprefix("torch.") for known in ADAPTER_DTYPES)
        raise ConfigError(f"{speaker()}: dtype must be one of {known}, got {dtype!r}")


def check_name(model: nn.Module, name: str) -> None:
    """Raise ConfigError unless a new adapter of the model can have this name."""
    check_adapter_name(name)
    if is_attached(model, name):
        raise ConfigError(
            f"{speaker()}: name must be new, got {name!r}, which is attached already; detach it or choose another"
        )


def check_adapter_name(name: str) -> None:
    """Raise ConfigError unless an adapter of any model can have this name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{speaker()}: name must consist of letters, digits, '_' and '-', got {name!r}")
    if hasattr(AdapterSet(), name):
        raise ConfigError(f"{speaker()}: name must not be an attribute of torch.nn.ModuleDict, got {name!r}")


def _check_free(modules: dict[str, nn.Module], target: Target) -> None:
    """Refuse a module that is PEFT's, has a child of our name, or adapters whose ports begin or end in another way."""
    if replaced_by_others(modules[target.module]) is not None:
        raise TargetError(
            f"{speaker()}: {target.module} is adapted by PEFT ({type(modules[target.module]).__module__}), whose files "
            "would hold what hangs on it; leave it out of the target_modules of one of them"
        )
    hung = getattr(modules[target.module], ADAPTERS, None)
    if hung is None:
        return
    if not isinstance(hung, AdapterSet):
        raise TargetError(f"{speaker()}: {target.module} has an attribute {ADAPTERS!r} of its own")
    other = next(iter(hung.places.values())).target.port.reads  # all are alike
    if other != target.port.reads:
        raise TargetError(
            f"{speaker()}: adapters of one module must read alike, {target.module} has some that read its "
            f"{other}, got one that reads its {target.port.reads}"
        )


def _build(
    modules: dict[str, nn.Module],
    target: Target,
    config: AdapterConfig,
    shared: dict[str, Factors],
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
) -> BottleneckAdapter:
    module = modules[target.module]
    bottleneck_dim = config.resolve_bottleneck_dim(target.hidden_size, target.block)
    # A reduction factor below 1 means it, a width that does not fit the module does not.
    if bottleneck_dim > target.hidden_size and config.bottleneck_dim is not None:
        raise ConfigError(
            f"{speaker()}: bottleneck_dim must be at most the hidden size {target.hidden_size} of {target.module}, "
            f"got {bottleneck_dim}; a reduction_factor below 1 makes wider ones"
        )
    device, own_dtype = device_and_dtype(module, modules[""])
    adapter = BottleneckAdapter(
        target.input_size,
        target.hidden_size,
        bottleneck_dim,
        **config.branch_options(),
        shared=shared,
        generator=generator,
        device=device,
        dtype=dtype or trained_dtype(own_dtype),
    )
    return adapter.train(module.training)


def _copy_module(
    modules: dict[str, nn.Module], path: str, targets: Sequence[Target], dtype: torch.dtype | None
) -> nn.Module:
    """Return a copy of a module to be trained by one adapter, free of other adapters and their hooks."""
    if path not in modules or not path:
        raise TargetError(
            f"{speaker()}: modules_to_save must be qualified names of modules, got {path!r}; the top modules are "
            f"{', '.join(name for name in modules if name and '.' not in name) or 'none'}"
        )
    if replaced_by_others(modules[path]) is not None:
        raise TargetError(f"{speaker()}: modules_to_save must not name what PEFT trains a copy of, got {path!r}")
    inside = [t.module for t in targets if t.module == path or t.module.startswith(f"{path}.")]
    if inside:
        raise TargetError(
            f"{speaker()}: modules_to_save must not hold modules to be adapted, {path!r} holds {inside[0]!r}"
        )
    if not isinstance(getattr(modules[path], COPIES, ModuleCopies()), ModuleCopies):
        raise TargetError(f"{speaker()}: {path} has an attribute {COPIES!r} of its own")
    parameters = [p for each in base_modules(modules[path]).values() for p in each.parameters(recurse=False)]
    if not parameters or not all(parameter.is_floating_point() for parameter in parameters):
        raise TargetError(
            f"{speaker()}: modules_to_save must name modules with floating-point parameters, got {path!r}"
        )
    duplicate = bare_copy(modules[path], dtype)
    keep_compositions(duplicate, ())
    return duplicate
