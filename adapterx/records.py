"""What `attach` tells, and what it remembers: why each thing hangs where it does, and what must still be there."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from adapterx.branch import what_runs_where
from adapterx.compose.expression import Composition
from adapterx.config import AdapterConfig
from adapterx.targets import Target

# Plain attribute of the module that `attach` was called on: the rosters of what hangs in it.
_ROSTERS = "_adapterx_rosters"


@dataclass(frozen=True)
class Attachment:
    """One adapter of a model: what `attach` has done, and what `adapters` tells; print it.

    Attributes:
        name: the adapter's name.
        rule: how the modules were chosen, in words.
        config: the adapter's configuration.
        targets: the adapted modules.
        modules_to_save: the modules of which the adapter trains a copy.
        composition: the active composition that the adapter takes part in; None where it is inactive.
    """

    name: str
    rule: str
    config: AdapterConfig
    targets: tuple[Target, ...]
    modules_to_save: tuple[str, ...]
    composition: Composition | None = None

    @property
    def blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that hold adapted modules."""
        return tuple(sorted({target.block for target in self.targets} - {None}))

    def __str__(self) -> str:
        lines = [f"adapter {self.name!r} on {len(self.targets)} modules, chosen by {self.rule}"]
        for target in self.targets:
            width = self.config.resolve_bottleneck_dim(target.hidden_size, target.block)
            source = f", reads the input of {target.input_module}" if target.input_module else ""
            sizes = f"{target.input_size} -> {width} -> {target.hidden_size}"
            lines.append(f"  {target.module} ({target.position}): {sizes}{source}")
        lines += [f"  {name}: trained copy" for name in self.modules_to_save]
        lines += [f"  {words}" for words in what_runs_where(self.config)]
        return "\n".join(lines)


class Roster:
    """The modules on which one attachment hung something: what was recorded must still be there.

    The module that `attach` was called on has it, and each `Place`. Base modules that someone replaces, such as a
    quantiser does, take with them what hangs on them; nothing else would tell.

    Args:
        name: the adapter's name.
        modules: qualified names, in the module that `attach` was called on.
    """

    def __init__(self, name: str, modules: set[str]) -> None:
        self.name, self.modules = name, modules


class Place(NamedTuple):
    """Why something hangs on a module: the attachment, and the target there (None for a trained copy)."""

    attachment: Attachment
    module: str
    target: Target | None
    roster: Roster


def rosters_of(module: nn.Module) -> tuple[Roster, ...]:
    """Return what attachments that were called on this very module have recorded."""
    return vars(module).get(_ROSTERS, ())


def keep_rosters(module: nn.Module, rosters: tuple[Roster, ...]) -> None:
    """Let the module have these rosters, and no others."""
    if rosters:
        setattr(module, _ROSTERS, rosters)
    else:
        vars(module).pop(_ROSTERS, None)
