"""What hangs on a base module: its adapters, its trained copies, and the hooks that run them.

The base modules keep their class, their place and their keys. Each of them that adapters use has a child: `adapterx`
holds adapters by name, `adapterx_copies` trained copies. What such a child runs is one immutable value, its `route`.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapterx.compose.batch import MixedBatch
from adapterx.compose.copies import Answer, build_answer
from adapterx.compose.expression import Composition, Stack
from adapterx.compose.program import Member, Step, build_steps, readers, run_steps
from adapterx.errors import TargetError
from adapterx.records import Place
from adapterx.targets.ports import COPIES, Call, Capture, Port

ADAPTERS = "adapterx"
NOTHING = Stack()
_NO_OUTPUT = object()  # whoever hands a hook on may forget that it takes keyword arguments


class Override:
    """What an open `with disabled(...)` or `with mixed(...)` puts in place of the composition.

    Overrides are told apart by identity, and no copy of a model has one.

    Args:
        model: what it was opened on.
        batch: who picks whom, of `mixed`; None of `disabled`.
    """

    def __init__(self, model: nn.Module, batch: MixedBatch | None = None) -> None:
        self.model, self.batch = model, batch
        self.switchables: list[SwitchableModules] = []  # on which it is open

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that require gradients now where this override is open."""
        return [p for switchable in self.switchables for p in switchable.parameters() if p.requires_grad]


@dataclass(frozen=True)
class Route:
    """What takes part in the forward pass of one module.

    Attributes:
        composition: what `set_active` chose for the model.
        overrides: those that are open around the module, the innermost last. Any `disabled` one leaves it alone;
            otherwise the innermost `mixed` one replaces the composition.
        steps: what the module's adapters run, made of all this.
        port: one of theirs; all ports of a module begin and end alike.
        answer: what answers in place of the module.
    """

    composition: Composition = NOTHING
    overrides: tuple[Override, ...] = ()
    steps: tuple[Step, ...] = field(default=(), compare=False)
    port: Port | None = field(default=None, compare=False)
    answer: Answer | None = field(default=None, compare=False)

    def in_effect(self) -> tuple[Composition, MixedBatch | None]:
        """Return the composition that runs now, and the batch of `mixed` that takes its place."""
        if any(override.batch is None for override in self.overrides):
            return NOTHING, None
        return self.composition, self.overrides[-1].batch if self.overrides else None


