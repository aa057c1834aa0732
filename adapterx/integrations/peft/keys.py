"""How the tensors of an adapter are called in PEFT's files: as in those of adapterx, behind `base_model.model.`."""

from collections.abc import Mapping

from torch import Tensor, nn

from adapterx.couplings import Couplings, HeadCouplings
from adapterx.errors import CheckpointError
from adapterx.host import AdapterSet
from adapterx.route import SwitchableModules

_FSDP = "_fsdp_wrapped_module."


def tensor_names(model: nn.Module, name: str) -> dict[str, list[str]]:
    """Return, by the name of each tensor in a file, its names in `model.state_dict()`: several where modules share it.

    Args:
        model: a `PeftModel`, or what it wraps.
        name: of the adapter.
    """
    table: dict[str, list[str]] = {}
    first: dict[int, str] = {}
    hung = [(path, each) for path, each in model.named_modules() if isinstance(each, SwitchableModules)]
    for path, each in sorted(hung, key=lambda entry: isinstance(entry[1], HeadCouplings)):  # they share all they have
        path = path.replace(_FSDP, "")
        owner = path if isinstance(each, (AdapterSet, Couplings)) else path.rpartition(".")[0]
        for key, tensor in each[name].state_dict(keep_vars=True).items() if name in each else ():
            in_file = first.setdefault(id(tensor), f"{owner}.{key}")
            table.setdefault(in_file, []).append(f"{path}.{name}.{key}")
    return table


def in_files(names: Mapping[str, list[str]], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a model's state under their names in a file.

    Raises:
        CheckpointError: the state lacks some.
    """
    if lacking := [own[0] for own in names.values() if own[0] not in state]:
        raise CheckpointError(
            f"save_pretrained: state_dict must hold the tensors of the adapter, it lacks {lacking[:4]}"
        )
    return {in_file: state[own[0]] for in_file, own in names.items()}


def in_model(names: Mapping[str, list[str]], tensors: Mapping[str, Tensor], adapter: str) -> dict[str, Tensor]:
    """Return the tensors of a file under their names in the model; those of others, such as heads, keep theirs.

    Raises:
        CheckpointError: some are missing, or belong to modules that are not adapted.
    """
    missing = sorted(names.keys() - tensors.keys())
    strange = sorted(
        key for key in tensors.keys() - names.keys() if {"adapterx", "adapterx_invertible"} & {*key.split(".")}
    )
    if missing or strange:
        raise CheckpointError(
            f"load_adapter: the files must hold the tensors of adapter {adapter!r}, {len(missing)} are missing: "
            f"{missing[:4]}, {len(strange)} belong to modules without it: {strange[:4]}"
        )
    found = {key: tensor for key, tensor in tensors.items() if key not in names}
    return found | {own: tensors[in_file] for in_file, several in names.items() for own in several}
