"""Whatever a model trains, adapters or not, as one checkpoint of a training run; the frozen rest is never written."""

from pathlib import Path

from torch import Tensor, nn

from adapterx.adapters import active_adapters, adapter_parameters
from adapterx.checkpoint.adapter import fitting_tensors, save_adapter
from adapterx.checkpoint.fitting import check_fit, copy_into
from adapterx.checkpoint.pair import read_pair, write_pair
from adapterx.errors import speaking_as
from adapterx.heads import SequenceClassifier


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes: the trainable parameters, and the buffers of the modules that own them."""
    state = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    persistent = model.state_dict().keys()
    for prefix, module in model.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(prefix=prefix, recurse=False):
                if name in persistent:
                    state[name] = buffer.detach()
    return state


@speaking_as("save_trained")
def save_trained(model: nn.Module, folder: Path) -> None:
    """Write the active adapters (as `save_adapter` does) and, as `trainable_*`, whatever else is trained.

    Each of these pairs of files is written whole, but they are several: `adapterx.checkpoint.folder.seal` vouches that
    they belong together.

    Args:
        model: a `SequenceClassifier`, or any model that was given to `attach`.
        folder: made if it is not there; several adapters get subfolders named like them.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    for name, place in _adapter_folders(model, folder).items():
        save_adapter(_adapted(model), place, name)
    write_pair(folder, "trainable", _other_state(model), {})


@speaking_as("restore_trained")
def restore_trained(model: nn.Module, folder: Path) -> None:
    """Copy what `save_trained` wrote into the model; everything is checked before the first tensor is copied.

    Args:
        model: like the one that was saved, with the same active adapters.
        folder: what `save_trained` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, or does not fit what the model trains; it is then as it was.
    """
    _, saved = read_pair(folder, "trainable")
    own = _other_state(model)
    check_fit(own, saved, folder)
    pairs = [fitting_tensors(_adapted(model), place, name) for name, place in _adapter_folders(model, folder).items()]
    for mine, stored in [*pairs, (own, saved)]:
        copy_into(mine, stored)


def _adapted(model: nn.Module) -> nn.Module:
    """Return the module whose names the adapter files use: the bare base model inside a classifier of ours."""
    return model.base_model if isinstance(model, SequenceClassifier) else model


def _other_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable tensors that the adapter files do not hold, such as those of a head."""
    base = _adapted(model)
    stored = {p.data_ptr() for name in active_adapters(base) for _, p in adapter_parameters(base, name)}
    return {name: tensor for name, tensor in trainable_state(model).items() if tensor.data_ptr() not in stored}


def _adapter_folders(model: nn.Module, folder: Path) -> dict[str, Path]:
    names = active_adapters(_adapted(model))
    return {name: folder if len(names) == 1 else folder / name for name in names}
