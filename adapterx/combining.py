"""Make one adapter of the weights of several: averages, and sums with signs (task arithmetic)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from adapterx.active import check_not_mixed
from adapterx.adapters import adapters, check_known, check_whole, is_attached
from adapterx.attachment import detach
from adapterx.checkpoint import load_adapter
from adapterx.checks import check_finite, shown
from adapterx.errors import ConfigError, speaking_as
from adapterx.host import ADAPTERS, COPIES, walk
from adapterx.planning import Plan, check_name, plan_attachment
from adapterx.records import Attachment
from adapterx.route import SwitchableModules


def combine_adapters(
    model: nn.Module,
    name: str,
    weights: Mapping[str | Path, float],
    *,
    normalize: bool = False,
    active: bool = True,
) -> Attachment:
    """Attach an adapter of which every parameter is the weighted sum of those of others; these stay as they are.

    A weight may be negative: `{"a": 1.0, "b": -0.5}` takes from a what b knows. The combined adapter costs as much as
    one of them, and gives other outputs than `Average`, which weighs what the adapters give. Trained copies of modules
    are combined in the same way; that is sensible where the weights sum to 1.

    Args:
        model: the module that the adapters were attached to.
        name: of the new adapter, not in use yet.
        weights: by name of an attached adapter, or `pathlib.Path` of a folder that `save_adapter` wrote, the factor.
        normalize: divide the weights by their sum.
        active: as in `attach`.

    Returns:
        The report of `attach`.

    Raises:
        TypeError: `weights` is no mapping of names and paths.
        UnknownAdapterError: an adapter is not attached.
        ConfigError: the name is taken, a weight is not finite, the sum is 0 and shall be divided by, or the adapters
            differ in configuration or modules.
        CheckpointError: a folder holds no adapter that fits the model.
        RuntimeError: the model is inside a `mixed` block.

    Source:
        Ilharco et al. 2023 (task arithmetic); Chronopoulou et al. 2023 (AdapterSoup).
    """
    with speaking_as("combine_adapters"):
        check_not_mixed(model)
        check_whole(model)
        check_name(model, name)
        factors = _factors(weights, normalize)
        check_known(model, [key for key in factors if isinstance(key, str)])
        with _attached(model, factors) as named:
            plan = _plan(model, name, named)
    return plan.commit(active=active)


def _factors(weights: Mapping[str | Path, float], normalize: bool) -> dict[str | Path, float]:
    if not isinstance(weights, Mapping) or not all(isinstance(key, (str, Path)) for key in weights):
        raise TypeError(f"combine_adapters: weights must map names or paths to numbers, got {shown(weights)}")
    if not weights:
        raise ConfigError("combine_adapters: weights must name one adapter or more, got none")
    factors = {key: check_finite("combine_adapters", "weights", value) for key, value in weights.items()}
    total = sum(factors.values())
    if normalize and not total:
        raise ConfigError(f"combine_adapters: weights must not sum to 0 to be normalized, got {shown(dict(factors))}")
    return {key: value / total for key, value in factors.items()} if normalize else factors


@contextmanager
def _attached(model: nn.Module, factors: Mapping[str | Path, float]) -> Iterator[dict[str, float]]:
    """Attach the adapters in folders for a while, inactive; yield the factors by name."""
    loaded: list[str] = []
    named: dict[str, float] = {}
    try:
        for key, factor in factors.items():
            if isinstance(key, Path):
                number = next(n for n in range(len(factors) + 1) if not is_attached(model, f"combined-{n}"))
                load_adapter(model, key, f"combined-{number}", active=False)
                loaded.append(key := f"combined-{number}")
            named[key] = factor
        yield named
    finally:
        for each in loaded:
            detach(model, each)


def _plan(model: nn.Module, name: str, named: Mapping[str, float]) -> Plan:
    """Build the combined adapter without touching the model."""
    known = adapters(model)
    first, *others = (known[each] for each in named)
    for other in others:
        if other.config != first.config or other.modules_to_save != first.modules_to_save:
            raise ConfigError(
                f"combine_adapters: adapters must have one configuration, {first.name!r} has {first.config} and "
                f"{other.name!r} {other.config}"
            )
        if other.targets != first.targets:
            raise ConfigError(f"combine_adapters: adapters must hang on the same modules, got {first} and {other}")
    saved = [target.module for target in first.targets]
    plan = plan_attachment(model, first.config, name, generator=torch.Generator().manual_seed(0), saved=saved)
    for path, hung in walk(model):
        if isinstance(hung, SwitchableModules) and first.name in hung:
            base = path.rpartition(".")[0]
            own = {ADAPTERS: plan.adapters, COPIES: plan.copies}.get(hung.child, {base: plan.invertible})[base]
            _sum_up(own, {each: hung[each] for each in named}, named)
    return plan


@torch.no_grad()
def _sum_up(own: nn.Module, modules: Mapping[str, nn.Module], factors: Mapping[str, float]) -> None:
    states = {name: module.state_dict() for name, module in modules.items()}
    first = next(iter(modules))
    own.to(next(modules[first].parameters()).dtype)
    for key, tensor in own.state_dict().items():
        if not tensor.is_floating_point():
            tensor.copy_(states[first][key])
            continue
        # In float64, so that weights which cancel each other do.
        total = sum(factor * states[name][key].double() for name, factor in factors.items())
        tensor.copy_(total)
