"""Whatever a model trains, adapters or not, as one checkpoint of a training run; the frozen rest is never written."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adapterx.adapters import active_adapters, adapter_parameters
from adapterx.checkpoint.adapter import adapter_contents, fitting_tensors
from adapterx.checkpoint.fitting import check_fit, copy_into
from adapterx.checkpoint.pair import prepare_pair, read_document, read_pair, write_pair
from adapterx.checkpoint.settled import settled
from adapterx.checkpoint.waiting import pair_files, settle_pair, writing
from adapterx.errors import CheckpointError, speaker, speaking_as
from adapterx.heads import HeadedModel
from adapterx.sharding import gathered, written_once


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes: the trainable parameters, and the buffers of the modules that own them.

    Parameters that FSDP2 has sharded are returned as they are, `DTensor`s.
    """
    persistent = model.state_dict().keys()  # first: where FSDP2 left whole parameters, its shards come back
    state = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    for prefix, module in model.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(prefix=prefix, recurse=False):
                if name in persistent:
                    state[name] = buffer.detach()
    return state


@speaking_as("save_trained")
def save_trained(model: nn.Module, folder: Path) -> None:
    """Write the active adapters (as `save_adapter` does) and, as `trainable_*`, whatever else is trained.

    These pairs of files change together: the adapters wait beside the old ones until `trainable_config.json` names
    them, which is the moment of change. A process killed before leaves the old state, after it the new one. Where FSDP2
    has sharded the model all processes call this, and the first one writes for all.

    Args:
        model: a `SequenceClassifier`, or any model that was given to `attach`.
        folder: made if it is not there; several adapters get subfolders named like them.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder)
    places = _adapter_folders(model, folder)
    contents = {name: adapter_contents(_adapted(model), name) for name in places}
    other = gathered(_other_state(model))
    written_once(model, lambda: _write(folder, places, contents, other))


def _write(
    folder: Path,
    places: dict[str, Path],
    contents: dict[str, tuple[dict[str, Tensor], dict[str, Any]]],
    other: dict[str, Tensor],
) -> None:
    """Write the adapters, and what else is trained; both were gathered before."""
    with writing(folder):
        _settle(folder, places)  # a process that was killed may have come to the moment of change and no further
        try:
            hashes = {
                _key(place, folder): prepare_pair(place, "adapter", *contents[name]) for name, place in places.items()
            }
            write_pair(folder, "trainable", other, {"adapters": hashes})
            _settle(folder, places)
        except BaseException:
            _settle(folder, places)  # what cannot be settled now waits for the next save, and is read meanwhile
            raise


@speaking_as("restore_trained")
def restore_trained(model: nn.Module, folder: Path, *, check_base: bool = True) -> None:
    """Copy what `save_trained` wrote into the model; everything is checked before the first tensor is copied.

    Args:
        model: like the one that was saved, with the same active adapters.
        folder: what `save_trained` wrote.
        check_base: as in `restore_adapter`.

    Raises:
        CheckpointError: a file is missing or damaged, does not fit what the model trains, or belongs to another base
            model; the model is then as it was.
    """
    folder = Path(folder)
    places, own = _adapter_folders(model, folder), _other_state(model)

    def read() -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        document, saved = read_pair(folder, "trainable")
        check_fit(own, saved, folder)
        hashes = _adapter_hashes(document, places, folder)
        adapted = _adapted(model)
        pairs = [
            fitting_tensors(adapted, place, name, check_base=check_base, sha256=hashes[name])
            for name, place in places.items()
        ]
        return [*pairs, (own, saved)]

    def watched() -> list[Path]:
        adapter_files = [path for place in places.values() for path in pair_files(place, "adapter")]
        return [*pair_files(folder, "trainable"), *adapter_files]

    for mine, stored in settled(read, watched):
        copy_into(mine, stored)


def _settle(folder: Path, places: dict[str, Path]) -> None:
    """Bring the adapters that `trainable_config.json` names to their places, and delete those that wait in vain."""
    named: Any = None
    with suppress(CheckpointError):  # there is none yet, or it is damaged
        named = read_document(folder, "trainable").get("adapters")
    for place in places.values():
        digest = named.get(_key(place, folder)) if isinstance(named, dict) else None
        if place.is_dir():
            settle_pair(place, "adapter", digest if isinstance(digest, str) else None)


def _adapted(model: nn.Module) -> nn.Module:
    """Return the module whose names the adapter files use: the bare base model inside a classifier of ours."""
    return model.base_model if isinstance(model, HeadedModel) else model


def _other_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable tensors that the adapter files do not hold, such as those of a head."""
    base = _adapted(model)
    state = trainable_state(model)
    in_files = {id(p) for name in active_adapters(base) for _, p in adapter_parameters(base, name)}
    stored = {name for name, parameter in model.named_parameters() if id(parameter) in in_files}
    return {name: tensor for name, tensor in state.items() if name not in stored}


def _adapter_folders(model: nn.Module, folder: Path) -> dict[str, Path]:
    names = active_adapters(_adapted(model))
    return {name: folder if len(names) == 1 else folder / name for name in names}


def _adapter_hashes(document: dict[str, Any], places: dict[str, Path], folder: Path) -> dict[str, str | None]:
    """Return by name the hashes of the adapters that were saved together with what the document is about."""
    if document["format_version"] == 1:  # of adapterx 0.1.0, which recorded none
        return dict.fromkeys(places)
    hashes, keys = document.get("adapters"), {name: _key(place, folder) for name, place in places.items()}
    if not isinstance(hashes, dict) or hashes.keys() != set(keys.values()):
        found = sorted(hashes) if isinstance(hashes, dict) else hashes
        raise CheckpointError(
            f"{speaker()}: {folder} does not fit the model: it holds adapters in {found} instead of "
            f"{sorted(keys.values())}"
        )
    if not all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes.values()):
        raise CheckpointError(f"{speaker()}: {folder} must name its adapters by their hashes, got {hashes}")
    return {name: hashes[key] for name, key in keys.items()}


def _key(place: Path, folder: Path) -> str:
    return place.relative_to(folder).as_posix()
