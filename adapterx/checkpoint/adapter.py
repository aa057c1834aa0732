"""Save adapters, without the base model, and load them back: strict, without pickle, all or nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.adapters import active_adapters, adapter_names, adapters, check_known
from adapterx.checkpoint.document import describe_base
from adapterx.checkpoint.fitting import check_fit, copy_into
from adapterx.checkpoint.pair import read_pair, write_pair
from adapterx.config import AdapterConfig
from adapterx.errors import (
    CheckpointError,
    ConfigError,
    TargetError,
    UnknownAdapterError,
    speaker,
    speaking_as,
)
from adapterx.host import ADAPTERS, AdapterSet, ModuleCopies, base_modules
from adapterx.planning import Plan, check_dtype, check_name, plan_attachment
from adapterx.records import Attachment


@speaking_as("save_adapter")
def save_adapter(
    model: nn.Module, folder: str | Path, name: str | None = None, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; an interruption leaves the old pair or the new one.

    Args:
        model: the module that was given to `attach` (names in the files are relative to it).
        folder: made if it is not there.
        name: which adapter; None takes the only one, or the only active one.
        metadata: further values for the JSON file, under `"metadata"`.

    Raises:
        UnknownAdapterError: the adapter is not attached, or None does not say which one.
        CheckpointError: the folder cannot be written, or the metadata cannot be stored.
    """
    name = _resolve_name(model, name)
    attachment = adapters(model)[name]
    if not attachment.targets:
        raise CheckpointError(f"{speaker()}: adapter {name!r} must have adapted modules inside this model")
    document = {
        "name": name,
        "config": attachment.config.to_dict(),
        "base_model": describe_base(model),
        "modules": {
            target.module: {key: getattr(target, key) for key in ("position", "input_size", "hidden_size")}
            for target in attachment.targets
        },
        "metadata": dict(metadata or {}),
    }
    write_pair(folder, "adapter", dict(_adapter_tensors(model, name)), document)


@speaking_as("load_adapter")
def load_adapter(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    *,
    active: bool = True,
    dtype: torch.dtype | None = None,
) -> Attachment:
    """Attach a saved adapter. Everything is checked before the model is touched.

    Names may differ from the saved ones by one prefix, as between `AutoModel` and `AutoModelForMaskedLM`.

    Args:
        model: as in `attach`.
        folder: what `save_adapter` wrote.
        name: name in this model; None keeps the saved one.
        active: as in `attach`.
        dtype: as in `attach`; the saved values are converted.

    Returns:
        The report of `attach`.

    Raises:
        CheckpointError: the files are missing or damaged, are another library's, or do not fit the model.
        ConfigError: the name is taken, or is no name for an adapter; the dtype is none for adapters.
        RuntimeError: the model is inside a `mixed` block.
    """
    document, tensors = read_pair(folder, "adapter")
    config, saved_name, paths = _parse(document, folder)
    modules = base_modules(model)
    old, new = _prefix_change(paths, modules, folder)
    renamed = [_renamed(path, old, new) for path in paths]
    copied = [
        _renamed(path, old, new) if _renamed(path, old, new) in modules else path for path in config.modules_to_save
    ]
    config = replace(config, modules_to_save=tuple(copied))
    plan = _plan(model, config, saved_name if name is None else name, dtype, renamed, folder)
    own = _plan_tensors(plan)
    tensors = {_renamed(key, old, new): tensor for key, tensor in tensors.items()}
    check_fit(own, tensors, folder)
    if sorted(plan.adapters) != sorted(renamed):
        raise CheckpointError(
            f"{speaker()}: the config in {folder} chooses other modules: {sorted(plan.adapters)} instead of "
            f"{sorted(renamed)}"
        )
    copy_into(own, tensors)
    return plan.commit(active=active)


@speaking_as("restore_adapter")
def restore_adapter(model: nn.Module, folder: str | Path, name: str | None = None) -> None:
    """Copy saved weights into an adapter that is attached already, for example to go on with a training run.

    Args:
        model: the module that was given to `attach`.
        folder: what `save_adapter` wrote.
        name: which adapter; None takes the only one, or the only active one.

    Raises:
        UnknownAdapterError: the adapter is not attached, or None does not say which one.
        CheckpointError: the files are missing or damaged, are another library's, or do not fit; the adapter is then as
            it was.
    """
    copy_into(*fitting_tensors(model, folder, _resolve_name(model, name)))


