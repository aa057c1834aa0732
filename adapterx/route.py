"""What runs on one module, as one immutable value, and the modules by adapter name that follow it.

A model may hold thousands of adapters: nothing here that attaches, switches or runs some of them looks at the others.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from adapterx.compose.batch import Shared
from adapterx.compose.copies import Answer
from adapterx.compose.expression import Composition, Stack
from adapterx.compose.naming import adapter_names_in, copies_in
from adapterx.compose.running import Step
from adapterx.records import Book, Place
from adapterx.targets.ports import Capture, Port

NOTHING = Stack()


class Override:
    """What an open `with` block puts in place of the composition, or leaves out of it.

    Overrides are told apart by identity, and no copy of a model has one.

    Args:
        model: what it was opened on.
        composition: of `mixed`; with `skipped` None, None is `disabled`.
        shared: what the modules share that run it.
        skipped: the blocks whose adapters do not take part.
    """

    def __init__(
        self,
        model: nn.Module,
        composition: Composition | None = None,
        shared: Shared | None = None,
        skipped: frozenset[int] | None = None,
    ) -> None:
        self.model, self.composition, self.shared, self.skipped = model, composition, shared, skipped
        self.names = frozenset() if composition is None else frozenset(adapter_names_in(composition))
        self.switchables: list[SwitchableModules] = []  # on which it is open

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that require gradients now where this override is open."""
        return [p for switchable in self.switchables for p in switchable.touched() if p.requires_grad]


@dataclass(frozen=True)
class Route:
    """What takes part in the forward pass of one module.

    Attributes:
        composition: what `set_active` chose for the model.
        skipped: the blocks that it chose to leave out.
        overrides: those that are open around the module, the innermost last. Any `disabled` one leaves it alone;
            otherwise the innermost `mixed` one replaces the composition; a block is left out that any of them skips.
        shared: what the modules share that run the composition.
        steps: what the module's adapters run, made of all this.
        port: one of theirs; all ports of a module begin and end alike.
        captures: the captured inputs that the steps read.
        answer: what answers in place of the module.
    """

    composition: Composition = NOTHING
    skipped: frozenset[int] = frozenset()
    overrides: tuple[Override, ...] = ()
    shared: Shared | None = field(default=None, compare=False)
    steps: tuple[Step, ...] = field(default=(), compare=False)
    port: Port | None = field(default=None, compare=False)
    captures: tuple[Capture, ...] = field(default=(), compare=False)
    answer: Answer | None = field(default=None, compare=False)

    def in_effect(self, block: int | None = None) -> tuple[Composition, Shared]:
        """Return the composition that runs now in a block, and what its modules share."""
        skipping = [override.skipped for override in self.overrides if override.skipped is not None]
        chosen = [override for override in self.overrides if override.skipped is None]
        if any(override.composition is None for override in chosen):
            return NOTHING, Shared()
        if block is not None and any(block in skipped for skipped in (self.skipped, *skipping)):
            return NOTHING, Shared()
        if chosen:
            return chosen[-1].composition, chosen[-1].shared
        return self.composition, self.shared or Shared(repeated=copies_in(self.composition) > 0)


