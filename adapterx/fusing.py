"""Fusions of attached adapters: add them to a model, list, regularise and remove them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adapterx.active import check_not_mixed, set_active
from adapterx.adapters import active_composition, check_known, check_whole
from adapterx.compose import Fuse, Stack, adapter_names_in
from adapterx.compose.naming import fusions_in
from adapterx.compose.nesting import check_fused_ports
from adapterx.devices import device_and_dtype, trained_dtype
from adapterx.errors import ConfigError, UnknownAdapterError, speaker, speaking_as
from adapterx.facts import facts_of
from adapterx.fusion import FUSIONS, AdapterFusion, FusionConfig, FusionSet
from adapterx.host import ADAPTERS, AdapterSet, base_modules, walk
from adapterx.planning import check_dtype
from adapterx.sharding import check_not_sharded
from adapterx.targets.ports import NormedOutput, NormedSum


def add_fusion(
    model: nn.Module,
    names: Fuse | Sequence[str | Stack],
    config: FusionConfig | None = None,
    *,
    active: bool = True,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
) -> Fuse:
    """Hang new fusion weights on every module that one of the adapters hangs on.

    A part that has no adapter on a module is not among those attended to there. For a trained head beside the fusion
    stack an adapter that brings one: `Stack("head", Fuse("a", "b"))`; for fused adapters the base module answers.

    Args:
        model: any module that encloses the adapted ones.
        names: a `Fuse`, or the names of attached adapters (or stacks of them) to be fused.
        config: what the attention looks like; None takes `FusionConfig()`.
        active: whether the fusion becomes the active composition, which trains it and freezes its adapters.
        seed: for initial weights that do not depend on the global random numbers and do not move them.
        dtype: floating dtype of the weights; None as in `attach`.

    Returns:
        The composition, for `set_active`.

    Raises:
        TypeError: `config` is no FusionConfig.
        UnknownAdapterError: an adapter is not attached.
        ConfigError: the fusion is there already, or the adapters of a module do not read and add alike, or not what
            the config needs.
        TargetError: base modules that were adapted have been replaced, and their adapters with them, or the model is
            sharded.
        RuntimeError: the model is inside a `mixed` block.
    """
    generator = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    with speaking_as("add_fusion"):
        if config is not None and not isinstance(config, FusionConfig):
            raise TypeError(f"add_fusion: config must be a FusionConfig, got {type(config).__name__}")
        plan = plan_fusion(model, names, config or FusionConfig(), generator=generator, dtype=dtype)
        return plan.commit(active=active)


class FusionPlan(NamedTuple):
    """A fusion that is built and checked; the model is still as it was.

    Attributes:
        model: what it is added to.
        fuse: the composition.
        modules: the new modules by qualified name of the base module.
    """

    model: nn.Module
    fuse: Fuse
    modules: dict[str, AdapterFusion]

    def commit(self, *, active: bool) -> Fuse:
        """Hang the fusion on the model."""
        parts = tuple(part if isinstance(part, str) else part.parts for part in self.fuse.parts)
        for path, fusion in self.modules.items():
            base = self.model.get_submodule(path)
            if FUSIONS not in base._modules:
                setattr(base, FUSIONS, FusionSet())
            base._modules[FUSIONS].hang(self.fuse.key, fusion.requires_grad_(False), parts)
        if active:
            set_active(self.model, self.fuse)
        return self.fuse


def plan_fusion(
    model: nn.Module,
    names: Fuse | Sequence[str | Stack],
    config: FusionConfig,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> FusionPlan:
    """Build and check a fusion without touching the model; arguments and errors as in `add_fusion`."""
    check_dtype(dtype)
    check_not_mixed(model)
    check_not_sharded(base_modules(model).values())
    check_whole(model)
    fuse = names if isinstance(names, Fuse) else Fuse(*names)
    used = adapter_names_in(fuse)
    check_known(model, used)
    if fuse.key in fusions(model):
        raise ConfigError(
            f"{speaker()}: names must make a new fusion, {fuse.key!r} is there; remove it, or give a name"
        )
    if hasattr(FusionSet(), fuse.key):
        raise ConfigError(f"{speaker()}: name must not be an attribute of torch.nn.ModuleDict, got {fuse.key!r}")
    modules = dict(walk(model))
    planned = {}
    for where, ports in facts_of(model, used).ports.items():
        if ports:
            check_fused_ports(ports, where)
            _check_query(next(iter(ports.values())), config, where)
            planned[where] = _build(modules, where, next(iter(ports)), config, generator, dtype)
    return FusionPlan(model, fuse, planned)


def _check_query(port: object, config: FusionConfig, where: str) -> None:
    """Refuse a query of which nothing is seen: the norm receives the sum, and its parts only where one is captured."""
    unseen = isinstance(port, NormedOutput) or (isinstance(port, NormedSum) and port.source is None)
    if config.query_before_ln and unseen:
        raise ConfigError(
            f"{speaker()}: query_before_ln must be False on {where}, whose adapters see the sum of output and residual "
            "stream alone; it can be True for placement='normed_sum' with added_to='sum_plus_residual' or "
            "'normed_plus_residual'"
        )


def _build(
    modules: Mapping[str, nn.Module],
    where: str,
    name: str,
    config: FusionConfig,
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
) -> AdapterFusion:
    base = modules[where]
    hung: AdapterSet = base._modules[ADAPTERS]
    target = hung.places[name].target
    device, own_dtype = device_and_dtype(base, modules[""])
    fusion = AdapterFusion(
        target.hidden_size,
        config,
        query_size=target.input_size,
        generator=generator,
        device=device,
        dtype=dtype or trained_dtype(own_dtype),
    )
    return fusion.train(base.training)


def fusion_sets(model: nn.Module) -> dict[str, FusionSet]:
    """Return what holds the fusions of a model, by qualified name of the base module."""
    return {path.rpartition(".")[0]: module for path, module in walk(model) if isinstance(module, FusionSet)}


def fusions(model: nn.Module) -> dict[str, Fuse]:
    """Return the fusions that have been added to a model, by name, as compositions."""
    found = {}
    for hung in fusion_sets(model).values():
        for key, parts in hung.parts.items():
            fuse = Fuse(*(part if isinstance(part, str) else Stack(*part) for part in parts))
            found[key] = fuse if fuse.key == key else Fuse(*fuse.parts, name=key)
    return found


def resolve_fusion(model: nn.Module, fuse: Fuse | str | None) -> str:
    """Return the name of a fusion of the model; None takes the only one.

    Raises:
        UnknownAdapterError: there is none of that name, or None does not say which one.
    """
    known = tuple(fusions(model))
    if fuse is None and len(known) == 1:
        return known[0]
    key = fuse.key if isinstance(fuse, Fuse) else fuse
    if key not in known:
        told = ", ".join(map(repr, known)) or "none"
        raise UnknownAdapterError(f"{speaker()}: fuse must be a fusion that was added, got {key!r}; there are {told}")
    return key


def remove_fusion(model: nn.Module, fuse: Fuse | str) -> None:
    """Take a fusion off the model; its adapters stay. Detaching an adapter takes its fusions off, too.

    Args:
        model: any module that encloses the adapted ones.
        fuse: the composition, or its name.

    Raises:
        UnknownAdapterError: there is no such fusion.
        ConfigError: it is active.
    """
    with speaking_as("remove_fusion"):
        key = resolve_fusion(model, fuse)
        if key in {active.key for active in fusions_in(active_composition(model))}:
            raise ConfigError(f"remove_fusion: fuse must not be active, got {key!r}; activate something else first")
    for path, hung in fusion_sets(model).items():
        if key in hung:
            hung.remove(key)
        if not hung:
            delattr(model.get_submodule(path), FUSIONS)


def fusion_regularization(model: nn.Module, weight: float = 0.01) -> Tensor:
    """Return what keeps the value maps of fusions near the identity, to be added to the loss.

    Args:
        model: any module that encloses the adapted ones.
        weight: factor on the sum.

    Returns:
        `weight * sum((value - I) ** 2)` over the fusions that train and have `regularization=True`; a scalar, 0 where
        there is none.

    Source:
        Pfeiffer et al. 2021 (AdapterFusion), section 3; AdapterHub's weight is 0.01.
    """
    losses = []
    for hung in fusion_sets(model).values():
        for fusion in hung.values():
            if fusion.config.regularization and fusion.value.weight.requires_grad:
                identity = torch.eye(fusion.hidden_size, device=fusion.value.weight.device)
                losses.append((fusion.value.weight - identity.to(fusion.value.weight.dtype)).square().sum())
    return weight * sum(losses) if losses else torch.zeros(())
