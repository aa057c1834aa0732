"""What a model knows of the adapters in a composition, for the rules about what can run."""

from collections.abc import Sequence

from torch import nn

from adapterx.compose.nesting import Facts
from adapterx.fusion import FusionSet
from adapterx.host import AdapterSet, ModuleCopies, walk


def facts_of(model: nn.Module, names: Sequence[str]) -> Facts:
    """Return what is known of these adapters of the model."""
    sublayers = {name: {} for name in names}
    ports, fusions, copied = {}, {}, set()
    for path, module in walk(model):
        owner = path.rpartition(".")[0]
        if isinstance(module, FusionSet):
            fusions[owner] = frozenset(module)
        elif isinstance(module, ModuleCopies):
            copied |= {name for name in names if name in module}
        elif isinstance(module, AdapterSet):
            targets = {name: module.places[name].target for name in names if name in module}
            ports[owner] = {name: target.port for name, target in targets.items()}
            for name, target in targets.items():
                if target.block is not None and target.position != "named":
                    sublayers[name][target.block, target.position] = target.port.reads
    return Facts(sublayers, ports, fusions, frozenset(copied))
