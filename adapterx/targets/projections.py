"""Names and widths of the modules inside a block, as far as they tell which of them do what."""

import re
from collections.abc import Iterable
from typing import NamedTuple

# Names that output projections bear; they only decide where shapes leave several candidates.
OUTPUT_NAME = re.compile(
    r"(.*_)?(o|out|wo|output|final|dense|proj|fc2|fc_out|w2|lin2|linear2|linear_2|down)(_proj|_lin|_layer|_dense)?"
    r"|c_proj|linear_out|dense_4h_to_h|.*output\.dense|to_out\.0",
    re.IGNORECASE,
)
# Those of them that no other projection bears.
CLEAR_OUTPUT_NAME = re.compile(
    r"(final|o|o_b|out|output)_(proj|lin|dense|projection)|wo|out|output|final|c_proj|proj_out|.*output\.dense|to_out\.0"
    r"|(.*\.)?output_projection\.\w+",
    re.IGNORECASE,
)
INPUT_NAME = re.compile(
    r"(.*_)?(?<!^o_)(?<![._]o_)(q|k|v|g|z|b|qkv|kv|qk|query|key|value|pos|position|rel|in|gate|c_attn|query_key_value|wq|wk|wv|query_proj)"
    r"(_proj|_lin|_pos|_layer|_linear|_global|_proj\d)?(_[a-z])?(_proj)?",
    re.IGNORECASE,
)
WIDENING_NAME = re.compile(
    r".*intermediate(\.dense|_dense)?|w_in(\.w_\d)?|linear_up|dense_h_to_4h|dense1"
    r"|(.*_)?(fc1|wi|wi_\d|up|in|gate|w1|w3|lin1|linear1|linear_1|c_fc)(_proj|_layer)?",
    re.IGNORECASE,
)


class Projection(NamedTuple):
    """A linear map inside a block; names are relative to the block."""

    name: str
    input_size: int
    output_size: int


def output_candidates(group: list[Projection], widths: list[int]) -> list[Projection]:
    """Return what may be the output projection of an attention: of the block's width, and not named as an input.

    Args:
        group: the projections of the attention.
        widths: what the block's norms are wide, the likeliest first.
    """
    candidates: list[Projection] = []
    for accepted in (widths[:1], widths):
        outputs = [p for p in group if p.output_size in accepted and not bears(p.name, INPUT_NAME)]
        candidates = candidates or outputs
    for names in (OUTPUT_NAME, CLEAR_OUTPUT_NAME):
        if len(candidates) > 1:
            candidates = [p for p in candidates if bears(p.name, names)] or candidates
    return candidates


def partner_of(p: Projection, group: list[Projection]) -> Projection | None:
    """Return the projection that widens what `p` narrows again: the nearest one before it, else behind it.

    It maps d to k, or to 2k where a gate follows, and `p` maps k to d.
    """
    widening = [
        (number, q)
        for number, q in enumerate(group)
        if q.name != p.name and q.input_size == p.output_size and q.output_size in (p.input_size, 2 * p.input_size)
    ]
    if p.input_size == p.output_size:  # nothing is narrowed: then they must stand side by side
        parent = p.name.rpartition(".")[0]
        widening = [(number, q) for number, q in widening if q.name.rpartition(".")[0] == parent]
    own = group.index(p)
    before = [q for number, q in widening if number < own]
    if before or bears(p.name, WIDENING_NAME):
        return before[-1] if before else None
    return next((q for number, q in widening), None)


def inside(name: str, roots: Iterable[str]) -> bool:
    """Tell whether a module is one of `roots`, or in one."""
    return any(name == root or not root or name.startswith(f"{root}.") for root in roots)


def holds(name: str, others: Iterable[str]) -> bool:
    """Tell whether one of `others` is in a module."""
    return any(other != name and inside(other, [name]) for other in others)


def bears(name: str, pattern: re.Pattern) -> bool:
    """Tell whether the last component of a name, or the last two, match the pattern; wrappers do not count."""
    parts = [part for part in name.split(".") if part not in ("linear", "layer")] or [name]
    return any(pattern.fullmatch(".".join(parts[-depth:])) for depth in (1, 2))


def common_parent(names: list[str]) -> str:
    """Return the innermost module that holds all of them; of one name, itself."""
    split = [name.split(".") for name in names]
    if len(split) == 1:
        return names[0]
    shared = []
    for parts in zip(*(parts[:-1] for parts in split), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
