"""Find the sublayers that adapters go behind in any model that is made of repeated blocks."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from adapterx.errors import TargetError, speaker
from adapterx.targets.projections import OUTPUT_NAME, bears, common_parent
from adapterx.targets.sizes import has_matrix, in_out_sizes, own_children, own_modules, suits
from adapterx.targets.sublayers import Block, inspect_block

_JOINED = "perceptrons join what its attentions return with the residual stream, before it is added"
# Models whose own backward pass fails or knows no adapters, or that keep no residual stream.
_HOPELESS = {
    "ReformerModel": "Reformer runs its blocks again in a backward pass of its own, which does not know adapters; "
    "target_modules would not learn either",
    "RwkvModel": "the backward pass of its recurrence fails, wherever target_modules would put them",
    "MegaModel": "its attentions add to the residual stream themselves, through gates; target_modules=('fc2',) would "
    "go behind its feed-forwards",
    "Gemma3nTextModel": "its blocks predict and correct several streams at once; target_modules=('o_proj',) would go "
    "behind its attentions",
    "EfficientLoFTRModel": f"{_JOINED}; target_modules=('fc2',) would go behind these",
    "LightGlue": f"{_JOINED}; target_modules=('fc2',) would go behind these",
    "SuperGlue": f"{_JOINED}; target_modules=('mlp.1',) would go behind these",
    "XcodecModel": "it runs its Transformer without gradients; attach to its semantic_model instead",
}

# Parts of models where adapters would learn nothing, or once only: by class, or by the class around and the name there.
_NO_GRADIENTS = "the model runs it without gradients"
_LEFT_OUT = {
    "BltPatcher": _NO_GRADIENTS,
    "NeuCodecModel.semantic_encoder": _NO_GRADIENTS,
    "Xcodec2Model.semantic_encoder": _NO_GRADIENTS,
    "OmDetTurboLanguageBackbone": "the model keeps what it returned for its next call",
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


class Site(NamedTuple):
    """A sublayer that an adapter may go behind, found and not yet measured; names are qualified.

    Attributes:
        module: the output projection, or the module that the user named.
        position: `"attention"`, `"cross_attention"`, `"feed_forward"`, or `"named"`.
        block: index of the block, or None.
        input_module: the module that receives what the sublayer receives; None where that is `module` itself.
        norm: the norm of output + residual stream; None where there is none, or it is unknown.
        residual: the module that receives the residual stream as it is; None where that is unknown.
    """

    module: str
    position: str
    block: int | None
    input_module: str | None = None
    norm: str | None = None
    residual: str | None = None


class _List(NamedTuple):
    """A list of modules that may be blocks: its qualified name, and each element with its index."""

    name: str
    blocks: dict[int, Block]

    @property
    def positions(self) -> set[str]:
        return set().union(*(block.positions() for block in self.blocks.values()))

    @property
    def largest(self) -> set[str]:
        """The positions of the element that has most."""
        return max((block.positions() for block in self.blocks.values()), key=len)


def find_by_structure(
    modules: Mapping[str, nn.Module], positions: tuple[str, ...]
) -> tuple[list[Site], tuple[str, ...]]:
    """Return the output of every sublayer at the given positions, and in words what was left out.

    A block is an element of a `ModuleList` or `Sequential` that holds an attention or another mixer of tokens; in a
    model without any, one that norms and holds a feed-forward sublayer. A mixture of experts is one sublayer.

    Raises:
        TargetError: there are no blocks, or in some a module cannot be told; the message names modules that would do.
    """
    _refuse_hopeless(modules)
    lists, notes = _find_lists(modules)
    sites = []
    for entry in lists:
        for index, block in entry.blocks.items():
            _refuse_unclear(modules, block, positions)
            for sublayer in block.sublayers:
                if sublayer.position in positions:
                    module = _join(block.name, sublayer.output)
                    source = None if sublayer.source is None else _join(block.name, sublayer.source)
                    sites.append(Site(module, sublayer.position, index, source))
    if not sites:
        raise _nothing_found(modules, lists, positions)
    order = {name: number for number, name in enumerate(modules)}
    notes += [note for entry in lists for note in _left_out(entry, positions)]
    return sorted(sites, key=lambda site: order[site.module]), tuple(notes)


def _refuse_hopeless(modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        for kind, reason in _HOPELESS.items():
            if type(module).__name__.startswith(kind):
                raise TargetError(f"{speaker()}: {name or 'the model'} cannot be adapted, because {reason}")


def find_repeated(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return name and index of every repeated block, from the innermost lists that hold whole blocks."""
    return {block.name: index for entry in _find_lists(modules)[0] for index, block in entry.blocks.items()}


