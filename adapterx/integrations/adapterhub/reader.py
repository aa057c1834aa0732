"""Load an adapter of AdapterHub into a model: everything is checked before the model changes."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterx.checkpoint.fitting import listed
from adapterx.config import AdapterConfig
from adapterx.errors import CheckpointError, speaker, speaking_as
from adapterx.host import base_modules
from adapterx.integrations.adapterhub.described import Described
from adapterx.integrations.adapterhub.families import Family, Place
from adapterx.integrations.adapterhub.files import ADAPTER, read_document, read_tensors
from adapterx.integrations.adapterhub.keys import Sorted, sort_tensors
from adapterx.planning import Plan, check_dtype, check_name, plan_attachment
from adapterx.records import Attachment


@speaking_as("load_adapter")
def load_adapter(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    *,
    active: bool = True,
    dtype: torch.dtype | None = None,
    check_base: bool = True,
) -> Attachment:
    """Attach an adapter that AdapterHub's `adapters` has saved; it gives the outputs that it gave there.

    Read are `adapter_config.json` (with `adapter_interface.json`, if there is one) and `pytorch_adapter.bin` or
    `adapter.safetensors`; where both stand there they must hold the same. No pickle is run: of the former only plain
    tensors are read.

    Args:
        model: the same base model, with or without a head; its own class, not one of `adapters`.
        folder: what `model.save_adapter` of `adapters` wrote, versions 1 to 1.3.0, or its predecessor's.
        name: name in this model; None keeps the saved one.
        active: as in `adapterx.attach`.
        dtype: as in `adapterx.attach`; the saved values are converted.
        check_base: False takes a model of another type too, such as XLM-R for RoBERTa.

    Returns:
        The report of `adapterx.attach`.

    Raises:
        CheckpointError: the files are missing or damaged, do not fit the model, or hold another method than bottleneck
            adapters, or an option that an adapter of ours cannot have, which the message names.
        ConfigError: the name is taken, or is no name for an adapter; the dtype is none for adapters.
        RuntimeError: the model is inside a `mixed` block.
    """
    folder = Path(folder)
    document, modules = read_document(folder, ADAPTER), base_modules(model)
    saved = _name_of(document, folder)
    name = saved if name is None else name
    check_name(model, name)
    check_dtype(dtype)
    described = Described(document, modules, folder, check_base=check_base)
    expected = described.shapes()
    largest = sum(8 * math.prod(shape) for shapes in expected.values() for shape in shapes.values())
    tensors = read_tensors(folder, ADAPTER, largest=2 * largest)
    found = sort_tensors(tensors, saved, described.family, described.options, str(folder))
    _spread(found, expected, described.options, folder)
    _check_fit(found, expected, described, folder)
    generator = torch.Generator(device="cpu").manual_seed(0)
    plan = plan_attachment(model, described.config, name, generator=generator, dtype=dtype)
    _copy_invertible(plan, found, folder)
    for target in plan.report.targets:
        own, new = plan.adapters[target.module].state_dict(), found.places[described.places[target.module]]
        for key, tensor in own.items():
            tensor.copy_(new[key].reshape(tensor.shape))
    return plan.commit(active=active)


@speaking_as("read_config")
def read_config(folder: str | Path, model: nn.Module, *, check_base: bool = True) -> AdapterConfig:
    """Return what an adapter of AdapterHub is as a configuration of ours; its tensors are not read.

    Args:
        folder: as in `load_adapter`.
        model: as there; what the options mean depends on where its norms stand.
        check_base: as there.

    Raises:
        CheckpointError: as in `load_adapter`.
    """
    folder = Path(folder)
    return Described(read_document(folder, ADAPTER), base_modules(model), folder, check_base=check_base).config


def _name_of(document: Mapping[str, Any], folder: Path) -> str:
    name = document.get("name")
    if not isinstance(name, str) or not name or "." in name:
        raise CheckpointError(
            f"{speaker()}: name of {folder / ADAPTER.document} must be one without dots, got {name!r}"
        )
    return name


def _copy_invertible(plan: Plan, found: Sorted, folder: Path) -> None:
    """Copy the invertible adapter, which must fit exactly."""
    own = {} if plan.invertible is None else plan.invertible.state_dict()
    shapes = [{key: tuple(tensor.shape) for key, tensor in tensors.items()} for tensors in (own, found.invertible)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{speaker()}: the invertible adapter in {folder} must have the shapes {shapes[0]}, got {shapes[1]}"
        )
    for key, tensor in own.items():
        tensor.copy_(found.invertible[key])


def _spread(found: Sorted, places: Iterable[Place], options: Mapping[str, Any], folder: Path) -> None:
    """Give each module what all of them share."""
    if options["phm_layer"] and options["shared_phm_rule"] and not any(".rule." in key for key in found.shared):
        raise CheckpointError(
            f"{speaker()}: {folder} lacks the phm_rule of its adapter, which adapters leaves out where the adapter was "
            "saved from a bare base model; save it there from a model with a head"
        )
    for place in places:
        found.places.setdefault(place, {}).update(found.shared)


def _check_fit(
    found: Sorted, expected: Mapping[Place, Mapping[str, tuple[int, ...]]], described: Described, folder: Path
) -> None:
    """Refuse tensors that are not exactly those of the adapter that the document describes."""
    family: Family = described.family
    have = {(place, key) for place, tensors in found.places.items() for key in tensors}
    need = {(place, key) for place, shapes in expected.items() for key in shapes}
    if missing := [f"{key} behind {family.key_of_place(place)}" for place, key in sorted(need - have)]:
        raise CheckpointError(f"{speaker()}: {folder} lacks tensors of its adapter: {listed(missing)}")
    if more := sorted(found.keys.get(entry, entry[1]) for entry in have - need):
        raise CheckpointError(
            f"{speaker()}: {folder} holds tensors that its config or the model does not have: {listed(more)}"
        )
    for place, key in sorted(need):
        tensor, shape = found.places[place][key], expected[place][key]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{speaker()}: {found.keys.get((place, key), key)} of {folder} must have the shape {shape}, got "
                f"{tuple(tensor.shape)}"
            )
