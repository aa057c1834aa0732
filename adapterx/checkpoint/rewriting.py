"""Change saved adapters without a model: give one another name, make one of the weights of several."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapterx.checkpoint.base import same_weights
from adapterx.checkpoint.contents import Contents, read_contents
from adapterx.checkpoint.document import read_json
from adapterx.checkpoint.pair import document_file, read_pair, write_pair
from adapterx.errors import CheckpointError, ConfigError, speaker, speaking_as
from adapterx.planning import check_adapter_name

_OF_A_HEAD = ("hidden_size", "num_labels", "pooling", "dense", "metadata")  # what must agree; the dropout is no weight


@speaking_as("rename_saved_adapter")
def rename_saved_adapter(folder: str | Path, name: str, output: str | Path | None = None) -> None:
    """Give a saved adapter another name, under which `load_adapter` attaches it unless it is told otherwise.

    Args:
        folder: what `save_adapter` wrote.
        name: the new name.
        output: write the renamed adapter, and the head beside it, to this folder and leave the other as it is.

    Raises:
        CheckpointError: the folder holds no adapter, is that of a run or stands beside a fusion that knows the adapter
            by its name and no output is given, or cannot be written.
        ConfigError: it is no name for an adapter.
    """
    folder = Path(folder)
    check_adapter_name(name)
    read_contents(folder)
    document, tensors = read_pair(folder, "adapter")
    if output is None or (Path(output).exists() and Path(output).samefile(folder)):
        _check_unbound(folder, document["name"])
        output = folder
    elif document_file(folder, "head").exists():
        described, head = read_pair(folder, "head")
        write_pair(output, "head", head, described)
    write_pair(output, "adapter", tensors, document | {"name": name})


def _check_unbound(folder: Path, name: str) -> None:
    """Refuse to rename what other files know by its name, or by the hash of its document."""
    if os.path.lexists(folder / "run.json"):
        raise CheckpointError(
            f"{speaker()}: output must be given, {folder} holds a run, which is known by the hashes of its files"
        )
    for place in (folder, folder.parent):
        path = document_file(place, "fusion")
        if path.exists():
            parts = read_json(path).get("composition")
            if isinstance(parts, dict) and name in (parts.get("parts") or []):
                raise CheckpointError(
                    f"{speaker()}: output must be given, the fusion in {place} knows {name!r} by this name"
                )


@speaking_as("average_saved_adapters")
def average_saved_adapters(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    name: str | None = None,
    weights: Sequence[float] | None = None,
    check_base: bool = True,
) -> bool:
    """Write an adapter of which every parameter is the weighted mean of those of saved ones, and so with their heads.

    Sensible where all began alike, as runs of one task with several settings do. `combine_adapters` does the same, and
    sums with signs, on a model.

    Args:
        folders: what `save_adapter` wrote, two or more.
        output: folder to write to, made if it is not there.
        name: of the new adapter; None takes that of the first.
        weights: one per folder, divided by their sum; None weighs all alike.
        check_base: False takes adapters that were trained on different base weights.

    Returns:
        Whether a head was written: every folder holds one, and they agree in size, pooling, labels.

    Raises:
        CheckpointError: a folder holds no adapter or a damaged one, or the output cannot be written.
        ConfigError: there are fewer than two folders, the weights do not fit, or the adapters differ in configuration,
            modules or base model.

    Source:
        Wortsman et al. 2022 (model soups); Chronopoulou et al. 2023 (AdapterSoup).
    """
    factors = _factors(folders, weights)
    first, *others = contents = [read_contents(folder) for folder in folders]
    for other in others:
        _check_alike(first, other, check_base=check_base)
    name = first.name if name is None else name
    check_adapter_name(name)
    document = {
        "name": name,
        "config": first.config.to_dict(),
        "base_model": first.described,
        "base_check": first.base,
        "modules": first.modules,
        "metadata": {"average_of": [each.name for each in contents], "weights": factors},
    }
    heads = _agreeing_heads([Path(folder) for folder in folders])
    if heads:
        write_pair(output, "head", _mean([tensors for _, tensors in heads], factors), heads[0][0])
    write_pair(output, "adapter", _mean([each.tensors for each in contents], factors), document)
    return bool(heads)


def _factors(folders: Sequence[str | Path], weights: Sequence[float] | None) -> list[float]:
    if isinstance(folders, (str, Path)) or len(folders) < 2:
        raise ConfigError(f"{speaker()}: folders must be two or more, got {folders!r}")
    given = [1.0] * len(folders) if weights is None else list(weights)
    if len(given) != len(folders) or not all(math.isfinite(weight) for weight in given):
        raise ConfigError(
            f"{speaker()}: weights must be a finite number for each of {len(folders)} folders, got {given}"
        )
    if not (total := sum(given)):
        raise ConfigError(f"{speaker()}: weights must not sum to 0, got {given}")
    return [weight / total for weight in given]


def _check_alike(first: Contents, other: Contents, *, check_base: bool) -> None:
    for what, one, two in (
        ("configuration", first.config, other.config),
        ("modules", first.modules, other.modules),
        ("tensors", _shapes(first.tensors), _shapes(other.tensors)),
    ):
        if one != two:
            raise ConfigError(
                f"{speaker()}: adapters must agree in their {what}, those of {first.source.parent} and "
                f"{other.source.parent} differ"
            )
    differ = [
        path
        for path, own in first.base["weights"].items()
        if own and (theirs := other.base["weights"].get(path)) and not same_weights(own, theirs)
    ]
    if check_base and differ:
        raise ConfigError(
            f"{speaker()}: adapters must be of one base model, those of {first.source.parent} and "
            f"{other.source.parent} were trained on different weights of {differ[0]!r}"
        )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _agreeing_heads(folders: list[Path]) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Return the heads in the folders, or nothing where one has none or they do not agree."""
    if not all(document_file(folder, "head").exists() for folder in folders):
        return []
    heads = [read_pair(folder, "head") for folder in folders]
    described = [({key: document.get(key) for key in _OF_A_HEAD}, _shapes(tensors)) for document, tensors in heads]
    return heads if all(each == described[0] for each in described) else []


def _mean(states: list[dict[str, Tensor]], factors: list[float]) -> dict[str, Tensor]:
    """Return the weighted mean of floating-point tensors, computed in float64; of others the first."""
    mean = dict(states[0])
    for key, tensor in mean.items():
        if tensor.is_floating_point():
            weighted = (factor * state[key].double() for factor, state in zip(factors, states, strict=True))
            mean[key] = sum(weighted, torch.zeros_like(tensor, dtype=torch.float64)).to(tensor.dtype)
    return mean