def _find_lists(modules: Mapping[str, nn.Module]) -> tuple[list[_List], list[str]]:
    """Return the lists of blocks, and in words which other lists of repeated modules were passed over."""
    names = list(modules)
    places = {name: number for number, name in enumerate(names)}
    found: dict[str, _List] = {}
    unused = _without_use(modules)
    for name, module in modules.items():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or any(_is_below(name, part) for part in unused):
            continue
        blocks = {}
        for index, key in enumerate(module._modules):
            element = _join(name, key)
            if (
                element in modules
                and own_children(modules[element])
                and not isinstance(modules[element], nn.Sequential)
            ):
                blocks[index] = inspect_block(element, _below(modules, names, places, element))
        if any(block.positions() for block in blocks.values()):
            found[name] = _List(name, blocks)
    chosen = [entry for entry in found.values() if not _passed_over(entry, found)]
    mixing = [entry for entry in chosen if entry.positions & {"attention", "cross_attention"}]
    if not mixing:
        return [e for e in chosen if all(_is_plain(modules, block) for block in e.blocks.values())], []
    kept = [entry for entry in chosen if entry in mixing or _accompanies(entry, mixing)]
    notes = [f"{entry.name} was left out: its modules mix no tokens" for entry in chosen if entry not in kept]
    notes += [f"{name} was left out: {reason}" for name, reason in unused.items()]
    return kept, notes + _outside(modules, kept)