class SwitchableModules(nn.ModuleDict):
    """Modules by adapter name, of which the route says which take part in the forward pass.

    Args:
        where: qualified name of the base module, for messages.
    """

    def __init__(self, where: str = "") -> None:
        super().__init__()
        self.where = where
        self.places: dict[str, Place] = {}
        self.route = Route()
        self.former_flags: dict[str, bool] = {}  # `requires_grad` by parameter, from before the open `mixed` blocks
        self.handle: RemovableHandle | None = None  # of the forward hook on the base module

    def hang(self, name: str, module: nn.Module, place: Place) -> None:
        """Add what an adapter brings to this module; it does not run before the route says so."""
        self[name] = module
        self.places[name] = place
        self.change_route()

    def remove(self, name: str) -> None:
        """Take it off again."""
        del self[name]
        place = self.places.pop(name)
        place.roster.modules.discard(place.module)
        self.change_route()

    def change_route(self, **changes: Any) -> None:
        """Exchange the composition or the overrides of the route, and build what runs from it."""
        self.route = self._build(replace(self.route, **changes))
        if "overrides" in changes:
            self._set_flags()

    def _set_flags(self) -> None:
        """Let parameters require gradients as the innermost `mixed` block says, and after the last one as before."""
        batches = [override.batch for override in self.route.overrides if override.batch is not None]
        if batches:
            flags = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
            self.former_flags = flags | self.former_flags
            for name, module in self.items():
                module.requires_grad_(name in batches[-1].names)
        elif self.former_flags:
            self._restore_flags()

    def _restore_flags(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.former_flags.get(name, parameter.requires_grad))
        self.former_flags = {}

    def _build(self, route: Route) -> Route:
        raise NotImplementedError(f"{type(self).__name__}: _build must be defined by what hangs on a module")

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles have no override
        return {**self.__dict__, "route": Route(self.route.composition)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._restore_flags()
        self.change_route()

    def __copy__(self) -> "SwitchableModules":  # shares the parameters, which must keep what open blocks gave them
        twin = type(self).__new__(type(self))
        twin.__dict__ |= self.__dict__ | {"route": Route(self.route.composition), "former_flags": {}}
        twin.change_route()
        return twin


class AdapterSet(SwitchableModules):
    """All adapters of one base module; child `adapterx` of that module.

    Args:
        where: qualified name of the base module, for messages.
    """

    def __init__(self, where: str = "") -> None:
        super().__init__(where)
        self.captures: dict[str, Capture] = {}
        self.capture_handles: dict[str, tuple[RemovableHandle, RemovableHandle]] = {}

    def remove(self, name: str) -> None:
        """Take an adapter off, and the hook that served it."""
        super().remove(name)
        self.captures.pop(name, None)
        for handle in self.capture_handles.pop(name, ()):
            handle.remove()

    def capture(self, name: str, source: str, module: nn.Module, around: nn.Module) -> None:
        """Carry what another module, of the name `source`, receives to the adapter of this name.

        `around` runs them both; at its end, also by an exception, nothing that was not read is kept.
        """
        capture = Capture(source, f"adapter {name!r} of {self.where}")
        self.captures[name] = capture
        self.capture_handles[name] = (
            module.register_forward_pre_hook(capture.store, with_kwargs=True),
            around.register_forward_hook(capture.drop, always_call=True),
        )

    def _build(self, route: Route) -> Route:
        members = {name: Member(self[name], place.target.port) for name, place in self.places.items()}
        composition, batch = route.in_effect()
        steps = build_steps(composition, members, self.where, batch)
        wanted = set(readers(steps))
        for name, capture in self.captures.items():
            capture.wanted = name in wanted
        port = next((member.port for member in members.values()), None)
        return replace(route, steps=steps, port=port)

    def adapt(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Apply what takes part to what the base module returned; None leaves it as it is."""
        route = self.route
        if not route.steps:
            return None
        is_tuple = isinstance(output, tuple)
        hidden_states = output[0] if is_tuple and output else output
        if not isinstance(hidden_states, Tensor):
            raise TypeError(
                "attach: an adapted module must return a tensor or a tuple that begins with one, "
                f"{self.where} returns {type(hidden_states).__name__}"
            )
        call = Call(module, args, kwargs, hidden_states, self._modules, self.captures)
        try:
            hidden_states = route.port.finish(call, run_steps(route.steps, call, route.port.start(call)))
        except (AttributeError, RuntimeError, ValueError) as error:
            self._explain(error, hidden_states)
            raise
        if not is_tuple:
            return hidden_states
        if hasattr(output, "_replace"):  # a named tuple
            return output._replace(**{output._fields[0]: hidden_states})
        return (hidden_states, *output[1:])

    def _explain(self, error: Exception, hidden_states: Tensor) -> None:
        """Say in words what others have done to adapters: their weights are read and their projections never called."""
        if hidden_states.is_nested:
            raise TypeError(
                f"attach: adapters on {self.where} must receive strided tensors, got a nested one; build the model "
                "with enable_nested_tensor=False"
            ) from error
        for name, adapter in self.items():
            for projection in (adapter.down_proj, adapter.up_proj):
                where = f"adapter {name!r} of {self.where}"
                if not isinstance(projection.weight, Tensor):
                    raise TargetError(
                        f"attach: {where} must keep its linear maps, one was replaced by "
                        f"{_class_of(projection)}; quantise the model before attaching"
                    ) from error
                if projection.weight.is_meta and not hidden_states.is_meta:
                    raise TargetError(
                        f"attach: {where} must be in memory, got weights on the meta device; offload the model before "
                        "attaching"
                    ) from error


class ModuleCopies(SwitchableModules):
    """Trained copies of one base module, by adapter name; child `adapterx_copies` of that module."""

    def _build(self, route: Route) -> Route:
        composition, batch = route.in_effect()
        return replace(route, answer=build_answer(composition, self._modules, self.where, batch))

    def replace_output(self, base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Return what answers in place of the base module; None leaves the base module's output."""
        answer = self.route.answer
        return None if answer is None else answer(base, args, kwargs, output)


def apply_adapters(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any = _NO_OUTPUT) -> Any:
    """Forward hook of an adapted module. A plain function: copies and pickles of a model so find their own adapters."""
    try:
        # Straight from the table of children: as an attribute the search would take a quarter of the hook's time.
        adapters = module._modules[ADAPTERS]
    except KeyError:
        raise _replaced(module) from None
    return adapters.adapt(module, args, kwargs, output)


def apply_copies(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any = _NO_OUTPUT) -> Any:
    """Forward hook of a module of which adapters train copies."""
    try:
        copies = module._modules[COPIES]
    except KeyError:
        raise _replaced(module) from None
    return copies.replace_output(module, args, kwargs, output)


def _replaced(module: nn.Module) -> TargetError:
    # A quantiser hands the hooks on to the module that it puts in place, without what hangs there.
    return TargetError(
        f"attach: model must keep the modules that adapters hang on, one was replaced by {_class_of(module)}, and its "
        "adapters are lost; quantise the model before attaching, or detach them"
    )


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def switchable_modules(model: nn.Module) -> list[SwitchableModules]:
    """Return everything that adapterx has hung on the model, in the model's order."""
    return [module for module in model.modules() if isinstance(module, SwitchableModules)]


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the model's own modules by qualified name, itself under `""`, without what adapterx has added."""
    modules: dict[str, nn.Module] = {}
    _collect(model, "", modules, set())
    return modules


def _collect(module: nn.Module, name: str, modules: dict[str, nn.Module], seen: set[nn.Module]) -> None:
    if module in seen or isinstance(module, SwitchableModules):
        return
    seen.add(module)
    modules[name] = module
    for key, child in module._modules.items():
        if child is not None:
            _collect(child, f"{name}.{key}" if name else key, modules, seen)
