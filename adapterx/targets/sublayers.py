"""Find the sublayers of one block: which module returns what is added to the residual stream, and which reads it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from adapterx.targets import parts
from adapterx.targets.projections import (
    INPUT_NAME,
    OUTPUT_NAME,
    WIDENING_NAME,
    Projection,
    bears,
    common_parent,
    inside,
    output_candidates,
    partner_of,
)

_FOLLOWER = re.compile(r"(?:post_)?([a-z]+)_(?:dense|s?conv|convolution)")
_GATE = re.compile(r"gat(e|ing)_block")


class Sublayer(NamedTuple):
    """A sublayer of a block; names are relative to the block.

    Attributes:
        position: `"attention"`, `"cross_attention"` or `"feed_forward"`.
        output: the module that returns what is added to the residual stream.
        source: the module that receives what the sublayer receives; None is `output` itself.
    """

    position: str
    output: str
    source: str | None


@dataclass
class Block:
    """What one block holds.

    Attributes:
        name: its qualified name.
        sublayers: those that adapters can go behind, in the model's order.
        unclear: position to the modules among which the output projection cannot be told.
        others: modules with weights that belong to no sublayer, such as a convolution beside the attention.
        experts: the outputs in `sublayers` that are mixtures of experts.
        has_norm: whether it norms what it reads or returns.
    """

    name: str
    sublayers: list[Sublayer] = field(default_factory=list)
    unclear: dict[str, list[Projection]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    experts: list[str] = field(default_factory=list)
    has_norm: bool = False

    def positions(self) -> set[str]:
        """Return the positions that the block has, also where the module cannot be told."""
        return {sublayer.position for sublayer in self.sublayers} | set(self.unclear)


def inspect_block(name: str, modules: Mapping[str, nn.Module]) -> Block:
    """Tell the sublayers of a block.

    Args:
        name: qualified name of the block.
        modules: relative name to module of all in the block, itself under `""`, in the model's order.
    """
    block = Block(name)
    projections = parts.projections_of(modules)
    roots = parts.mixers_of(modules, projections)
    aside = parts.aside_of(roots, projections)
    roots = [root for root in roots if not inside(root, aside)]
    projections = [p for p in projections if not inside(p.name, aside)]
    experts = [root for root in parts.experts_of(modules) if not inside(root, roots)]
    norms = parts.norm_sizes(modules, roots)
    block.has_norm = bool(norms)
    widths = [] if parts.has_streams(modules) else [size for size, _ in norms.most_common()]
    for root in roots:
        _add_attention(block, modules, root, [p for p in projections if inside(p.name, [root])], widths)
    for root in experts:
        block.sublayers.append(Sublayer("feed_forward", root, None))
        block.experts.append(root)
    rest = [p for p in projections if not inside(p.name, roots + experts)]
    used = _add_feed_forward(block, rest, widths)
    _follow(block, modules)
    if any(_GATE.search(relative) for relative in modules):  # it comes behind each of them
        for sublayer in block.sublayers:
            block.unclear.setdefault(sublayer.position, []).extend(p for p in projections if p.name == sublayer.output)
        block.sublayers = []
    block.others += parts.others_of(modules, [*roots, *experts, *used, *(s.output for s in block.sublayers)])
    order = {relative: number for number, relative in enumerate(modules)}
    block.sublayers.sort(key=lambda sublayer: order[sublayer.output])
    return block


def _add_attention(
    block: Block, modules: Mapping[str, nn.Module], root: str, group: list[Projection], widths: list[int]
) -> None:
    position = "cross_attention" if parts.is_cross(root, modules[root]) else "attention"
    if len(group) == 1 and group[0].name == root:  # torch.nn.MultiheadAttention
        block.sublayers.append(Sublayer(position, root, root))
        return
    read = [p.input_size for p in group if bears(p.name, INPUT_NAME)] or [group[0].input_size]
    candidates = output_candidates(group, widths or read[:1])
    if len(candidates) == 1:
        shared = common_parent([p.name for p in group]) if len(group) > 1 else root
        block.sublayers.append(Sublayer(position, candidates[0].name, shared if inside(shared, [root]) else root))
        chosen = candidates[0].name
        block.others += [p.name for p in group if p.name != chosen and re.search(r"out(put)?(_|\.|$)", p.name)]
        # A memory of neighbouring values, added to what the attention's projection returns (SAN-M).
        block.others += [name for name in modules if inside(name, [root]) and name.rpartition(".")[2] == "fsmn"]
    elif not candidates and root and parts.has_stacked_weights(modules[root]):  # experts inside an attention
        block.sublayers.append(Sublayer(position, root, None))
        block.experts.append(root)
    else:
        block.unclear.setdefault(position, []).extend(candidates or group)


def _follow(block: Block, modules: Mapping[str, nn.Module]) -> None:
    """Go behind what the block applies to a sublayer's output: `temporal_dense` after `temporal_attention`."""
    for name in modules:
        match = _FOLLOWER.fullmatch(name)
        numbers = [n for n, found in enumerate(block.sublayers) if match and _belongs(match[1], found)]
        if len(numbers) == 1 and block.sublayers[numbers[0]].output != name:
            found = block.sublayers[numbers[0]]
            block.sublayers[numbers[0]] = found._replace(output=name, source=found.source or found.output)


def _belongs(word: str, sublayer: Sublayer) -> bool:
    own = sublayer.output.partition(".")[0].split("_")
    same = {"attn": "attention", "mlp": "feed_forward", "attention": "attention"}
    return word in own or same.get(word) == sublayer.position


def _add_feed_forward(block: Block, group: list[Projection], widths: list[int]) -> list[str]:
    """Add what undoes an expansion of the block's width; return the names of all that belongs to it."""
    pairs = _narrowing(group, widths)
    used: list[str] = []
    for parent in dict.fromkeys(_parent(name) for name in pairs):
        names = [name for name in pairs if _parent(name) == parent]
        if len(names) > 1:
            names = [name for name in names if not bears(name, INPUT_NAME)]
            names = [name for name in names if bears(name, OUTPUT_NAME)] or names
        widening = [pairs[name][1].name for name in names]
        used += [*names, *widening]
        if len(set(widening)) < len(names) or set(names) & set(widening):
            block.unclear.setdefault("feed_forward", []).extend(pairs[name][0] for name in names)
            continue
        block.sublayers += [
            Sublayer("feed_forward", name, source) for name, source in zip(names, widening, strict=True)
        ]
        used += [p.name for p in group if _parent(p.name) == parent]
    return used


def _narrowing(group: list[Projection], widths: list[int]) -> dict[str, tuple[Projection, Projection]]:
    """Return by name what narrows to the block's width, each with what has widened before it."""
    pairs = {p.name: (p, partner) for p in group if (partner := partner_of(p, group)) is not None}
    pairs = {name: pair for name, pair in pairs.items() if not bears(name, WIDENING_NAME)}
    if not widths:
        return pairs
    likeliest = {name: pair for name, pair in pairs.items() if pair[0].output_size == widths[0]}
    return likeliest or {name: pair for name, pair in pairs.items() if pair[0].output_size in widths}


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
