"""Find the output projections of attention and feed-forward sublayers in any model made of repeated blocks."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from adapterx.errors import TargetError, speaker
from adapterx.targets.sizes import in_out_sizes, norm_size, reads_all_projections

_ATTENTION_NAME = re.compile(r"att(n|ention)", re.IGNORECASE)
_NORM_NAME = re.compile(r"norm|^ln", re.IGNORECASE)
_CROSS_NAME = re.compile(r"cross|enc(oder)?_?(dec(oder)?_?)?att|multimodal", re.IGNORECASE)
# Names that output projections bear; they only decide where shapes leave several candidates.
_OUTPUT_NAME = re.compile(
    r"(.*_)?(o|out|wo|output|dense|proj|fc2|fc_out|w2|lin2|linear2|down)(_proj|_lin|_layer|_dense)?"
    r"|c_proj|linear_out|dense_4h_to_h|.*output\.dense|to_out\.0",
    re.IGNORECASE,
)
_INPUT_NAME = re.compile(
    r"(.*_)?(q|k|v|qkv|kv|query|key|value|pos|in|c_attn|query_key_value)(_proj|_lin|_pos)?", re.IGNORECASE
)


class Projection(NamedTuple):
    """A linear map inside a block; names are relative to the block."""

    name: str
    input_size: int
    output_size: int


class Site(NamedTuple):
    """A sublayer that an adapter may go behind, found and not yet measured; names are qualified.

    Attributes:
        module: the output projection, or the module that the user named.
        position: `"attention"`, `"feed_forward"`, or `"named"`.
        block: index of the block, or None.
        input_module: the module that receives what the sublayer receives; None where that is unknown.
        norm: the norm of output + residual stream; None where there is none, or it is unknown.
        residual: the module that receives the residual stream as it is; None where that is unknown.
    """

    module: str
    position: str
    block: int | None
    input_module: str | None = None
    norm: str | None = None
    residual: str | None = None


def find_by_structure(modules: Mapping[str, nn.Module], positions: tuple[str, ...]) -> list[Site]:
    """Return the output projections of every block at the given positions.

    A block is an element of a `ModuleList` or `Sequential` whose elements have one class and hold an attention
    sublayer (in a model without attention: a feed-forward one). Cross-attention is left alone, as in Houlsby's scheme.

    Raises:
        TargetError: there are no blocks, or a position has no candidate or several; the message lists them.
    """
    found: list[Site] = []
    for prefix, index in find_repeated(modules).items():
        projections, attention_roots = _inspect(modules, prefix)
        for position in positions:
            output, source = _choose(modules, prefix, position, projections, attention_roots)
            found.append(Site(f"{prefix}.{output}", position, index, f"{prefix}.{source}"))
    if not found:
        linear = [name for name, module in modules.items() if name and in_out_sizes(module)]
        raise TargetError(
            f"{speaker()}: no repeated blocks were found in the model; give target_modules. "
            f"Its linear modules are {', '.join(linear[:20]) or 'none'}{' ...' if len(linear) > 20 else ''}"
        )
    order = {name: number for number, name in enumerate(modules)}
    return sorted(found, key=lambda item: order[item.module])


def find_repeated(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return name and index of every repeated block, from the innermost lists that hold whole blocks."""
    lists: dict[str, bool] = {}
    for name, module in modules.items():
        children = list(module.children()) if isinstance(module, (nn.ModuleList, nn.Sequential)) else []
        if children and len({type(child) for child in children}) == 1:
            first = next(iter(module._modules))
            projections, roots = _inspect(modules, f"{name}.{first}" if name else first)
            outside = [p for p in projections if not _inside(p.name, roots)]
            if roots or len(outside) > 1:
                lists[name] = bool(roots)
    if any(lists.values()):
        lists = {name: True for name, has_attention in lists.items() if has_attention}
    inner = [name for name in lists if not any(_is_below(other, name) for other in lists)]
    return {
        f"{name}.{key}" if name else key: index for name in inner for index, key in enumerate(modules[name]._modules)
    }


