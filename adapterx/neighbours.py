"""What PEFT has added to a model: its parameters train as it said, and adapters hang beside its layers, never on them.

PEFT is looked at where the program has imported it, and is never imported here.
"""

import sys
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn


class _Kind(NamedTuple):
    """A class of PEFT: where it is, what it holds of the model, and whether it stands in place of a module of it."""

    room: str
    name: str
    held: str
    replaces: bool


_KINDS = (
    _Kind("peft.tuners.tuners_utils", "BaseTunerLayer", "base_layer", True),
    _Kind("peft.utils.other", "AuxiliaryTrainingWrapper", "original_module", True),
    _Kind("peft.tuners.tuners_utils", "BaseTuner", "model", False),
    _Kind("peft.peft_model", "PeftModel", "base_model", False),
)


def others_parameters(modules: Mapping[str, nn.Module]) -> set[int]:
    """Return the identities of the parameters that PEFT has added to a model, of which these are the modules."""
    kinds, found = _imported(), set()
    for module in modules.values() if kinds else ():
        for held in (each.held for kind, each in kinds if isinstance(module, kind)):
            added = [child for name, child in module.named_children() if name != held]
            found |= {id(parameter) for parameter in module.parameters(recurse=False)}
            found |= {id(parameter) for child in added for parameter in child.parameters()}
    return found


def outside_of_others(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules, by qualified name, that are not inside of one that PEFT has put in place of another."""
    replacing = tuple(kind for kind, each in _imported() if each.replaces)
    inside = tuple(f"{path}." for path, module in modules.items() if replacing and isinstance(module, replacing))
    return {path: module for path, module in modules.items() if not path.startswith(inside)}


def replaced_by_others(module: nn.Module) -> nn.Module | None:
    """Return the module of the model that PEFT has put this one in place of; None where it has not."""
    found = next((each.held for kind, each in _imported() if each.replaces and isinstance(module, kind)), None)
    return None if found is None else module._modules.get(found)


def _imported() -> list[tuple[type, _Kind]]:
    """Return those of the classes that the program has imported."""
    found = ((getattr(sys.modules.get(each.room), each.name, None), each) for each in _KINDS)
    return [(kind, each) for kind, each in found if kind is not None]
