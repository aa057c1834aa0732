"""Save adapters, without the base model, and load them back: strict, without pickle, all or nothing."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.adapters import adapters
from adapterx.bottleneck import BottleneckAdapter
from adapterx.checkpoint.base import check_same_base, record_base
from adapterx.checkpoint.contents import Contents, check_targets, describe_target, read_contents, renamed_to_fit
from adapterx.checkpoint.document import describe_base
from adapterx.checkpoint.fitting import check_fit, copy_into
from adapterx.checkpoint.pair import stored_metadata, write_pair
from adapterx.checkpoint.tensors import (
    adapter_modules,
    adapter_state,
    adapter_tensors,
    give_memory,
    new_tensors,
    plan_modules,
    plan_tensors,
    resolve_name,
)
from adapterx.config import AdapterConfig
from adapterx.couplings import INVERTIBLES
from adapterx.errors import (
    CheckpointError,
    ConfigError,
    TargetError,
    speaker,
    speaking_as,
)
from adapterx.host import ADAPTERS, COPIES, base_modules
from adapterx.phm import Factors
from adapterx.planning import build_invertible, check_dtype, check_name, norms_to_train, plan_attachment
from adapterx.records import Attachment
from adapterx.sharding import check_not_sharded, reshard, written_once
from adapterx.targets import Target, find_ends, find_targets

_SPARE = 2**20  # numbers that a configuration may need beyond those in the files


@speaking_as("save_adapter")
def save_adapter(
    model: nn.Module, folder: str | Path, name: str | None = None, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; an interruption leaves the old pair or the new one.

    What tells the weights of the adapted base modules from others is written too, for `load_adapter` to compare. Where
    FSDP2 has sharded the model all processes call this, and the first one writes for all.

    Args:
        model: the module that was given to `attach` (names in the files are relative to it).
        folder: made if it is not there.
        name: which adapter; None takes the only one, or the only active one.
        metadata: further values for the JSON file, under `"metadata"`: what JSON can hold, less than 16 MiB.

    Raises:
        UnknownAdapterError: the adapter is not attached, or None does not say which one.
        CheckpointError: the folder cannot be written, or the metadata cannot be stored.
    """
    tensors, document = adapter_contents(model, resolve_name(model, name), metadata)
    written_once(model, lambda: write_pair(folder, "adapter", tensors, document))


