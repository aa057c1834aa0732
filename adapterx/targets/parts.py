"""Tell apart the parts of a block: its attentions and other mixers, mixtures of experts, norms, projections."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from torch import nn

from adapterx.targets.projections import CLEAR_OUTPUT_NAME, INPUT_NAME, Projection, bears, holds, inside, partner_of
from adapterx.targets.sizes import (
    CONTAINERS,
    has_matrix,
    in_out_sizes,
    norm_size,
    own_children,
    own_modules,
    reads_all_projections,
)

_ATTENTION = re.compile(r"att(n|ention)|(?-i:MLA$)", re.IGNORECASE)  # multi-head latent attention
# State-space and recurrent mixers stand where attention stands; a block may have one beside its attention.
_MIXER = re.compile(r"mamba|mixer|ssm_|recurrent|retention|delta_?net|temporal_block|m?s?lstm", re.IGNORECASE)
_CONVOLUTION = re.compile(r"conv")  # counts as the mixer of a block that has no other
_FEED_FORWARD = re.compile(r"mlp|moe|feed_?forward|ffn", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln", re.IGNORECASE)
# Norms that compute a scale, ways into a narrow stream, low-rank changes of shared weights, weights of several streams.
_NOT_HERE = re.compile(r"norm|^ln|bottleneck|adapter|lora|hyper_connection", re.IGNORECASE)
_STREAMS = re.compile(r"hyper_connection", re.IGNORECASE)
_CROSS = re.compile(r"cross|enc(oder)?_?(dec(oder)?_?)?att|multimodal|multihead_attn", re.IGNORECASE)
_CROSS_CLASS = re.compile(r"Cross_?Att|EncDec|BiMultiHead", re.IGNORECASE)
_EXPERTS = re.compile(r"(routed_)?experts?")
_EXPERTS_CLASS = re.compile(r"MoE|Moe|Experts|SparseM")

_Looks = Callable[[str, nn.Module], bool]


def projections_of(modules: Mapping[str, nn.Module]) -> list[Projection]:
    """Return the linear maps of a block; what never calls its own projections counts as one."""
    found: list[Projection] = []
    whole: list[str] = []  # modules that never call their own projections count as one
    for name, module in modules.items():
        if inside(name, whole) or any(_NOT_HERE.search(part) for part in name.split(".")[:-1]):
            continue
        if (sizes := in_out_sizes(module)) is not None:
            found.append(Projection(name, *sizes))
            if reads_all_projections(module):
                whole.append(name)
    return found


def mixers_of(modules: Mapping[str, nn.Module], projections: list[Projection]) -> list[str]:
    """Return the outermost attention modules and other mixers; a convolution where there are none."""
    roots = list(_outermost(modules, projections, _looks_like_attention, 2))
    mixers = list(_outermost(modules, projections, _looks_like_mixer, 1))
    roots += [root for root in mixers if not inside(root, roots) and not holds(root, roots)]
    return roots or list(_outermost(modules, projections, _looks_like_convolution, 1))


def aside_of(roots: list[str], projections: list[Projection]) -> list[str]:
    """Return what a block computes beside its stream, around an attention that reads more than the stream is wide.

    The shared Transformer of Zamba reads the stream and the embeddings in a row, and adds to what its mixer reads.
    """
    found = []
    for root in roots:
        parent, own = root.rpartition(".")[0], [p for p in projections if inside(p.name, [root])]
        read = [p.input_size for p in own if bears(p.name, INPUT_NAME)]
        returned = [p.output_size for p in own if bears(p.name, CLEAR_OUTPUT_NAME)]
        reads_more = read and returned and min(read) > max(returned)
        if parent and reads_more and not all(inside(other, [parent]) for other in roots):
            found.append(parent)
    return found


def _looks_like_attention(name: str, module: nn.Module) -> bool:
    own, kind = name.rpartition(".")[2], type(module).__name__
    # A class may bear the name of the attention whose feed-forward sublayer it is.
    by_class = _ATTENTION.search(kind) is not None and _FEED_FORWARD.fullmatch(own) is None
    return (by_class or _ATTENTION.search(own) is not None) and not (_NORM.search(own) or _STREAMS.search(own))


def _looks_like_mixer(name: str, module: nn.Module) -> bool:
    own, kind = name.rpartition(".")[2], type(module).__name__
    return (_MIXER.search(own) or _MIXER.search(kind)) is not None and not (
        _FEED_FORWARD.search(kind) or _NORM.search(own)
    )


def _looks_like_convolution(name: str, module: nn.Module) -> bool:
    return name != "" and "." not in name and _CONVOLUTION.search(name) is not None


def _outermost(
    modules: Mapping[str, nn.Module], projections: list[Projection], looks: _Looks, fewest: int
) -> Iterator[str]:
    taken: list[str] = []
    for name, module in modules.items():
        if isinstance(module, CONTAINERS) or inside(name, taken) or not looks(name, module):
            continue
        inner = [p for p in projections if inside(p.name, [name])]
        enough = (own_children(module) and len(inner) >= fewest) or (inner and reads_all_projections(module))
        if enough and not _is_block(name, modules, inner, looks):
            taken.append(name)
            yield name


def _is_block(name: str, modules: Mapping[str, nn.Module], inner: list[Projection], looks: _Looks) -> bool:
    """Tell whether what is named like an attention is a block, which holds one *and* a feed-forward sublayer."""
    nested = [
        other
        for other, candidate in modules.items()
        if other != name and inside(other, [name]) and candidate._modules and looks(other, candidate)
    ]
    nested = [other for other in nested if any(inside(p.name, [other]) for p in inner)]
    beside = [p for p in inner if not inside(p.name, nested)]
    return bool(nested) and (not name or any(partner_of(p, beside) for p in beside))


def is_cross(root: str, module: nn.Module) -> bool:
    """Tell whether an attention reads other states than those of its own block."""
    return _CROSS.search(root) is not None or _CROSS_CLASS.search(type(module).__name__) is not None


def experts_of(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the outermost modules that hold experts, each a whole mixture of them."""
    found: list[str] = []
    for name, module in modules.items():
        if not name or inside(name, found) or isinstance(module, CONTAINERS):
            continue
        holds = any(_EXPERTS.fullmatch(key) for key in module._modules)
        stacked = _EXPERTS_CLASS.search(type(module).__name__) and has_stacked_weights(module)
        if holds or stacked:
            found.append(name)
    return found


