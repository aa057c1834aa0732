"""Save adapters and heads, without the base model, and load them back: strict, without pickle, all or nothing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.adapters import active_adapters, adapter_names, adapters, check_known
from adapterx.attachment import Plan, plan_attachment
from adapterx.config import AdapterConfig
from adapterx.errors import CheckpointError, ConfigError, TargetError, UnknownAdapterError, speaking_as
from adapterx.heads import ClassificationHead, SequenceClassifier
from adapterx.host import ADAPTERS, AdapterSet, Attachment, ModuleCopies, base_modules
from adapterx.storage import public_name, read_tensors, write_tensors


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
        CheckpointError: the folder cannot be written.
    """
    name = _resolve_name(model, name, "save_adapter")
    attachment = adapters(model)[name]
    if not attachment.targets:
        raise CheckpointError(f"save_adapter: adapter {name!r} must have adapted modules inside this model")
    document = {
        "name": name,
        "config": attachment.config.to_dict(),
        "base_model": _describe_base(model),
        "modules": {
            target.module: {key: getattr(target, key) for key in ("position", "input_size", "hidden_size")}
            for target in attachment.targets
        },
        "metadata": dict(metadata or {}),
    }
    write_tensors(folder, "adapter", dict(_adapter_tensors(model, name)), document, function="save_adapter")


def load_adapter(model: nn.Module, folder: str | Path, name: str | None = None, *, active: bool = True) -> Attachment:
    """Attach a saved adapter. Everything is checked before the model is touched.

    Names may differ from the saved ones by one prefix, as between `AutoModel` and `AutoModelForMaskedLM`.

    Args:
        model: as in `attach`.
        folder: what `save_adapter` wrote.
        name: name in this model; None keeps the saved one.
        active: as in `attach`.

    Returns:
        The report of `attach`.

    Raises:
        CheckpointError: the files are missing or damaged, or do not fit the model.
        ConfigError: the name is taken.
    """
    document, tensors = read_tensors(folder, "adapter", function="load_adapter")
    config, saved_name, paths = _parse(document, folder, "load_adapter")
    modules = base_modules(model)
    old, new = _prefix_change(paths, modules, folder)
    tensors = {_renamed(key, old, new): tensor for key, tensor in tensors.items()}
    copied = tuple(_renamed(path, old, new) if _renamed(path, old, new) in modules else path
                   for path in config.modules_to_save)  # fmt: skip
    try:
        with speaking_as("load_adapter"):
            plan = plan_attachment(
                model,
                AdapterConfig(**{**config.to_dict(), "modules_to_save": copied}),
                saved_name if name is None else name,
                # Of its own, so that loading does not move the global random numbers.
                generator=torch.Generator(device="cpu").manual_seed(0),
                saved=[_renamed(path, old, new) for path in paths],
            )
    except TargetError as error:
        raise CheckpointError(f"load_adapter: the adapter in {folder} does not fit the model: {error}") from error
    _fill(_plan_tensors(plan), tensors, folder, "load_adapter")
    chosen, listed = sorted(plan.adapters), sorted(_renamed(path, old, new) for path in paths)
    if chosen != listed:
        raise CheckpointError(
            f"load_adapter: the config in {folder} chooses other modules: {chosen} instead of {listed}"
        )
    return plan.commit(active=active)


def restore_adapter(model: nn.Module, folder: str | Path, name: str | None = None) -> None:
    """Copy saved weights into an adapter that is attached already, for example to go on with a training run.

    Args:
        model: the module that was given to `attach`.
        folder: what `save_adapter` wrote.
        name: which adapter; None takes the only one, or the only active one.

    Raises:
        UnknownAdapterError: the adapter is not attached, or None does not say which one.
        CheckpointError: the files are missing or damaged, or do not fit; the adapter is then as it was.
    """
    name = _resolve_name(model, name, "restore_adapter")
    document, tensors = read_tensors(folder, "adapter", function="restore_adapter")
    config, _, _ = _parse(document, folder, "restore_adapter")
    own = adapters(model)[name].config
    if config != own:
        raise CheckpointError(
            f"restore_adapter: {folder} holds an adapter of another configuration: {config}, not {own}"
        )
    _fill(dict(_adapter_tensors(model, name)), tensors, folder, "restore_adapter")


