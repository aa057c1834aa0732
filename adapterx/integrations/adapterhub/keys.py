"""The names of an adapter's tensors: `<prefix><location>.adapters.<name>.<parameter>` in `adapters`, ours in a module.

`adapters` saves some tensors under two names, since its modules stand in a list as well: the norm before the bottleneck
and the slope of prelu. Both are read and must be equal; both are written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adapterx.errors import CheckpointError, speaker
from adapterx.integrations.adapterhub.families import Family, Place

_EARLIER = {  # names of the first versions
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_lang_adapters": "invertible_adapters",
}
_MARKS = ("adapters", "invertible_adapters", "shared_parameters")


@dataclass
class Sorted:
    """The tensors of an adapter, sorted by where they belong; `keys` is what each is called in the file.

    Attributes:
        places: by place, under the names of our modules.
        invertible: of the invertible adapter, under the names of ours.
        shared: what all modules share, under the names of our modules.
        keys: for messages, by place and name.
    """

    places: dict[Place, dict[str, Tensor]] = field(default_factory=dict)
    invertible: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[tuple[Place, str], str] = field(default_factory=dict)


def sort_tensors(
    tensors: Mapping[str, Tensor], name: str, family: Family, options: Mapping[str, Any], source: str
) -> Sorted:
    """Sort what was read.

    Args:
        tensors: as they stand in the file.
        name: of the adapter there.
        family: of the model.
        options: of the adapter, as in `options_of`.
        source: names the folder in messages.

    Raises:
        CheckpointError: a key is none of an adapter of this name in such a model, or keys contradict each other.
    """
    found, prefixes, strange = Sorted(), set(), []
    invertible = invertible_names() if options["inv_adapter"] else {}
    names, common = dict(parameter_names(options)), shared_names(options)
    for key, tensor in tensors.items():
        location, mark, parameter = _split(key, name)
        if mark == "adapters":
            known, own = family.place_of_key(location), names.get(parameter)
            if known is None or own is None:
                strange.append(key)
                continue
            prefixes.add(known[0])
            _put(found, known[1], own, tensor, key, source)
        elif mark == "invertible_adapters" and parameter in invertible:
            found.invertible[invertible[parameter]] = tensor
        elif mark == "shared_parameters" and parameter in common:
            found.shared |= dict.fromkeys(common[parameter], tensor)
        else:
            strange.append(key)
    if strange:
        raise CheckpointError(
            f"{speaker()}: {source} must hold the tensors of an adapter {name!r} of this model only, "
            f"{len(strange)} are none: {', '.join(sorted(strange)[:4])}"
        )
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{speaker()}: the keys in {source} must have one prefix, they have "
            f"{', '.join(map(repr, sorted(prefixes)))}"
        )
    return found


def _split(key: str, name: str) -> tuple[str, str | None, str]:
    """Return what stands before the mark, the mark, and what stands behind the adapter's name."""
    for earlier, now in _EARLIER.items():
        key = key.replace(f".{earlier}.", f".{now}.")
    for mark in _MARKS:
        before, found, after = f".{key}".partition(f".{mark}.{name}.")
        if found:
            return before[1:], mark, after
    return "", None, ""


def _put(found: Sorted, place: Place, own: str, tensor: Tensor, key: str, source: str) -> None:
    tensors = found.places.setdefault(place, {})
    if own in tensors and not torch.equal(tensors[own], tensor):
        raise CheckpointError(
            f"{speaker()}: {key} and {found.keys[place, own]} of {source} must be equal, they name one tensor"
        )
    tensors[own] = tensor
    found.keys[place, own] = key


def parameter_names(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what `adapters` calls each parameter of an adapter with these options, and what we call it.

    Several of its names may stand for one of ours. The bottleneck stands behind the norm, if there is one, in a list.
    """
    first = 1 if options["ln_before"] else 0
    names = [("scaling", "scaling")]
    for kind in ("weight", "bias"):
        if first:
            own = f"norm_before.{kind}"
            names += [(f"adapter_norm_before.{kind}", own), (f"adapter_down.0.{kind}", own)]
        names += [(f"adapter_norm_after.{kind}", f"norm_after.{kind}"), (f"gate.{kind}", f"gate.{kind}")]
    parts = _PHM if options["phm_layer"] else _LINEAR
    for theirs, ours in ((f"adapter_down.{first}", "down_proj"), ("adapter_up", "up_proj")):
        names += [(f"{theirs}.{part}", f"{ours}.{own}") for part, own in parts]
    return (*names, ("non_linearity.f.weight", "slope"), (f"adapter_down.{first + 1}.f.weight", "slope"))


_LINEAR = (("weight", "weight"), ("bias", "bias"))
_PHM = (
    ("b", "bias"),
    ("W", "blocks.matrices"),
    ("W_left", "blocks.left"),
    ("W_right", "blocks.right"),
    ("phm_rule", "rule.matrices"),
    ("phm_rule_left", "rule.left"),
    ("phm_rule_right", "rule.right"),
)


def invertible_names() -> dict[str, str]:
    """Return what `adapters` calls each parameter of an invertible adapter (NICE), and what we call it."""
    layers = {"0.weight": "down_proj.weight", "0.bias": "down_proj.bias", "1.f.weight": "slope"}
    layers |= {"2.weight": "up_proj.weight", "2.bias": "up_proj.bias"}
    return {f"{net.upper()}.{theirs}": f"{net}.{ours}" for net in ("f", "g") for theirs, ours in layers.items()}


def shared_names(options: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return what `adapters` calls each parameter that all modules of an adapter share, and what we call it in each."""
    names: dict[str, tuple[str, ...]] = {}
    for kind, own in (("", "matrices"), ("_left", "left"), ("_right", "right")):
        if options["phm_layer"] and options["shared_phm_rule"]:
            names[f"phm_rule{kind}"] = (f"down_proj.rule.{own}", f"up_proj.rule.{own}")
        if options["phm_layer"] and options["shared_W_phm"]:
            names |= {f"W_{map_}{kind}": (f"{map_}_proj.blocks.{own}",) for map_ in ("down", "up")}
    return names