def adapter_contents(
    model: nn.Module, name: str, metadata: Mapping[str, Any] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the document of an adapter's files; collective and errors as in `save_adapter`."""
    return adapter_state(model, name), _describe(model, name, metadata)


def _describe(model: nn.Module, name: str, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    attachment = adapters(model)[name]
    if not attachment.targets:
        raise CheckpointError(f"{speaker()}: adapter {name!r} must have adapted modules inside this model")
    return {
        "name": name,
        "config": attachment.config.to_dict(),
        "base_model": describe_base(model),
        "base_check": record_base(model, [target.module for target in attachment.targets]),
        "modules": {target.module: describe_target(target) for target in attachment.targets},
        "metadata": stored_metadata(metadata),
    }


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
    """Attach a saved adapter. Everything is checked before the model is touched.

    Names may differ from the saved ones by one prefix, as between `AutoModel` and `AutoModelForMaskedLM`; where several
    prefixes fit, such as those of two towers, load into the part that is meant.

    The model must be the one that the adapter was trained on: the weights of the adapted modules must be equal, as far
    as the coarser dtype of the two can tell. Quantised or offloaded weights are not compared, nor are the files of
    0.1.0, which recorded none. On the meta device the adapter alone gets memory, on the CPU.

    Args:
        model: as in `attach`.
        folder: what `save_adapter` wrote.
        name: name in this model; None keeps the saved one.
        active: as in `attach`.
        dtype: as in `attach`; the saved values are converted.
        check_base: False takes a model with other weights too, such as one that was trained further.

    Returns:
        The report of `attach`.

    Raises:
        CheckpointError: the files are missing or damaged, are another library's, do not fit the model, or belong to
            another one.
        TargetError: the model is sharded.
        ConfigError: the name is taken, or is no name for an adapter; the dtype is none for adapters.
        RuntimeError: the model is inside a `mixed` block.
    """
    check_not_sharded(base_modules(model).values())
    contents = read_contents(folder)
    name = contents.name if name is None else name
    check_name(model, name)
    check_dtype(dtype)
    modules = base_modules(model)
    contents = renamed_to_fit(contents, model, modules)
    saved = list(contents.modules)
    with _fitting(folder):
        targets = find_targets(modules, contents.config, saved=saved)[0]
    with _fitting(folder):
        _check_extent(modules, targets, contents, folder)
        # A generator of its own, so that loading does not move the global random numbers.
        generator = torch.Generator(device="cpu").manual_seed(0)
        plan = plan_attachment(model, contents.config, name, generator=generator, dtype=dtype, saved=saved)
    check_fit(plan_tensors(plan), contents.tensors, folder, planned=True)
    check_targets(contents, targets)
    if check_base:
        check_same_base(model, contents.base, contents.described, str(folder))
    give_memory(plan_modules(plan))
    copy_into(plan_tensors(plan), contents.tensors)
    return plan.commit(active=active)


@speaking_as("restore_adapter")
def restore_adapter(model: nn.Module, folder: str | Path, name: str | None = None, *, check_base: bool = True) -> None:
    """Copy saved weights into an adapter that is attached already, for example to go on with a training run.

    The base model is compared as in `load_adapter`, except for modules whose own weights are being trained. An adapter
    on the meta device gets memory on the CPU.

    Args:
        model: the module that was given to `attach`.
        folder: what `save_adapter` wrote.
        name: which adapter; None takes the only one, or the only active one.
        check_base: as in `load_adapter`.

    Raises:
        UnknownAdapterError: the adapter is not attached, or None does not say which one.
        CheckpointError: the files are missing or damaged, are another library's, do not fit, or belong to another
            model; the adapter is then as it was.
    """
    name = resolve_name(model, name)
    _, saved = fitting_tensors(model, folder, name, check_base=check_base, planned=True)
    give_memory(adapter_modules(model, name))
    copy_into(dict(adapter_tensors(model, name)), saved)


def fitting_tensors(
    model: nn.Module,
    folder: str | Path,
    name: str,
    *,
    check_base: bool = True,
    sha256: str | None = None,
    planned: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of an attached adapter and those saved in the folder, which fit; errors as `restore_adapter`.

    Together with `copy_into` this is `restore_adapter`, in two steps for those who restore several things or nothing.
    `sha256` is that of `read_pair`, `planned` that of `check_fit`.
    """
    contents = read_contents(folder, sha256=sha256)
    attachment = adapters(model)[name]
    own = attachment.config
    reshard(model)
    if contents.config != own:
        raise CheckpointError(
            f"{speaker()}: {folder} holds an adapter of another configuration: {contents.config}, not {own}"
        )
    state = dict(adapter_tensors(model, name))
    check_fit(state, contents.tensors, folder, planned=planned)
    check_targets(contents, attachment.targets)
    if check_base:
        check_same_base(model, contents.base, contents.described, str(folder), trained=True)
    return state, contents.tensors


@contextmanager
def _fitting(folder: str | Path) -> Iterator[None]:
    """Turn what is wrong with the stored configuration into an error of the checkpoint."""
    try:
        yield
    except (TargetError, ConfigError) as error:
        reason = str(error).removeprefix(f"{speaker()}: ")  # it would speak twice in one message
        raise CheckpointError(f"{speaker()}: the adapter in {folder} does not fit the model: {reason}") from error


def _check_extent(
    modules: Mapping[str, nn.Module], targets: Sequence[Target], contents: Contents, folder: str | Path
) -> None:
    """Refuse a configuration that would take far more memory than the files hold numbers, before it takes any."""
    wanted, shared, seen = {}, {}, set()
    adapters = [(target.module, _without_memory(target, contents.config, shared)) for target in targets]
    for path, adapter in adapters:
        wanted |= new_tensors(f"{path}.{ADAPTERS}", adapter, seen)
    for path in (*contents.config.modules_to_save, *norms_to_train(modules, targets, contents.config)):
        for key, tensor in modules[path].state_dict(keep_vars=True).items():
            if not {ADAPTERS, COPIES, INVERTIBLES} & set(key.split(".")):
                wanted[f"{path}.{key}"] = tensor
    if contents.config.invertible is not None:
        ends = find_ends(modules, targets)
        invertible = build_invertible(modules, ends, contents.config, None, None, device="meta")
        wanted |= new_tensors(f"{ends.module}.{INVERTIBLES}", invertible, seen)
    held = sum(tensor.numel() for tensor in contents.tensors.values())
    if sum(tensor.numel() for tensor in wanted.values()) > held + _SPARE:
        check_fit(wanted, contents.tensors, folder, planned=True)


def _without_memory(target: Target, config: AdapterConfig, shared: dict[str, Factors]) -> BottleneckAdapter:
    width = config.resolve_bottleneck_dim(target.hidden_size, target.block)
    if config.bottleneck_dim is not None:
        width = min(width, target.hidden_size)
    return BottleneckAdapter(
        target.input_size, target.hidden_size, width, **config.branch_options(), shared=shared, device="meta"
    )
