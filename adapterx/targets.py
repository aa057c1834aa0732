"""Choose the modules that adapters hang on: by the user's names, by a table per model type, or by structure."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from adapterx.errors import TargetError
from adapterx.structure import find_by_structure, in_out_sizes, norm_size


@dataclass(frozen=True)
class Target:
    """One module to adapt.

    Attributes:
        module: its qualified name.
        position: `"attention"`, `"feed_forward"`, or `"named"` when `target_modules` chose it.
        block: index of the block it belongs to, or None.
        input_module: qualified name of the module whose input a parallel adapter reads; None is `module` itself.
        input_size: width of what the adapter reads, in elements.
        hidden_size: width of what the module returns, in elements.
    """

    module: str
    position: str
    block: int | None
    input_module: str | None
    input_size: int
    hidden_size: int


@dataclass(frozen=True)
class Selection:
    """The targets, in the model's order, and the rule that chose them, in words."""

    targets: tuple[Target, ...]
    rule: str


class Place(NamedTuple):
    """Within a block: the output projection, and the module that receives what the sublayer receives."""

    output: str
    input: str


class Layout(NamedTuple):
    """Where one family of models keeps its blocks and, in each, the two places."""

    blocks: str
    attention: Place
    feed_forward: Place


_BERT = Layout(
    "encoder.layer", Place("attention.output.dense", "attention.self"), Place("output.dense", "intermediate.dense")
)
_DISTILBERT = Layout("transformer.layer", Place("attention.out_lin", "attention"), Place("ffn.lin2", "ffn"))
_GPT2 = Layout("h", Place("attn.c_proj", "attn"), Place("mlp.c_proj", "mlp"))
_LLAMA = Layout("layers", Place("self_attn.o_proj", "self_attn"), Place("mlp.down_proj", "mlp"))

_FAMILIES = {
    "bert roberta xlm-roberta electra camembert ernie data2vec-text megatron-bert": _BERT,
    "distilbert": _DISTILBERT,
    "gpt2": _GPT2,
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 granite olmo olmo2 smollm3 cohere": _LLAMA,
}
LAYOUTS = {model_type: layout for model_types, layout in _FAMILIES.items() for model_type in model_types.split()}


def find_targets(
    modules: Mapping[str, nn.Module],
    *,
    placement: str,
    positions: tuple[str, ...],
    layers: tuple[int, ...] | None,
    target_modules: str | tuple[str, ...] | None,
    saved: Sequence[str] | None = None,
) -> Selection:
    """Choose the modules to adapt.

    Args:
        modules: qualified name to module, the model itself under `""`, without anything that adapterx added.
        placement: `"sequential"` or `"parallel"`.
        positions: as in `AdapterConfig`.
        layers: as in `AdapterConfig`.
        target_modules: as in `AdapterConfig`.
        saved: qualified names of the modules that a checkpoint adapts. They stand for `target_modules`, which may speak
            of names that differ by a prefix.

    Returns:
        The targets and the rule.

    Raises:
        TargetError: nothing, or something unsuitable, is chosen; the message lists what there is.
    """
    if target_modules is not None:
        chosen = _match(modules, target_modules) if saved is None else [name for name in modules if name in set(saved)]
        targets = [Target(name, "named", _block_index(name), None, 0, 0) for name in chosen]
        rule = f"target_modules={target_modules!r}"
    else:
        targets, rule = _find_by_position(modules, positions)
    if layers is not None:
        targets = _keep_layers(targets, layers)
        rule += f", layers={list(layers)}"
    return Selection(tuple(_measure(modules, target, placement) for target in targets), rule)


def model_type_of(modules: Iterable[nn.Module]) -> str | None:
    """Return `config.model_type` of the outermost module that has one (a wrapper may have no config)."""
    for module in modules:
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if isinstance(model_type, str) and model_type:
            return model_type
    return None


def _find_by_position(modules: Mapping[str, nn.Module], positions: tuple[str, ...]) -> tuple[list[Target], str]:
    model_type = model_type_of(modules.values())
    if model_type in LAYOUTS:
        targets = _find_by_table(modules, LAYOUTS[model_type], positions)
        if targets:
            return targets, f"table for model type {model_type!r}"
    found = find_by_structure(modules, positions)
    targets = [Target(item.module, item.position, item.block, item.input_module, 0, 0) for item in found]
    reason = "has no table" if model_type not in LAYOUTS else "has a table that does not fit this model"
    return targets, f"structure of the repeated blocks (model type {model_type!r} {reason})"


def _find_by_table(modules: Mapping[str, nn.Module], layout: Layout, positions: tuple[str, ...]) -> list[Target]:
    # The whole name is matched: in BERT the suffix `output.dense` alone would also take `attention.output.dense`.
    pattern = re.compile(rf"((?:.*\.)?{re.escape(layout.blocks)}\.(\d+))\.(.*)")
    places = {getattr(layout, position).output: position for position in positions}
    targets = []
    for name in modules:
        match = pattern.fullmatch(name)
        if match and match[3] in places:
            position = places[match[3]]
            source = f"{match[1]}.{getattr(layout, position).input}"
            targets.append(Target(name, position, int(match[2]), source, 0, 0))
    if not all(target.input_module in modules for target in targets):
        return []
    return targets if {target.position for target in targets} == set(positions) else []


