"""What an adapter may be called in a model of PEFT, and which modules PEFT's options mean there."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from adapterx.adapters import adapters
from adapterx.checkpoint.base import check_record, check_same_base
from adapterx.checkpoint.contents import describe_target
from adapterx.errors import ConfigError, TargetError, speaker
from adapterx.host import base_modules
from adapterx.integrations.peft.config import BottleneckConfig
from adapterx.integrations.peft.layer import TunedAdapters
from adapterx.neighbours import outside_of_others
from adapterx.planning import Plan, plan_attachment

_DOCUMENT = "adapter_config.json"


def plan_injection(model: nn.Module, name: str, config: BottleneckConfig) -> Plan:
    """Build and check all that an adapter adds to a model, without touching it.

    Raises:
        ConfigError: the name, or an option, does not fit the model.
        TargetError: the modules cannot be chosen, or are not those of the adapter that is being loaded.
        CheckpointError: the model is not the one that the adapter was trained on, as far as it is recorded.
    """
    recorded, chosen = config.adapted_modules, None
    if config.target_modules is not None:
        chosen = list(recorded or _matched(model, config))
    # As `load_adapter` does: loading does not move the global random numbers.
    generator = None if recorded is None else torch.Generator(device="cpu").manual_seed(0)
    plan = plan_attachment(model, config.to_adapter_config(chosen or ()), name, generator=generator, saved=chosen)
    if recorded is not None:
        _check_recorded(plan, name, recorded)
    if config.base_check is not None:
        check_record(config.base_check, _DOCUMENT)
        check_same_base(model, config.base_check, {}, _DOCUMENT)
    _check_name(model, name, plan)
    return plan


def _check_recorded(plan: Plan, name: str, recorded: dict[str, dict[str, object]]) -> None:
    found = {target.module: describe_target(target) for target in plan.report.targets}
    strange = sorted(path for path in found.keys() | recorded.keys() if found.get(path) != recorded.get(path))
    if strange:
        raise TargetError(
            f"{speaker()}: model must have the modules that adapter {name!r} was made for, they differ at "
            f"{', '.join(strange[:4])}; a BottleneckConfig for a new adapter has no adapted_modules"
        )


def _matched(model: nn.Module, config: BottleneckConfig) -> list[str]:
    """Return the names of the modules that `target_modules` and `exclude_modules` mean."""
    config = _maybe_include_all_linear_layers(copy.copy(config), model)
    names = [name for name in outside_of_others(base_modules(model)) if name]
    if found := [name for name in names if check_target_module_exists(config, name)]:
        return found
    raise TargetError(
        f"{speaker()}: target_modules must match modules of the model, nothing matches {config.target_modules!r}, "
        f"exclude_modules={config.exclude_modules!r}, modules_to_save={config.modules_to_save!r}"
    )


def _check_name(model: nn.Module, name: str, plan: Plan) -> None:
    """Refuse names that stand in those of tensors: PEFT leaves such tensors out when it saves another adapter."""
    keys = [*model.state_dict(), *(key for each in plan.adapters.values() for key in each.state_dict())]
    attached = set(adapters(model))
    parts = {part for key in keys for part in key.split(".")} - attached
    if name in parts or hasattr(TunedAdapters(), name):
        raise ConfigError(
            f"{speaker()}: adapter_name must not be part of the name of a module or a tensor, where PEFT would take "
            f"the one for the other, got {name!r}"
        )


def wrappers(model: nn.Module) -> list[AuxiliaryTrainingWrapper]:
    """Return where PEFT trains copies of modules (`modules_to_save`)."""
    return [each for each in model.modules() if isinstance(each, AuxiliaryTrainingWrapper)]


@contextmanager
def flags_kept(model: nn.Module) -> Iterator[None]:
    """Give the parameters that a model has now their `requires_grad` back at the end."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
