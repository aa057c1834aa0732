"""Save fusions of adapters, without these, and load them back: strict, without pickle, all or nothing."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.checkpoint.document import describe_base
from adapterx.checkpoint.fitting import check_fit, copy_into, listed
from adapterx.checkpoint.pair import read_pair, stored_metadata, write_pair
from adapterx.compose import Fuse, composition_from_dict, composition_to_dict
from adapterx.errors import CheckpointError, ConfigError, speaker, speaking_as
from adapterx.fusing import fusion_sets, fusions, plan_fusion, resolve_fusion
from adapterx.fusion import FusionConfig
from adapterx.host import base_modules
from adapterx.sharding import check_not_sharded, gathered, written_once


@speaking_as("save_fusion")
def save_fusion(
    model: nn.Module,
    folder: str | Path,
    fuse: Fuse | str | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write `fusion_config.json` and `fusion_model.safetensors`; an interruption leaves the old pair or the new one.

    The fused adapters are saved by `save_adapter`, each in a folder of its own.

    Args:
        model: the module that was given to `add_fusion` (names in the files are relative to it).
        folder: made if it is not there.
        fuse: the fusion, or its name; None takes the only one.
        metadata: further values for the JSON file, under `"metadata"`: what JSON can hold, less than 16 MiB.

    Raises:
        UnknownAdapterError: there is no such fusion, or None does not say which one.
        CheckpointError: the folder cannot be written, or the metadata cannot be stored.
    """
    key = resolve_fusion(model, fuse)
    modules = {path: hung[key] for path, hung in fusion_sets(model).items() if key in hung}
    document = {
        "composition": composition_to_dict(fusions(model)[key]),
        "config": next(iter(modules.values())).config.to_dict(),
        "base_model": describe_base(model),
        "modules": sorted(modules),
        "metadata": stored_metadata(metadata),
    }
    tensors = gathered(_tensors(modules))
    written_once(model, lambda: write_pair(folder, "fusion", tensors, document))


@speaking_as("load_fusion")
def load_fusion(model: nn.Module, folder: str | Path, *, active: bool = True, dtype: torch.dtype | None = None) -> Fuse:
    """Add a saved fusion to a model that has its adapters, by the same names, on the same modules.

    Names of modules may differ from the saved ones by one prefix. Everything is checked before the model is touched.

    Args:
        model: as in `add_fusion`.
        folder: what `save_fusion` wrote.
        active: as in `add_fusion`.
        dtype: as in `add_fusion`; the saved values are converted.

    Returns:
        The composition, for `set_active`.

    Raises:
        UnknownAdapterError: an adapter is not attached.
        CheckpointError: the files are missing or damaged, or do not fit the model and its adapters.
        ConfigError: the fusion is there already, or the dtype is none for adapters.
        TargetError: the model is sharded.
        RuntimeError: the model is inside a `mixed` block.
    """
    check_not_sharded(base_modules(model).values())
    document, tensors = read_pair(folder, "fusion")
    fuse, config, modules = _described(document, folder)
    plan = plan_fusion(model, fuse, config, generator=torch.Generator().manual_seed(0), dtype=dtype)
    old, new = _prefix_change(modules, plan.modules, folder)
    renamed = {new + key.removeprefix(old): tensor for key, tensor in tensors.items()}
    own = _tensors(plan.modules)
    check_fit(own, renamed, folder)
    copy_into(own, renamed)
    return plan.commit(active=active)


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{path}.{key}" if path else key: tensor
        for path, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def _described(document: Mapping[str, Any], folder: str | Path) -> tuple[Fuse, FusionConfig, list[str]]:
    """Return the composition, the configuration and the modules that a document describes."""
    modules = document.get("modules")
    if not isinstance(modules, list) or not modules or not all(isinstance(path, str) for path in modules):
        raise CheckpointError(f"{speaker()}: {folder} must describe a fusion by its modules, got {modules!r}")
    try:
        fuse, config = (
            composition_from_dict(document.get("composition")),
            FusionConfig.from_dict(document.get("config")),
        )
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{speaker()}: {folder} does not describe a fusion: {error}") from error
    if not isinstance(fuse, Fuse):
        raise CheckpointError(f"{speaker()}: {folder} must describe a Fuse, got {fuse!r}")
    return fuse, config, modules


def _prefix_change(saved: list[str], planned: Collection[str], folder: str | Path) -> tuple[str, str]:
    """Return the prefix to take off the saved names and the one to put on, so that they are those of the adapters."""
    first = saved[0]
    longer = [("", path[: -len(first)]) for path in planned if path.endswith(f".{first}")]
    shorter = [(first[: -len(path)], "") for path in planned if path and first.endswith(f".{path}")]
    for old, new in [("", ""), *longer, *shorter]:
        if all(path.startswith(old) for path in saved) and {new + path[len(old) :] for path in saved} == set(planned):
            return old, new
    raise CheckpointError(
        f"{speaker()}: the fusion in {folder} does not fit the adapters: it is on {listed(sorted(saved))}, they hang "
        f"on {listed(sorted(planned))}"
    )