def _match(modules: Mapping[str, nn.Module], target_modules: str | tuple[str, ...]) -> list[str]:
    """Return the names of the modules that the user's suffixes or regular expression mean."""
    names = [name for name in modules if name]
    if isinstance(target_modules, str):
        chosen = [name for name in names if re.fullmatch(target_modules, name)]
        unused = () if chosen else (target_modules,)
    else:
        chosen = [name for name in names if any(_has_suffix(name, suffix) for suffix in target_modules)]
        unused = [suffix for suffix in target_modules if not any(_has_suffix(name, suffix) for name in names)]
    if unused:
        hint = "; one string is a regular expression for the whole name, a tuple holds suffixes"
        raise TargetError(
            f"attach: target_modules must match modules of the model, nothing matches {', '.join(map(repr, unused))}"
            f"; the nearest names are {', '.join(_nearest(unused, names)) or 'none'}"
            + (hint if isinstance(target_modules, str) else "")
        )
    return chosen


def _has_suffix(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _nearest(wanted: Iterable[str], names: list[str]) -> list[str]:
    """Return up to five module names like `wanted`, comparing as many of the last components as it has."""
    found: dict[str, None] = {}
    for pattern in wanted:
        plain = re.sub(r"\\\.", ".", re.sub(r"\(\?:|[\^$()*+?]", "", pattern))
        depth = plain.count(".") + 1
        tails = {".".join(name.split(".")[-depth:]): name for name in reversed(names)}
        close = difflib.get_close_matches(plain, tails, n=5, cutoff=0.3)
        found |= dict.fromkeys(tails[tail] for tail in close)
    return list(found)[:5]


def _block_index(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _keep_layers(targets: list[Target], layers: tuple[int, ...]) -> list[Target]:
    known = {target.block for target in targets} - {None}
    missing = sorted(set(layers) - known)
    if missing:
        raise TargetError(
            f"attach: layers must be block indices of the model, got {missing}; there are {sorted(known) or 'none'}"
        )
    return [target for target in targets if target.block in layers]


def _measure(modules: Mapping[str, nn.Module], target: Target, placement: str) -> Target:
    """Fill in the sizes; a sequential adapter reads what the module returns."""
    own_input, hidden_size = module_sizes(modules, target.module)
    if placement == "sequential":
        return Target(target.module, target.position, target.block, None, hidden_size, hidden_size)
    if target.input_module is None:
        input_size = own_input
    else:
        # A sublayer has no size of its own; it reads the residual stream, which its output projection writes.
        input_size = (in_out_sizes(modules[target.input_module]) or (hidden_size, hidden_size))[0]
    return Target(target.module, target.position, target.block, target.input_module, input_size, hidden_size)


def module_sizes(modules: Mapping[str, nn.Module], name: str) -> tuple[int, int]:
    """Return the widths of what a module reads and returns, in elements.

    Raises:
        TargetError: the module cannot be adapted, or its widths cannot be told.
    """
    module = modules[name]
    kind = type(module).__name__
    parent = modules.get(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        raise TargetError(
            f"attach: {name} cannot be adapted, because torch.nn.MultiheadAttention reads its weights without calling "
            f"it; name {name.rpartition('.')[0]} instead"
        )
    if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
        raise TargetError(f"attach: {name} cannot be adapted, because a {kind} is never called")
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise TargetError(f"attach: {name} cannot be adapted, because the last axis of a {kind} is not its channels")
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.embedding_dim
    sizes = in_out_sizes(module)
    if sizes is None and (size := norm_size(module)) is not None:
        sizes = (size, size)
    weight = getattr(module, "weight", None)
    if sizes is None and isinstance(weight, Tensor) and weight.dim() == 2:
        sizes = (weight.shape[1], weight.shape[0])
    if sizes is None:
        size = _config_hidden_size(modules, name)
        if size is None:
            raise TargetError(
                f"attach: the hidden size of {name} ({kind}) cannot be told; target_modules should name modules with "
                "in_features and out_features, or the model needs a config.hidden_size"
            )
        sizes = (size, size)
    return sizes


def _config_hidden_size(modules: Mapping[str, nn.Module], name: str) -> int | None:
    """Return `hidden_size` of the nearest enclosing module that has a config."""
    parts = name.split(".")
    for depth in range(len(parts), -1, -1):
        config = getattr(modules.get(".".join(parts[:depth])), "config", None)
        for attribute in ("hidden_size", "d_model"):
            size = getattr(config, attribute, None)
            if isinstance(size, int) and not isinstance(size, bool):
                return size
    return None