def save_head(classifier: SequenceClassifier, folder: str | Path, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write `head_config.json` and `head_model.safetensors`; an interruption leaves the old pair or the new one.

    Args:
        classifier: its head is written, its base model is not.
        folder: made if it is not there; an adapter may stand in the same one.
        metadata: further values for the JSON file, under `"metadata"`.

    Raises:
        CheckpointError: the folder cannot be written, or the metadata cannot be stored.
    """
    document = {**classifier.head.to_dict(), "metadata": dict(metadata or {})}
    write_tensors(folder, "head", classifier.head.state_dict(), document, function="save_head")


def load_head(classifier: SequenceClassifier, folder: str | Path) -> None:
    """Copy a saved head into the classifier's.

    Args:
        classifier: its head must have the saved one's size, classes and pooling.
        folder: what `save_head` wrote.

    Raises:
        CheckpointError: the files are missing or damaged, or are of another kind of head; it is then as it was.
    """
    document, tensors = read_tensors(folder, "head", function="load_head")
    own = {key: value for key, value in classifier.head.to_dict().items() if key != "dropout"}
    wrong = [
        f"{key} {document.get(key)!r} instead of {value!r}" for key, value in own.items() if document.get(key) != value
    ]
    if wrong:
        raise CheckpointError(f"load_head: the head in {folder} does not fit: it has {', '.join(wrong)}")
    _fill(classifier.head.state_dict(), tensors, folder, "load_head")


def build_head(folder: str | Path) -> ClassificationHead:
    """Build the head that `save_head` wrote.

    Args:
        folder: what `save_head` wrote.

    Returns:
        A new head on the CPU.

    Raises:
        CheckpointError: the files are missing or damaged, or do not describe a head.
    """
    document, tensors = read_tensors(folder, "head", function="build_head")
    try:
        head = ClassificationHead(**{key: document[key] for key in ("hidden_size", "num_labels", "pooling", "dropout")})
    except (KeyError, TypeError, ConfigError, RuntimeError) as error:
        raise CheckpointError(f"build_head: {folder} does not describe a head: {error}") from error
    _fill(head.state_dict(), tensors, folder, "build_head")
    return head


def _resolve_name(model: nn.Module, name: str | None, function: str) -> str:
    if name is not None:
        with speaking_as(function):
            check_known(model, [name])
        return name
    for names in (adapter_names(model), active_adapters(model)):
        if len(names) == 1:
            return names[0]
    raise UnknownAdapterError(
        f"{function}: name must be given, since not exactly one adapter is attached or active; attached are "
        f"{', '.join(map(repr, sorted(adapter_names(model)))) or 'none'}"
    )


def _adapter_tensors(model: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield an adapter's tensors under `<module>.adapterx.<key>`, those of trained copies under `<module>.<key>`."""
    for path, module in model.named_modules():
        if isinstance(module, (AdapterSet, ModuleCopies)) and name in module:
            prefix = path if isinstance(module, AdapterSet) else path.rpartition(".")[0]
            for key, tensor in module[name].state_dict().items():
                yield f"{prefix}.{key}", tensor


def _plan_tensors(plan: Plan) -> dict[str, Tensor]:
    adapters = {f"{path}.{ADAPTERS}": module for path, module in plan.adapters.items()}
    return {
        f"{path}.{key}": tensor
        for path, module in {**adapters, **plan.copies}.items()
        for key, tensor in module.state_dict().items()
    }


def _describe_base(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    name = getattr(model, "name_or_path", None) or getattr(config, "_name_or_path", None)
    commit = getattr(config, "_commit_hash", None)
    return {
        "name": public_name(name) if isinstance(name, str) and name else None,
        "commit": commit if isinstance(commit, str) else None,
        "model_type": getattr(config, "model_type", None),
        "class": type(model).__name__,
    }


def _parse(document: dict[str, Any], folder: str | Path, function: str) -> tuple[AdapterConfig, str, list[str]]:
    name, modules = document.get("name"), document.get("modules")
    if not isinstance(name, str) or not isinstance(modules, dict) or not modules:
        raise CheckpointError(f"{function}: adapter_config.json in {folder} must hold 'name', 'config' and 'modules'")
    try:
        return AdapterConfig.from_dict(document.get("config")), name, list(modules)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{function}: adapter_config.json in {folder} holds no valid config: {error}") from error


def _prefix_change(paths: list[str], modules: Mapping[str, nn.Module], folder: str | Path) -> tuple[str, str]:
    """Return the prefix to take off the saved names and the one to put on, so that all of them are in the model."""
    first = paths[0].split(".")
    shorter = [".".join(first[:depth]) + "." for depth in range(1, len(first))]
    longer = [name[: -len(paths[0])] for name in modules if name.endswith(f".{paths[0]}")]
    for old, new in [("", ""), *(("", prefix) for prefix in longer), *((prefix, "") for prefix in shorter)]:
        if all(path.startswith(old) and _renamed(path, old, new) in modules for path in paths):
            return old, new
    missing = sorted(path for path in paths if path not in modules)
    raise CheckpointError(f"load_adapter: the adapter in {folder} adapts modules that the model lacks: {missing}")


def _renamed(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name.startswith(old) else name


def _fill(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], folder: str | Path, function: str) -> None:
    """Copy the saved tensors into the module's own, or raise CheckpointError before the first one is copied."""
    problems = []
    if missing := sorted(own.keys() - saved.keys()):
        problems.append(f"missing tensors {missing}")
    if extra := sorted(saved.keys() - own.keys()):
        problems.append(f"unknown tensors {extra}")
    shared = sorted(own.keys() & saved.keys())
    if wrong := [f"{k} {list(saved[k].shape)} instead of {list(own[k].shape)}" for k in shared
                 if saved[k].shape != own[k].shape]:  # fmt: skip
        problems.append(f"wrong shapes {wrong}")
    if kinds := [key for key in shared if saved[key].is_floating_point() != own[key].is_floating_point()]:
        problems.append(f"wrong dtypes {kinds}")
    if on_meta := [key for key in shared if own[key].is_meta]:
        problems.append(f"the model is on the meta device, give it memory first: {on_meta}")
    if problems:
        raise CheckpointError(f"{function}: {folder} does not fit the model: {'; '.join(problems)}")
    with torch.no_grad():
        for key in shared:
            own[key].copy_(saved[key])
