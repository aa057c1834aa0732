"""The model's own norms in the blocks that adapters go into."""

from collections.abc import Mapping, Sequence

from torch import nn

from adapterx.errors import TargetError, speaker
from adapterx.targets.find import Target, enclosing_block, find_blocks
from adapterx.targets.sizes import norm_size


def find_norms(modules: Mapping[str, nn.Module], targets: Sequence[Target]) -> tuple[str, ...]:
    """Return the norms with weights (LayerNorm, RMSNorm) inside the blocks that hold adapted modules.

    Args:
        modules: qualified name to module, without anything that adapterx added.
        targets: the modules to adapt.

    Raises:
        TargetError: no adapted module is in a block, or these blocks have no such norm.
    """
    blocks = find_blocks(modules)
    adapted = {block for target in targets if (block := enclosing_block(target.module, blocks)) is not None}
    found = tuple(
        name for name, module in modules.items() if enclosing_block(name, blocks) in adapted and _is_norm(module)
    )
    if not found:
        where = ", ".join(sorted(adapted)[:4]) if adapted else "no block"
        raise TargetError(
            f"{speaker()}: train_norms must be False where the blocks of the adapted modules have no norms with "
            f"weights, got adapted modules in {where}"
        )
    return found


def _is_norm(module: nn.Module) -> bool:
    # A vector of weights alone may be a slope or a gain; a batch norm has a state of its own besides.
    named = "norm" in type(module).__name__.lower() and not isinstance(module, nn.modules.batchnorm._BatchNorm)
    return named and norm_size(module) is not None