def has_stacked_weights(module: nn.Module) -> bool:
    """Tell whether a module has weights of three dimensions that are no convolution's."""
    return any(
        parameter is not None and parameter.dim() == 3
        for inner in own_modules(module)
        if not isinstance(inner, (nn.Conv1d, nn.ConvTranspose1d))
        for parameter in inner._parameters.values()
    )


def has_streams(modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether a block weighs several residual streams: its norms may be as wide as all of them."""
    return any(_STREAMS.search(name) for name in modules)


def norm_sizes(modules: Mapping[str, nn.Module], roots: list[str]) -> Counter:
    """Return how often norms of which width stand in the block: beside its sublayers, else inside them."""
    sizes = {
        name: size
        for name, module in modules.items()
        if not own_children(module) and _is_norm(name, module) and (size := _normed_width(module)) is not None
    }
    for names in (
        [name for name in sizes if "." not in name],
        [name for name in sizes if not inside(name, roots)],
        [name for name in sizes if not re.search(r"(^|[._])[qkv]\w*norm|norm_?[qk]", name.rpartition(".")[2])],
    ):
        if names:
            return Counter(sizes[name] for name in names)
    return Counter()


def _normed_width(module: nn.Module) -> int | None:
    if (size := norm_size(module)) is not None:
        return size
    shape = getattr(module, "normalized_shape", None)  # a norm without weights
    return shape[-1] if isinstance(shape, (tuple, list)) and shape and isinstance(shape[-1], int) else None


def _is_norm(name: str, module: nn.Module) -> bool:
    own = name.rpartition(".")[2]
    return norm_size(module) is not None or (
        not own_children(module) and (_NORM.search(own) is not None or "Norm" in type(module).__name__)
    )


def others_of(modules: Mapping[str, nn.Module], used: list[str]) -> list[str]:
    """Return the outermost modules with matrices that belong to no sublayer."""
    found: list[str] = []
    for name, module in modules.items():
        if not name or inside(name, used) or holds(name, used) or inside(name, found):
            continue
        if isinstance(module, (*CONTAINERS, nn.Embedding)):
            continue
        if has_matrix(module):
            found.append(name)
    return found
