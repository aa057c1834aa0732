"""What hangs where embeddings enter a model and where its hidden states leave it: invertible adapters, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from adapterx.compose.batch import Shared
from adapterx.compose.expression import Composition
from adapterx.compose.lanes import Item, lanes_of
from adapterx.compose.naming import adapter_names_in
from adapterx.compose.regions import Extent, Region
from adapterx.errors import TargetError
from adapterx.route import Route, SwitchableModules
from adapterx.targets.ports import first_input

INVERTIBLES = "adapterx_invertible"
Change = Callable[[Tensor], Tensor]


class Couplings(SwitchableModules):
    """The invertible adapters at one end of a model; child `adapterx_invertible` of a base module.

    The first adapter of the composition runs its own, if it has one; inside `mixed` each sequence has that of its
    adapter. The same module hangs at both ends, so that it is one in copies too.
    """

    child = INVERTIBLES
    inverse: ClassVar[bool] = False

    def _build(self, route: Route) -> Route:
        composition, shared = route.in_effect()
        return replace(route, answer=self._answer_of(composition, shared))

    def _answer_of(self, composition: Composition, shared: Shared) -> Change | None:
        lanes, extent = lanes_of(composition)
        rows: dict[str, dict[int, None]] = {}
        for region, items in lanes:
            name = next((name for item in items for name in names_in(item)), None)
            if region.rows is None:
                return _OfOne(self._modules, name, shared, self.inverse) if name in self else None
            if name in self:
                rows.setdefault(name, {}).update(dict.fromkeys(region.rows))  # stretches of tokens share their rows
        if not rows:
            return None
        own = {_OfOne(self._modules, name, shared, self.inverse): Region(tuple(found)) for name, found in rows.items()}
        return _EachItsOwn(own, extent._replace(tokens=None), shared, self.where)

    def change(self, hidden_states: Tensor) -> Tensor:
        """Return the hidden states as those that take part change them."""
        answer = self.route.answer
        return hidden_states if answer is None else answer(hidden_states)


class OutputCouplings(Couplings):
    """On the module that returns the embeddings."""


class InputCouplings(Couplings):
    """On the first block, which receives the embeddings."""


class HeadCouplings(InputCouplings):
    """On the head of a language model, which receives what is changed back."""

    inverse = True


@dataclass(frozen=True, eq=False)
class _OfOne:
    """One invertible adapter. Looked up anew in each call, so that a module that was replaced in its place is found."""

    modules: Mapping[str, nn.Module]
    name: str
    shared: Shared
    inverse: bool

    def __call__(self, hidden_states: Tensor) -> Tensor:
        module = self.modules[self.name]
        result = module(hidden_states, self.inverse)
        self.shared.refuse_late_backward(result, module)
        return result


@dataclass(frozen=True, eq=False)
class _EachItsOwn:
    """Several, each for the sequences of its adapter."""

    changes: Mapping[_OfOne, Region]
    extent: Extent
    shared: Shared
    where: str

    def __call__(self, hidden_states: Tensor) -> Tensor:
        spread = self.shared.spread(hidden_states, self.extent, self.where)
        for change, region in self.changes.items():
            spread = region.put(spread, change(region.cut(spread)))
        return spread.reshape(hidden_states.shape)


def names_in(item: Item) -> tuple[str, ...]:
    """Return the names of an item of a lane."""
    return (item,) if isinstance(item, str) else adapter_names_in(item)


def change_output(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any = None) -> Any:
    """Forward hook of the embeddings. A plain function: copies and pickles of a model so find their own adapters."""
    couplings = _couplings_of(module)
    if couplings.route.answer is None:
        return None
    if isinstance(output, tuple):
        return (couplings.change(output[0]), *output[1:])
    return couplings.change(output)


def change_input(module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> Any:
    """Forward pre-hook of the first block, and of the head."""
    couplings = _couplings_of(module)
    if couplings.route.answer is None:
        return None
    old = first_input(args, kwargs or {})
    new = couplings.change(old)
    return (
        tuple(new if value is old else value for value in args),
        {key: new if value is old else value for key, value in (kwargs or {}).items()},
    )


def _couplings_of(module: nn.Module) -> Couplings:
    try:
        return module._modules[INVERTIBLES]
    except KeyError:
        raise TargetError(
            "attach: model must keep the modules that adapters hang on, one was replaced by "
            f"{type(module).__qualname__}, and its invertible adapters are lost; quantise and resize the model before "
            "attaching, or detach them"
        ) from None
