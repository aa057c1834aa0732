"""What the files of an adapter hold: read strictly, and renamed to the names of the model that it is loaded into."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adapterx.checkpoint.base import check_record
from adapterx.checkpoint.fitting import listed
from adapterx.checkpoint.pair import read_pair
from adapterx.config import AdapterConfig
from adapterx.errors import CheckpointError, ConfigError, speaker
from adapterx.targets import Target

_RECORDED = ("position", "input_size", "hidden_size")  # of each adapted module


@dataclass(frozen=True)
class Contents:
    """What `save_adapter` wrote.

    Attributes:
        source: the JSON file, for messages.
        name: the adapter's name.
        config: its configuration.
        modules: qualified name of each adapted module to what is recorded of it.
        described: the base model in words, as `describe_base` returns it.
        base: what is recorded of the base model, as `record_base` returns it; 0.1.0 recorded nothing.
        tensors: the weights by name.
    """

    source: Path
    name: str
    config: AdapterConfig
    modules: dict[str, dict[str, Any]]
    described: dict[str, Any]
    base: dict[str, Any]
    tensors: dict[str, Tensor]


def describe_target(target: Target) -> dict[str, Any]:
    """Return what is recorded of an adapted module."""
    return {key: getattr(target, key) for key in _RECORDED}


def read_contents(folder: str | Path, *, sha256: str | None = None) -> Contents:
    """Read the files of an adapter; arguments as in `read_pair`.

    Raises:
        CheckpointError: they are missing or damaged, or hold other than `save_adapter` writes.
    """
    source = Path(folder, "adapter_config.json")
    document, tensors = read_pair(folder, "adapter", sha256=sha256)
    name, modules, described = (document.get(key) for key in ("name", "modules", "base_model"))
    if not isinstance(name, str) or not isinstance(modules, dict) or not modules:
        raise CheckpointError(f"{speaker()}: {source} must hold 'name', 'config' and 'modules'")
    described = described if isinstance(described, dict) else {}
    base = document.get("base_check", {"model_types": [], "weights": {}})
    check_record(base, str(source))
    return Contents(source, name, _config(document.get("config"), source), modules, described, base, tensors)


def check_targets(contents: Contents, targets: Sequence[Target]) -> None:
    """Refuse contents of which the configuration, or what is recorded of a module, says other than the model.

    Raises:
        CheckpointError: other modules are chosen, or one has another position or size.
    """
    chosen = {target.module: describe_target(target) for target in targets}
    if chosen.keys() != contents.modules.keys():
        raise CheckpointError(
            f"{speaker()}: the config in {contents.source} chooses other modules: {listed(sorted(chosen))} instead of "
            f"{listed(sorted(contents.modules))}"
        )
    if strange := sorted(contents.base["weights"].keys() - chosen.keys()):
        raise CheckpointError(
            f"{speaker()}: base_check of {contents.source} must be about its modules, got {listed(strange)}"
        )
    for path, found in chosen.items():
        recorded = contents.modules[path]
        if json.dumps(recorded, sort_keys=True) != json.dumps(found, sort_keys=True):  # tells 1 from True
            raise CheckpointError(
                f"{speaker()}: {contents.source} must describe the modules of the model, {path!r} is {found}, "
                f"got {recorded!r}"
            )


def renamed_to_fit(contents: Contents, model: nn.Module, modules: Mapping[str, nn.Module]) -> Contents:
    """Return the contents under the names of the model, which may differ from the saved ones by one prefix.

    Args:
        contents: what was read.
        model: the model to load into.
        modules: its modules by qualified name.

    Raises:
        CheckpointError: the model lacks modules, or the names fit it in several ways.
    """
    old, new = _prefix_change(contents, type(model).__name__, modules)
    stay = tuple(path for path in contents.config.modules_to_save if _renamed(path, old, new) not in modules)
    if lacking := [path for path in stay if path not in modules]:
        raise CheckpointError(
            f"{speaker()}: the adapter in {contents.source.parent} does not fit the model: modules_to_save must be "
            f"qualified names of modules, got {listed(lacking)}, which the model lacks"
        )
    kept = tuple(f"{path}." for path in stay)
    tensors = {
        key if key.startswith(kept) else _renamed(key, old, new): tensor for key, tensor in contents.tensors.items()
    }
    if len(tensors) < len(contents.tensors):
        raise CheckpointError(f"{speaker()}: {contents.source} names tensors that are one without the prefix {old!r}")
    copies = [path if path in stay else _renamed(path, old, new) for path in contents.config.modules_to_save]
    return replace(
        contents,
        config=_config(contents.config.to_dict() | {"modules_to_save": copies}, contents.source),
        modules={_renamed(path, old, new): entry for path, entry in contents.modules.items()},
        base=contents.base
        | {"weights": {_renamed(path, old, new): own for path, own in contents.base["weights"].items()}},
        tensors=tensors,
    )


def _prefix_change(contents: Contents, class_name: str, modules: Mapping[str, nn.Module]) -> tuple[str, str]:
    """Return the prefix to take off the saved names and the one to put on, so that all of them are in the model."""
    paths, folder = list(contents.modules), contents.source.parent
    fitting = _fitting_changes(paths, modules)
    if not fitting:
        missing = sorted(path for path in paths if path not in modules)
        raise CheckpointError(
            f"{speaker()}: the adapter in {folder} adapts modules that the model lacks: {listed(missing)}"
        )
    # Names of a model of the recorded class are certain as they are, whatever else they would fit.
    if len(fitting) == 1 or (fitting[0] == ("", "") and contents.described.get("class") == class_name):
        return fitting[0]
    places = [
        f"under {new[:-1]!r}" if new else f"without {old[:-1]!r}" if old else "as they are" for old, new in fitting
    ]
    part = next((new[:-1] for _, new in fitting if new), None)
    hint = "" if part is None else f"; load into the part that is meant, such as model.get_submodule({part!r})"
    raise CheckpointError(
        f"{speaker()}: the names in {folder} must fit the model in one way, they fit {', '.join(places[:8])}"
        f"{f' and {len(places) - 8} more' if len(places) > 8 else ''}{hint}"
    )


def _fitting_changes(paths: list[str], modules: Mapping[str, nn.Module]) -> list[tuple[str, str]]:
    if len(paths) > len(modules):
        return []
    first = paths[0]
    longer = [("", name[: -len(first)]) for name in modules if name.endswith(f".{first}")]
    shorter = [(first[: -len(name)], "") for name in modules if name and first.endswith(f".{name}")]
    return [
        (old, new)
        for old, new in [("", ""), *longer, *shorter]
        if all(path.startswith(old) and _renamed(path, old, new) in modules for path in paths)
    ]


def _renamed(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name.startswith(old) else name


def _config(values: Any, source: Path) -> AdapterConfig:
    try:
        return AdapterConfig.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{speaker()}: {source} holds no valid config: {error}") from error