class SwitchableModules(nn.ModuleDict):
    """Modules by adapter name, of which the route says which take part in the forward pass.

    Args:
        where: qualified name of the base module, for messages.
    """

    child: str  # name of this child of a base module

    def __init__(self, where: str = "") -> None:
        super().__init__()
        self.where = where
        self.places: dict[str, Place] = {}
        self.route = Route()
        self.former_flags: dict[str, dict[str, bool]] = {}  # by adapter and parameter, from before the `mixed` blocks
        self.handle: RemovableHandle | None = None  # of the forward hook on the base module
        self._counts: dict[tuple[Book, str], int] = {}  # of places, by book and the module's name there
        self._trained: frozenset[str] = frozenset()  # whose parameters were told to require gradients

    def hang(self, name: str, module: nn.Module, place: Place) -> None:
        """Add what a new adapter brings to this module; it does not run before the route says so."""
        self[name] = module
        self.places[name] = place
        self._count(place, 1)
        place.book.note((place.module, self.child), name)

    def remove(self, name: str) -> None:
        """Take it off again."""
        del self[name]
        place = self.places.pop(name)
        self._count(place, -1)
        place.book.strike((place.module, self.child), name)
        self._trained -= {name}
        self.former_flags.pop(name, None)
        if name in adapter_names_in(self.route.in_effect()[0]):
            self.change_route()

    def rename(self, old: str, new: str) -> None:
        """Give an adapter another name, in its place among the others."""
        entries = [(new if name == old else name, module) for name, module in self._modules.items()]
        self._modules.clear()
        self._modules.update(entries)
        place = self.places[old]
        renamed = place._replace(attachment=replace(place.attachment, name=new))
        entries = [(new, renamed) if name == old else (name, other) for name, other in self.places.items()]
        self.places = dict(entries)
        if old in self._trained:
            self._trained = self._trained - {old} | {new}

    def _count(self, place: Place, change: int) -> None:
        key = place.book, place.module
        self._counts[key] = self._counts.get(key, 0) + change
        if not self._counts[key]:
            del self._counts[key]

    def counts(self) -> dict[tuple[Book, str], int]:
        """Return how many adapters of each book hang here, by the name that the module has there."""
        return self._counts

    def change_route(self, **changes: Any) -> None:
        """Exchange the composition or the overrides of the route, and build what runs from it."""
        self.route = self._build(replace(self.route, **changes))
        if "overrides" in changes:
            self._set_flags()

    def train_only(self, names: Collection[str]) -> None:
        """Let these adapters require gradients, and those no longer that were told to before."""
        wanted = frozenset(name for name in names if name in self)
        for name in self._trained - wanted:
            self[name].requires_grad_(False)
        for name in wanted:
            self[name].requires_grad_(True)
        self._trained = wanted

    @property
    def told_to_train(self) -> frozenset[str]:
        """The names of the adapters whose parameters `train_only` has told to require gradients."""
        return self._trained

    def touched(self) -> list[nn.Parameter]:
        """Return the parameters whose flags open `mixed` blocks have changed."""
        return [parameter for name in self.former_flags for parameter in self[name].parameters()]

    def _set_flags(self) -> None:
        """Let parameters require gradients as the innermost `mixed` block says, and after the last one as before."""
        mixed = [override for override in self.route.overrides if override.composition is not None]
        if not mixed:
            self._restore_flags()
            return
        self.note_flags(mixed[-1].names)
        for name in sorted(self.former_flags):
            self[name].requires_grad_(name in mixed[-1].names)

    def note_flags(self, names: Collection[str]) -> None:
        """Note what a block in which these train will change, before it does: modules may share parameters."""
        for name in sorted({*(name for name in names if name in self), *self._trained, *self.former_flags}):
            own = {key: parameter.requires_grad for key, parameter in self[name].named_parameters()}
            self.former_flags[name] = own | self.former_flags.get(name, {})

    def _restore_flags(self) -> None:
        for name, flags in self.former_flags.items():
            for key, parameter in self[name].named_parameters():
                parameter.requires_grad_(flags.get(key, parameter.requires_grad))
        self.former_flags = {}

    def _build(self, route: Route) -> Route:
        raise NotImplementedError(f"{type(self).__name__}: _build must be defined by what hangs on a module")

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles have no override
        return {**self.__dict__, "route": Route(self.route.composition, self.route.skipped)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._restore_flags()
        self.change_route()

    def __copy__(self) -> "SwitchableModules":  # shares the parameters, which must keep what open blocks gave them
        twin = type(self).__new__(type(self))
        twin.__dict__ |= self.__dict__ | {
            "route": Route(self.route.composition, self.route.skipped),
            "former_flags": {},
        }
        twin.change_route()
        return twin
