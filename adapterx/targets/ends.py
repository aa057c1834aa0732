"""Where the embeddings of a model enter its blocks, and where its hidden states leave for the head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from adapterx.errors import TargetError, speaker
from adapterx.targets.find import Target, find_blocks
from adapterx.targets.sizes import config_hidden_size, module_sizes, norm_size


@dataclass(frozen=True)
class Ends:
    """Both ends of what an invertible adapter encloses.

    Attributes:
        module: qualified name of the module that returns the embeddings, or of the first block, which receives them.
        is_block: whether it is the block.
        head: qualified name of the module that turns hidden states into logits of tokens; None where there is none.
        size: width of the embeddings, in elements.
    """

    module: str
    is_block: bool
    head: str | None
    size: int


def find_ends(modules: Mapping[str, nn.Module], targets: Sequence[Target]) -> Ends:
    """Return where an invertible adapter acts.

    The embeddings are what a module named `embeddings` beside the blocks returns, else what the first block receives;
    of several lists of blocks, as of an encoder and a decoder, those of the first that is adapted.

    Args:
        modules: qualified name to module, the model itself under `""`, without anything that adapterx added.
        targets: the modules to adapt.

    Raises:
        TargetError: no adapted module is in a block, or head and embeddings differ in size.
    """
    block = _first_block(modules, targets)
    if block is None:
        raise TargetError(
            f"{speaker()}: invertible must be None where no adapted module is in a block of the model, got modules "
            f"{', '.join(target.module for target in targets[:4])}"
        )
    parts = block.split(".")
    ancestors = [".".join(parts[:depth]) for depth in range(len(parts) - 1, -1, -1)]
    names = (f"{ancestor}.embeddings" if ancestor else "embeddings" for ancestor in ancestors)
    embeddings = next((name for name in names if name in modules), None)
    size = targets[0].hidden_size if embeddings is None else _width(modules, embeddings)
    head = _head(modules)
    if head is not None and (own := module_sizes(modules, head)[0]) != size:
        raise TargetError(
            f"{speaker()}: invertible must be None where the head and the embeddings differ in size, got {own} of "
            f"{head} and {size} of {embeddings or block}"
        )
    return Ends(embeddings or block, embeddings is None, head, size)


def _first_block(modules: Mapping[str, nn.Module], targets: Sequence[Target]) -> str | None:
    """Return the first block of the list that holds the first adapted module that is in any."""
    blocks = find_blocks(modules)
    for target in targets:
        inside = [name for name in blocks if target.module == name or target.module.startswith(f"{name}.")]
        if inside:
            siblings = inside[0].rpartition(".")[0]
            return next(name for name in blocks if name.rpartition(".")[0] == siblings)
    return None


def _width(modules: Mapping[str, nn.Module], name: str) -> int:
    children = list(modules[name].children())
    norms = [size for child in children if (size := norm_size(child)) is not None]
    tables = [child.embedding_dim for child in children if isinstance(child, nn.Embedding)]
    size = next(iter((*norms, *tables)), None) or config_hidden_size(modules, name)
    if size is None:
        raise TargetError(f"{speaker()}: invertible must be None where the width of {name} cannot be told")
    return size


def _head(modules: Mapping[str, nn.Module]) -> str | None:
    model = modules[""]
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    if head is None:
        return None
    return next((name for name, module in modules.items() if module is head), None)