def _is_below(name: str, ancestor: str) -> bool:
    return name != ancestor and (not ancestor or name.startswith(f"{ancestor}."))


def _inside(name: str, roots: list[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def _inspect(modules: Mapping[str, nn.Module], prefix: str) -> tuple[list[Projection], list[str]]:
    """Return a block's projections and the names of its outermost attention modules, both relative to the block."""
    projections, roots = [], []
    for name, module in modules.items():
        if not name.startswith(f"{prefix}."):
            continue
        relative = name[len(prefix) + 1 :]
        if _inside(relative, roots) and reads_all_projections(modules[f"{prefix}.{roots[-1]}"]):
            continue  # it never calls its own projections, so it counts as one itself
        sizes = in_out_sizes(module)
        if sizes is not None:
            projections.append(Projection(relative, *sizes))
        looks_like_attention = _ATTENTION_NAME.search(relative.rpartition(".")[2]) or _ATTENTION_NAME.search(
            type(module).__name__
        )
        is_container = next(module.children(), None) is not None
        if looks_like_attention and is_container and not _inside(relative, roots) and not _is_norm(relative, module):
            roots.append(relative)
    return projections, [root for root in roots if any(_inside(p.name, [root]) for p in projections)]


def _is_norm(name: str, module: nn.Module) -> bool:
    return norm_size(module) is not None or _NORM_NAME.search(name.rpartition(".")[2]) is not None


def _choose(
    modules: Mapping[str, nn.Module], prefix: str, position: str, projections: list[Projection], roots: list[str]
) -> tuple[str, str]:
    """Return the output projection of one position, and the module that receives the sublayer's input."""
    cross = [root for root in roots if _is_cross(root, type(modules[f"{prefix}.{root}"]).__name__)]
    if position != "feed_forward":
        wanted = cross if position == "cross_attention" else [root for root in roots if root not in cross]
        group = [p for p in projections if _inside(p.name, wanted)]
        candidates = _attention_outputs(group)
    else:
        group = [p for p in projections if not _inside(p.name, roots)]
        candidates = _feed_forward_outputs(group)
    if len(candidates) > 1:
        candidates = [p for p in candidates if _bears(p.name, _OUTPUT_NAME)]
    if len(candidates) != 1:
        names = ", ".join(f"{p.name} ({p.input_size} to {p.output_size})" for p in candidates or group or projections)
        problem = "several modules could be" if candidates else "no module is clearly"
        raise TargetError(
            f"{speaker()}: in block {prefix} {problem} the {position} output projection; give target_modules"
            f" or other positions. Candidates: {names or 'none'}"
        )
    if position != "feed_forward":
        return candidates[0].name, _common_parent([p.name for p in group]) or group[0].name
    return candidates[0].name, group[0].name


def _is_cross(root: str, class_name: str) -> bool:
    return _CROSS_NAME.search(root) is not None or "CrossAttention" in class_name or "EncDec" in class_name


def _attention_outputs(group: list[Projection]) -> list[Projection]:
    """Keep what ends at the width at which the attention begins and is not named like a query, key or value."""
    if len(group) == 1:
        return group  # torch.nn.MultiheadAttention
    widths = {group[0].input_size} if group else set()
    return [p for p in group if p.output_size in widths and not _bears(p.name, _INPUT_NAME)]


def _feed_forward_outputs(group: list[Projection]) -> list[Projection]:
    """Keep what undoes an expansion: an earlier projection widens d to k (2k if gated), this one maps k back to d."""
    return [
        p
        for number, p in enumerate(group)
        if any(
            q.input_size == p.output_size and q.output_size in (p.input_size, 2 * p.input_size) for q in group[:number]
        )
    ]


def _bears(name: str, pattern: re.Pattern) -> bool:
    """Tell whether the last component of a name, or the last two, match the pattern."""
    parts = name.split(".")
    return any(pattern.fullmatch(".".join(parts[-depth:])) for depth in (1, 2))


def _common_parent(names: list[str]) -> str:
    split = [name.split(".") for name in names]
    if len(split) == 1:
        return names[0]
    shared = []
    for parts in zip(*(parts[:-1] for parts in split), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
