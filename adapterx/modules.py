"""The modules that hang on an adapted model: the set of adapters of one module, trained copies, and their hooks."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapterx.bottleneck import BottleneckAdapter
from adapterx.config import AdapterConfig
from adapterx.grouping import AdapterGroup
from adapterx.mixing import CopyGroup, MixedBatch
from adapterx.targets import Target

# Children of the base modules; the base modules themselves keep their class, their place and their keys.
ADAPTERS = "adapterx"
COPIES = "adapterx_copies"


class Record(NamedTuple):
    """Why one adapter hangs on one module."""

    config: AdapterConfig
    target: Target
    rule: str


class SwitchableModules(nn.ModuleDict):
    """Modules by adapter name, of which those named in `active` take part in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.active: tuple[str, ...] = ()  # in order of application; may name adapters that are not here
        self.disabled_depth = 0  # how many `disabled` blocks are open
        self.handle: RemovableHandle | None = None  # of the forward hook on the base module
        self.mixture: Any = None  # inside a `mixed` block, in place of `active`: who serves which sequences

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles know nothing of an open block
        return {**self.__dict__, "mixture": None}


class AdapterSet(SwitchableModules):
    """All adapters of one base module; child `adapterx` of that module."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, Record] = {}
        self.captures: dict[str, InputCapture] = {}

    def start_mixture(self, batch: MixedBatch, where: str) -> None:
        """Group the adapters that the batch picks by what one call of the grouped operator can serve."""
        groups: dict[tuple, dict[str, BottleneckAdapter]] = {}
        picked = set(batch.names)
        for name, adapter in self.items():
            if name in picked:
                config, target, _ = self.records[name]
                weight = adapter.down_proj.weight
                shared = (config.placement, target.input_module, adapter.activation, weight.dtype, weight.device)
                groups.setdefault(shared, {})[name] = adapter
        self.mixture = [(next(iter(group)), AdapterGroup(group, batch, where)) for group in groups.values()]

    def taking_part(self) -> Sequence[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
        """Return what takes part in the forward pass, in order: adapters, or groups under the name of their first."""
        if self.disabled_depth:
            return ()
        if self.mixture is not None:
            return self.mixture
        return [(name, self._modules[name]) for name in self.active if name in self._modules]

    def adapt(self, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Apply what takes part to what the base module returned; None leaves it as it is."""
        taking_part = self.taking_part()
        if not taking_part:
            return None
        is_tuple = isinstance(output, tuple)
        hidden_states = output[0] if is_tuple and output else output
        if not isinstance(hidden_states, Tensor):
            raise TypeError(
                "attach: an adapted module must return a tensor or a tuple that begins with one, "
                f"{self.records[taking_part[0][0]].target.module} returns {type(hidden_states).__name__}"
            )
        for name, adapter in taking_part:
            if self.records[name].config.placement == "sequential":
                source = hidden_states
            elif name in self.captures:
                source = self.captures[name].take()
            else:
                source = first_input(args, kwargs)
            hidden_states = adapter(source, hidden_states)
        if not is_tuple:
            return hidden_states
        if hasattr(output, "_replace"):  # a named tuple
            return output._replace(**{output._fields[0]: hidden_states})
        return (hidden_states, *output[1:])


class ModuleCopies(SwitchableModules):
    """Trained copies of one base module, by adapter name; child `adapterx_copies` of that module."""

    def start_mixture(self, batch: MixedBatch, where: str) -> None:
        """Let each copy answer for the sequences of the batch that pick it."""
        picked = {name: module for name, module in self.items() if name in batch.names}
        self.mixture = CopyGroup(picked, batch, where) if picked else _base_output

    def replace_output(self, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output of the copy that was activated last; None leaves the base module's."""
        if self.disabled_depth:
            return None
        if self.mixture is not None:
            return self.mixture(args, kwargs, output)
        names = [name for name in self.active if name in self._modules]
        return self[names[-1]](*args, **kwargs) if names else None


def _base_output(_args: tuple, _kwargs: dict[str, Any], _output: Any) -> None:
    """Stand for the copies of a module of which a batch picks none."""


class _PerThread(threading.local):
    hidden_states: Tensor | None = None

    def __reduce__(self) -> tuple:  # copies and pickles start empty
        return _PerThread, ()


class InputCapture:
    """Carry what a sublayer receives to the adapter behind its output projection (parallel placement).

    A plain object rather than a module: exporters refuse modules that change in the forward pass. It holds a tensor
    only between the two hooks of one forward pass, one per thread, so that threads may share a model.
    """

    def __init__(self, adapters: AdapterSet, name: str) -> None:
        self.adapters, self.name = adapters, name
        self.handle: RemovableHandle | None = None  # of `store` on the module that receives the input
        self.captured = _PerThread()

    def store(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the module that receives the sublayer's input."""
        if any(self.name == name for name, _ in self.adapters.taking_part()):
            self.captured.hidden_states = first_input(args, kwargs)

    def take(self) -> Tensor:
        """Return the captured hidden states and forget them."""
        hidden_states, self.captured.hidden_states = self.captured.hidden_states, None
        if hidden_states is None:
            target = self.adapters.records[self.name].target
            raise RuntimeError(
                f"AdapterSet: the parallel adapter {self.name!r} of {target.module} reads the input of "
                f"{target.input_module}, which did not run before it"
            )
        return hidden_states


def first_input(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states among the arguments of a module: the first one, or `hidden_states=`."""
    candidates = [*args[:1], kwargs.get("hidden_states"), *kwargs.values()]
    for value in candidates:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise TypeError("attach: a parallel adapter needs a module that receives hidden states, this one receives none")


def apply_adapters(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of an adapted module. A plain function: copies and pickles of a model so find their own adapters."""
    return getattr(module, ADAPTERS).adapt(args, kwargs, output)


def apply_copies(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of a module of which adapters train copies."""
    return getattr(module, COPIES).replace_output(args, kwargs, output)
