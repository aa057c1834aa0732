"""Fusions of AdapterHub: read into the fusion of attached adapters, and written.

What `adapters` fuses are branches before gates and norms of their own, and behind parallel adapters it adds the
residual stream twice; fusions of such adapters are refused. Its `value_before_softmax` changes nothing but the order of
products.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.adapters import adapters, check_known
from adapterx.checkpoint.fitting import listed
from adapterx.compose import Fuse
from adapterx.errors import CheckpointError, ConfigError, speaker, speaking_as
from adapterx.fusing import FusionPlan, fusion_sets, fusions, plan_fusion, resolve_fusion
from adapterx.fusion import FusionConfig
from adapterx.host import base_modules
from adapterx.integrations.adapterhub.families import Family, Place, family_of
from adapterx.integrations.adapterhub.files import FUSION, read_document, read_tensors, write_files
from adapterx.integrations.adapterhub.writer import described_model, places_of

_OPTIONS = ("key", "query", "query_before_ln", "regularization", "residual_before", "temperature", "value")
_NAMED = {
    "static": {"value": False, "regularization": False, "value_initialized": False},
    "dynamic": {},
}
_DEFAULTS = {
    "key": True, "query": True, "value": True, "query_before_ln": False, "regularization": True,
    "residual_before": False, "temperature": False, "value_before_softmax": True, "value_initialized": True,
    "dropout_prob": None,
}  # fmt: skip
_MARK = "adapter_fusion_layer"


@speaking_as("load_fusion")
def load_fusion(
    model: nn.Module, folder: str | Path, names: Sequence[str] | None = None, *, active: bool = True
) -> Fuse:
    """Add a fusion that AdapterHub's `adapters` has saved; its adapters are loaded before.

    Args:
        model: as in `load_adapter`.
        folder: what `save_adapter_fusion` of `adapters` wrote.
        names: what its adapters are called in this model, in the order of the fusion; None keeps the saved names.
        active: whether the fusion becomes the active composition.

    Returns:
        The composition, for `adapterx.set_active`. A temperature begins anew, since `adapters` saves none.

    Raises:
        UnknownAdapterError: an adapter of the fusion is not attached.
        CheckpointError: the files are missing or damaged, do not fit the model, or fuse what we fuse otherwise.
        ConfigError: the fusion is there already.
    """
    folder, modules = Path(folder), base_modules(model)
    document = read_document(folder, FUSION)
    saved, parts = _names(document, folder)
    names = parts if names is None else list(names)
    if len(names) != len(parts):
        raise ConfigError(f"{speaker()}: names must be {len(parts)}, as many as {folder} fuses, got {names!r}")
    check_known(model, names)
    config = _config(document["config"], getattr(modules[""], "config", None), folder)
    _check_parts(model, names, config)
    renamed = names != parts or saved == ",".join(parts)
    plan = _planned(model, Fuse(*names, name=None if renamed else saved), config, folder)
    family = family_of(modules)[1]
    places = {path: places_of(adapters(model)[names[-1]], modules, family)[path] for path in plan.modules}
    size = sum(p.numel() for module in plan.modules.values() for p in module.parameters())
    tensors = _by_place(read_tensors(folder, FUSION, largest=16 * size), saved, family, folder)
    _copy(plan, places, tensors, folder)
    return plan.commit(active=active)


def fused_names(document: Mapping[str, Any]) -> Any:
    """Return the adapters that a document of a fusion names: a list of their names, unless the document is damaged."""
    parts = document.get("adapter_names")
    parts = document.get("name") if parts is None else parts
    return parts.split(",") if isinstance(parts, str) else parts


def _names(document: Mapping[str, Any], folder: Path) -> tuple[str, list[str]]:
    name, parts = document.get("name"), fused_names(document)
    if not isinstance(name, str) or not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise CheckpointError(f"{speaker()}: {folder / FUSION.document} must name the adapters of its fusion")
    return name, parts


def _check_parts(model: nn.Module, names: Sequence[str], fusion: FusionConfig) -> None:
    """Refuse adapters of which `adapters` fuses something else than we do."""
    for name in names:
        config = adapters(model)[name].config
        if fusion.residual_before and config.placement == "normed_sum" and config.added_to != "normed":
            raise CheckpointError(
                f"{speaker()}: residual_before must be False for adapters of placement 'normed_sum', to whose branches "
                f"adapters adds the sublayer's output alone, got True for {name!r}"
            )
        if config.placement.startswith("parallel") or config.gating or config.norm_after:
            raise CheckpointError(
                f"{speaker()}: the fused adapters must not be parallel, nor have gating or norm_after, of which "
                f"adapters fuses something else, got {name!r}: {config}"
            )


def _config(values: Any, model_config: Any, folder: Path) -> FusionConfig:
    values = _NAMED.get(values, values) if isinstance(values, str) else values
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{speaker()}: config of {folder / FUSION.document} must be an object, got {values!r}")
    if unknown := sorted(values.keys() - _DEFAULTS.keys() - {"architecture"}):
        raise CheckpointError(
            f"{speaker()}: config of {folder / FUSION.document} has unknown options: {listed(unknown)}"
        )
    values = _DEFAULTS | values
    dropout = values["dropout_prob"] or getattr(model_config, "attention_probs_dropout_prob", 0.0)
    try:
        options = {option: values[option] for option in _OPTIONS}
        return FusionConfig(**options, value_initialized=bool(values["value_initialized"]), dropout=dropout)
    except ConfigError as error:
        raise CheckpointError(f"{speaker()}: {folder / FUSION.document} holds no valid config: {error}") from error


def _planned(model: nn.Module, fuse: Fuse, config: FusionConfig, folder: Path) -> FusionPlan:
    if fuse.key in fusions(model):
        raise ConfigError(f"{speaker()}: the fusion must be new, {fuse.key!r} is there; remove it first")
    try:
        return plan_fusion(model, fuse, config, generator=torch.Generator(device="cpu").manual_seed(0))
    except ConfigError as error:
        reason = str(error).removeprefix(f"{speaker()}: ")
        raise CheckpointError(f"{speaker()}: the fusion in {folder} does not fit the model: {reason}") from error


def _by_place(tensors: Mapping[str, Tensor], name: str, family: Family, folder: Path) -> dict[Place, dict[str, Tensor]]:
    found: dict[Place, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        location, mark, parameter = key.partition(f".{_MARK}.{name}.")
        known = family.place_of_key(location) if mark else None
        if known is None:
            raise CheckpointError(
                f"{speaker()}: {folder} must hold the tensors of a fusion {name!r} only, {key} is none"
            )
        found.setdefault(known[1], {})[parameter] = tensor
    return found


def _copy(
    plan: FusionPlan, places: Mapping[str, Place], tensors: Mapping[Place, Mapping[str, Tensor]], folder: Path
) -> None:
    """Copy what was read into the planned modules, which it must fit exactly."""
    if places and set(places.values()) != tensors.keys():
        differing = sorted(set(places.values()) ^ tensors.keys())
        where = f"{differing[0].position} of block {differing[0].block}"
        raise CheckpointError(f"{speaker()}: {folder} must fuse where the adapters hang, it does not at {where}")
    for path, place in places.items():
        own = dict(plan.modules[path].named_parameters())
        read = tensors[place] if own else {}  # without maps `adapters` saves a layer that it never uses
        shapes = {key: tuple(tensor.shape) for key, tensor in own.items()}
        if {key: tuple(tensor.shape) for key, tensor in read.items()} != shapes:
            raise CheckpointError(f"{speaker()}: the fusion in {folder} must hold {shapes} for {path}, it does not")
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(read[key])


@speaking_as("save_fusion")
def save_fusion(model: nn.Module, folder: str | Path, fuse: Fuse | str | None = None) -> None:
    """Write a fusion for AdapterHub's `adapters` 1.3.0, without its adapters; a dropout of 0 is the model's own there.

    Args:
        model: the module that was given to `adapterx.add_fusion`.
        folder: made if it is not there.
        fuse: which fusion; None takes the only one.

    Raises:
        UnknownAdapterError: there is no such fusion, or None does not say which one.
        CheckpointError: `adapters` fuses such adapters otherwise, or the folder cannot be written, or holds another
            library's files.
    """
    key, modules = resolve_fusion(model, fuse), base_modules(model)
    parts = fusions(model)[key].parts
    if stacked := [part for part in parts if not isinstance(part, str)]:
        raise CheckpointError(f"{speaker()}: the parts of a fusion must be names for AdapterHub, got {stacked[0]!r}")
    found = {path: hung[key] for path, hung in fusion_sets(model).items() if key in hung}
    own = next(iter(found.values())).config
    _check_parts(model, parts, own)
    model_type, family = family_of(modules)
    places = places_of(adapters(model)[parts[-1]], modules, family)
    tensors = {
        f"{family.prefix}{family.key_of_place(places[path])}.{_MARK}.{key}.{name}": parameter
        for path, fusion in found.items()
        for name, parameter in fusion.named_parameters()
    }
    options = {option: getattr(own, option) for option in (*_OPTIONS, "value_initialized")}
    document = {
        "adapter_names": list(parts),
        "config": options | {"value_before_softmax": True, "dropout_prob": own.dropout or None},
        "name": key,
        **described_model(model, model_type),
    }
    write_files(Path(folder), FUSION, document, tensors)