def _without_use(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return name and reason of the parts of a model where adapters would be of no use."""
    found = {}
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        around = f"{type(modules.get(parent)).__name__}.{own}"
        reason = _LEFT_OUT.get(type(module).__name__) or _LEFT_OUT.get(around)
        if name and reason:
            found[name] = reason
    return found


def _outside(modules: Mapping[str, nn.Module], lists: list[_List]) -> list[str]:
    """Say which attentions, and which parts of lists of lists of blocks, are in no block."""
    blocks = [block.name for entry in lists for block in entry.blocks.values()]
    stages = _stages(modules, lists)
    found: list[str] = []
    for name, module in modules.items():
        parent = name.rpartition(".")[0]
        attends = "Att" in type(module).__name__ and own_children(module)
        if not name or not (attends or parent in stages) or isinstance(modules[parent], nn.MultiheadAttention):
            continue
        taken = any(name == block or _is_below(name, block) or _is_below(block, name) for block in [*blocks, *found])
        if not taken and has_matrix(module):
            found.append(name)
    return [f"{name} was left out: it is in no block" for name in found]


def _stages(modules: Mapping[str, nn.Module], lists: list[_List]) -> set[str]:
    """Return the elements of lists that hold lists of blocks, such as the stages of Swin."""
    found = set()
    for entry in lists:
        parts = entry.name.split(".")
        for depth in range(1, len(parts)):
            name = ".".join(parts[:depth])
            if isinstance(modules[name], nn.ModuleList):
                found |= {_join(name, key) for key in modules[name]._modules}
    return found


def _is_plain(modules: Mapping[str, nn.Module], block: Block) -> bool:
    """Tell whether a block without attention is a feed-forward one that norms, and no convolutional network's."""
    parts = [modules[_join(block.name, name)] for name in block.others]
    return block.has_norm and not any(isinstance(m, _CONVOLUTIONS) for part in parts for m in own_modules(part))


def _passed_over(entry: _List, found: Mapping[str, _List]) -> bool:
    """Tell whether other lists hold the blocks: those inside that hold as much, or those around that hold more."""
    inside = [other for other in found.values() if _is_below(other.name, entry.name)]
    around = [other for other in found.values() if _is_below(entry.name, other.name)]
    return any(o.largest >= entry.largest for o in inside) or any(
        o.largest > entry.largest and not _passed_over(o, found) for o in around
    )


def _accompanies(entry: _List, mixing: list[_List]) -> bool:
    """Tell whether a list of feed-forward sublayers stands beside one of attentions, block by block (XLM)."""
    parent = entry.name.rpartition(".")[0]
    return any(
        other.name.rpartition(".")[0] == parent and len(other.largest) == 1 and len(other.blocks) == len(entry.blocks)
        for other in mixing
    )


def _below(
    modules: Mapping[str, nn.Module], names: list[str], places: Mapping[str, int], prefix: str
) -> dict[str, nn.Module]:
    """Return relative name to module of all inside a module, itself under `""`; names stand in the model's order."""
    found = {"": modules[prefix]}
    for name in names[places[prefix] + 1 :]:
        if not name.startswith(f"{prefix}."):
            break
        found[name[len(prefix) + 1 :]] = modules[name]
    return found


def _refuse_unclear(modules: Mapping[str, nn.Module], block: Block, positions: tuple[str, ...]) -> None:
    for position, candidates in block.unclear.items():
        if position in positions:
            listed = ", ".join(f"{p.name} ({p.input_size} to {p.output_size})" for p in candidates[:12])
            suitable = [p.name for p in candidates if suits(modules, _join(block.name, p.name))]
            suitable = [name for name in suitable if bears(name, OUTPUT_NAME)] or suitable
            hint = f"target_modules=({suitable[-1]!r},)" if suitable and suitable[-1] else "target_modules"
            raise TargetError(
                f"{speaker()}: in block {block.name} several modules could be the {position} output projection; give "
                f"{hint} or other positions. Candidates: {listed}"
            )


def _nothing_found(modules: Mapping[str, nn.Module], lists: list[_List], positions: tuple[str, ...]) -> TargetError:
    if lists:
        has = sorted(set().union(*(entry.positions for entry in lists)))
        return TargetError(
            f"{speaker()}: positions must name sublayers that the model's blocks have, got {list(positions)}; "
            f"they have {', '.join(has)}"
        )
    linear = [name for name, module in modules.items() if name and in_out_sizes(module) and suits(modules, name)]
    if not linear:
        return TargetError(
            f"{speaker()}: no repeated blocks of attention and feed-forward sublayers were found in the model, and no "
            "linear module that target_modules could name"
        )
    return TargetError(
        f"{speaker()}: no repeated blocks of attention and feed-forward sublayers were found in the model; give "
        f"target_modules=({linear[-1]!r},) or others. "
        f"Its linear modules are {', '.join(linear[:20])}{' ...' if len(linear) > 20 else ''}"
    )


def _left_out(entry: _List, positions: tuple[str, ...]) -> list[str]:
    """Say what a list's blocks lack, and what they have beside the chosen sublayers."""
    notes: dict[str, list[int]] = {}
    for index, block in entry.blocks.items():
        for position in positions:
            if position not in block.positions():
                notes.setdefault(f"no {position} sublayer", []).append(index)
        for sublayer in block.sublayers:
            if sublayer.position not in positions:
                notes.setdefault(f"{sublayer.output} ({sublayer.position}) is left out", []).append(index)
        for position, candidates in block.unclear.items():
            if position not in positions:
                name = common_parent([candidate.name for candidate in candidates])
                notes.setdefault(f"{name} ({position}) is left out", []).append(index)
        for name in block.others:
            notes.setdefault(f"{name} belongs to none of these sublayers and is left out", []).append(index)
        for name in block.experts if "feed_forward" in positions else ():
            notes.setdefault(f"one adapter behind all experts of {name}", []).append(index)
    return [f"{entry.name}[{_ranges(indices)}]: {note}" for note, indices in notes.items()]


def _ranges(indices: list[int]) -> str:
    """Return indices in words, such as `0-3, 6`."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _join(prefix: str, name: str) -> str:
    return ".".join(filter(None, (prefix, name)))


def _is_below(name: str, ancestor: str) -> bool:
    return name != ancestor and (not ancestor or name.startswith(f"{ancestor}."))
