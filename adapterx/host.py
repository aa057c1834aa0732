"""What hangs on a base module: its adapters, its trained copies, and the hooks that run them.

The base modules keep their class, their place and their keys. Each of them that adapters use has a child: `adapterx`
holds adapters by name, `adapterx_copies` trained copies, `adapterx_fusions` fusions.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapterx.compose.copies import build_answer
from adapterx.compose.naming import adapter_names_in
from adapterx.compose.program import Member, Module, build_steps, readers
from adapterx.compose.running import run_steps
from adapterx.errors import TargetError
from adapterx.fusion import FusionSet
from adapterx.route import Route, SwitchableModules
from adapterx.targets.ports import COPIES, Call, Capture

ADAPTERS = "adapterx"
_NO_OUTPUT = object()  # whoever hands a hook on may forget that it takes keyword arguments


class AdapterSet(SwitchableModules):
    """All adapters of one base module; child `adapterx` of that module.

    Args:
        where: qualified name of the base module, for messages.
    """

    child = ADAPTERS

    def __init__(self, where: str = "") -> None:
        super().__init__(where)
        self.captures: dict[str, Capture] = {}  # by adapter; those that read the same share one
        self.capture_handles: dict[Capture, tuple[RemovableHandle, RemovableHandle]] = {}

    def remove(self, name: str) -> None:
        """Take an adapter off, and the hooks that served it alone."""
        super().remove(name)
        capture = self.captures.pop(name, None)
        if capture is None:
            return
        capture.readers -= 1
        if not capture.readers:
            for handle in self.capture_handles.pop(capture):
                handle.remove()

    def rename(self, old: str, new: str) -> None:
        """Give an adapter another name."""
        super().rename(old, new)
        if old in self.captures:
            self.captures[new] = self.captures.pop(old)

    def capture(self, name: str, source: str, module: nn.Module, around: nn.Module) -> None:
        """Carry what another module, of the name `source`, receives to the adapter of this name.

        `around` runs them both; at its end, also by an exception, nothing that was not read is kept.
        """
        root = self.places[name].module
        known = (capture for capture in self.capture_handles if (capture.source, capture.root) == (source, root))
        if (capture := next(known, None)) is None:
            capture = Capture(source, root)
            self.capture_handles[capture] = (
                module.register_forward_pre_hook(capture.store, with_kwargs=True),
                around.register_forward_hook(capture.drop, always_call=True),
            )
        capture.readers += 1
        self.captures[name] = capture

    def _build(self, route: Route) -> Route:
        place = next(iter(self.places.values()), None)
        target = None if place is None else place.target
        composition, shared = route.in_effect(None if target is None else target.block)
        names = [name for name in adapter_names_in(composition) if name in self.places]
        members = {name: Member(self[name], self.places[name].target.port) for name in names}
        steps = build_steps(composition, Module(members, self.where, shared)) if members else ()
        captures = dict.fromkeys(self.captures[name] for name in readers(steps) if name in self.captures)
        for capture in self.route.captures:
            capture.wanted = False
        for capture in captures:
            capture.wanted = True
        return replace(route, steps=steps, port=None if target is None else target.port, captures=tuple(captures))

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
        for capture in route.captures:  # what it runs next has an input of its own
            capture.drop()
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
                        "attaching, or fill them with restore_adapter"
                    ) from error


class ModuleCopies(SwitchableModules):
    """Trained copies of one base module, by adapter name; child `adapterx_copies` of that module.

    Args:
        where: qualified name of the base module, for messages.
    """

    child = COPIES
    sizes: dict[str, tuple[int, ...]] | None = None  # of the base module, when all copies had them

    def _build(self, route: Route) -> Route:
        composition, shared = route.in_effect()
        return replace(route, answer=build_answer(composition, self._modules, self.where, shared))

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


def walk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of the model by qualified name, in its order, but nothing inside of what hangs on them."""
    modules: list[tuple[str, nn.Module]] = []
    _collect(model, "", modules, set())
    return modules


def switchable_modules(model: nn.Module) -> list[SwitchableModules]:
    """Return everything that adapterx has hung on the model and can switch, in the model's order."""
    return [module for _, module in walk(model) if isinstance(module, SwitchableModules)]


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the model's own modules by qualified name, itself under `""`, without what adapterx has added."""
    return {name: module for name, module in walk(model) if not is_hung(module)}


def base_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the model's own parameters, of shared ones every appearance, without those that adapterx has added."""
    for module in base_modules(model).values():
        yield from (parameter for parameter in module._parameters.values() if parameter is not None)


def is_hung(module: nn.Module) -> bool:
    """Tell whether adapterx has added this module itself, as a holder of adapters, copies or fusions."""
    return isinstance(module, (SwitchableModules, FusionSet))


def _collect(module: nn.Module, name: str, modules: list[tuple[str, nn.Module]], seen: set[nn.Module]) -> None:
    if module in seen:
        return
    seen.add(module)
    modules.append((name, module))
    if is_hung(module):
        return
    for key, child in module._modules.items():
        if child is not None:
            _collect(child, f"{name}.{key}" if name else key, modules, seen)