def fitting_tensors(model: nn.Module, folder: str | Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of an attached adapter and those saved in the folder, which fit; errors as `restore_adapter`.

    Together with `copy_into` this is `restore_adapter`, in two steps for those who restore several things or nothing.
    """
    document, tensors = read_pair(folder, "adapter")
    config, _, _ = _parse(document, folder)
    own = adapters(model)[name].config
    if config != own:
        raise CheckpointError(f"{speaker()}: {folder} holds an adapter of another configuration: {config}, not {own}")
    state = dict(_adapter_tensors(model, name))
    check_fit(state, tensors, folder)
    return state, tensors


def _resolve_name(model: nn.Module, name: str | None) -> str:
    if name is not None:
        check_known(model, [name])
        return name
    for names in (adapter_names(model), active_adapters(model)):
        if len(names) == 1:
            return names[0]
    raise UnknownAdapterError(
        f"{speaker()}: name must be given, since not exactly one adapter is attached or active; attached are "
        f"{', '.join(map(repr, sorted(adapter_names(model)))) or 'none'}"
    )


def _adapter_tensors(model: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield an adapter's tensors under `<module>.adapterx.<key>`, those of trained copies under `<module>.<key>`."""
    for path, module in model.named_modules():
        if isinstance(module, (AdapterSet, ModuleCopies)) and name in module:
            prefix = path if isinstance(module, AdapterSet) else path.rpartition(".")[0]
            for key, tensor in module[name].state_dict().items():
                yield f"{prefix}.{key}", tensor


def _plan(
    model: nn.Module,
    config: AdapterConfig,
    name: str,
    dtype: torch.dtype | None,
    paths: Sequence[str],
    folder: str | Path,
) -> Plan:
    """Plan the attachment; what is wrong with the stored config is an error of the checkpoint, the caller's is not."""
    check_name(model, name)
    check_dtype(dtype)
    # A generator of its own, so that loading does not move the global random numbers.
    generator = torch.Generator(device="cpu").manual_seed(0)
    try:
        return plan_attachment(model, config, name, generator=generator, dtype=dtype, saved=paths)
    except (TargetError, ConfigError) as error:
        reason = str(error).removeprefix(f"{speaker()}: ")  # it would speak twice in one message
        raise CheckpointError(f"{speaker()}: the adapter in {folder} does not fit the model: {reason}") from error


def _plan_tensors(plan: Plan) -> dict[str, Tensor]:
    adapters = {f"{path}.{ADAPTERS}": module for path, module in plan.adapters.items()}
    return {
        f"{path}.{key}": tensor
        for path, module in {**adapters, **plan.copies}.items()
        for key, tensor in module.state_dict().items()
    }


def _parse(document: dict[str, Any], folder: str | Path) -> tuple[AdapterConfig, str, list[str]]:
    """Return the configuration, the name and the paths of the adapted modules that a document holds."""
    name, modules = document.get("name"), document.get("modules")
    if not isinstance(name, str) or not isinstance(modules, dict) or not modules:
        raise CheckpointError(f"{speaker()}: adapter_config.json in {folder} must hold 'name', 'config' and 'modules'")
    try:
        return AdapterConfig.from_dict(document.get("config")), name, list(modules)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{speaker()}: adapter_config.json in {folder} holds no valid config: {error}") from error


def _prefix_change(paths: list[str], modules: Mapping[str, nn.Module], folder: str | Path) -> tuple[str, str]:
    """Return the prefix to take off the saved names and the one to put on, so that all of them are in the model."""
    first = paths[0].split(".")
    shorter = [".".join(first[:depth]) + "." for depth in range(1, len(first))]
    longer = [name[: -len(paths[0])] for name in modules if name.endswith(f".{paths[0]}")]
    for old, new in [("", ""), *(("", prefix) for prefix in longer), *((prefix, "") for prefix in shorter)]:
        if all(path.startswith(old) and _renamed(path, old, new) in modules for path in paths):
            return old, new
    missing = sorted(path for path in paths if path not in modules)
    raise CheckpointError(f"{speaker()}: the adapter in {folder} adapts modules that the model lacks: {missing}")


def _renamed(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name.startswith(old) else name
