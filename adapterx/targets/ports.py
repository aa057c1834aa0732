"""What an adapter reads and where its result goes.

A port is the seam between an adapter and the module that it hangs on. It is a value, so it can be compared, copied and
written down; the module that an adapter hangs on (`adapterx.host`) asks its port and knows no placement.

    port          the adapter hangs on       reads                                adds to
    Output        the output projection      what the projection returns          the same
    Input         the output projection      what the sublayer receives, or       what the projection returns
                                             the residual stream
    ResidualSum   the output projection      output + residual stream             what the projection returns
    NormedSum     the norm behind the sum    norm(sum), the sum being             the sum, before it is normed (again)
                                             output + residual stream
    NormedOutput  the norm behind the sum    norm(sum)                            the same
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from adapterx.errors import TargetError, speaker
from adapterx.targets.sizes import module_sizes, norm_size, width_received

COPIES = "adapterx_copies"
"""The child of a base module that holds its trained copies."""


class Call(NamedTuple):
    """One run of a module that adapters hang on: what it received, what it returned, and what hangs on it."""

    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    output: Tensor
    adapters: Mapping[str, nn.Module]
    captures: Mapping[str, "Capture"]
    change: Callable[[Tensor], Tensor] | None = None  # what a step that sees a part of the batch makes of inputs

    def received(self) -> Tensor:
        """Return the hidden states that the module received."""
        hidden_states = first_input(self.args, self.kwargs)
        return hidden_states if self.change is None else self.change(hidden_states)

    def captured(self, name: str) -> Tensor:
        """Return what was captured for the adapter of this name."""
        hidden_states = self.captures[name].take(name)
        return hidden_states if self.change is None else self.change(hidden_states)

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """Return the call as if the module had received and returned what `change` makes of it."""
        before = self.change
        both = change if before is None else lambda hidden_states: change(before(hidden_states))
        return self._replace(output=change(self.output), change=both)

    def run_again(self, hidden_states: Tensor) -> Tensor:
        """Return what the module gives for other hidden states, or the trained copy that answers in its place."""
        output = self.module.forward(hidden_states)
        copies = self.module._modules.get(COPIES)
        answer = None if copies is None else copies.replace_output(self.module, (hidden_states,), {}, output)
        return output if answer is None else answer


@dataclass(frozen=True)
class Output:
    """Read what the module returns, and add to it (Houlsby et al. 2019)."""

    reads: ClassVar[str] = "output"  # ports of one module must agree: what passes from adapter to adapter
    source: ClassVar[str | None] = None  # the module whose input must be captured

    def sizes(self, modules: Mapping[str, nn.Module], name: str) -> tuple[int, int]:
        """Return the widths of what the adapter reads and adds to, in elements; errors as in `module_sizes`."""
        hidden_size = module_sizes(modules, name)[1]
        return hidden_size, hidden_size

    def start(self, call: Call) -> Tensor:
        """Return the hidden states that the first adapter receives."""
        return call.output

    def read(self, call: Call, hidden_states: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return what the adapter of this name reads, and what it adds to."""
        return hidden_states, hidden_states

    def finish(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return what the module shall return, given what the last adapter gave."""
        return hidden_states


@dataclass(frozen=True)
class Input:
    """Read what the sublayer receives, and add to what the module returns (He et al. 2021, parallel placement).

    Attributes:
        source: qualified name of the module whose input is read; None is the module itself.
    """

    reads: ClassVar[str] = "output"
    source: str | None = None

    def sizes(self, modules: Mapping[str, nn.Module], name: str) -> tuple[int, int]:
        """Return the widths of what the adapter reads and adds to."""
        own_input, hidden_size = module_sizes(modules, name)
        if self.source is None:
            return own_input, hidden_size
        return width_received(modules, self.source, name, hidden_size), hidden_size

    def start(self, call: Call) -> Tensor:
        """Return the hidden states that the first adapter receives."""
        return call.output

    def read(self, call: Call, hidden_states: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return what the adapter of this name reads, and what it adds to."""
        read = call.received() if self.source is None else call.captured(name)
        if read.shape[:-1] != hidden_states.shape[:-1]:
            read = self._with_tokens_of(hidden_states, read, call)
        return read, hidden_states

    def _with_tokens_of(self, hidden_states: Tensor, read: Tensor, call: Call) -> Tensor:
        """Flatten the tokens that are read where the module itself returns them flat, as mixtures of experts do."""
        if self.source is None and hidden_states.dim() == 2 and read.shape[:-1].numel() == hidden_states.shape[0]:
            return read.reshape(-1, read.shape[-1])
        raise RuntimeError(
            f"attach: a parallel adapter must read the tokens that its module returns, in the same order; "
            f"{self.source or 'the module'} receives {tuple(read.shape)} and {type(call.module).__name__} returns "
            f"{tuple(hidden_states.shape)}; use placement 'sequential' for this model, or name other target_modules"
        )

    def finish(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return what the module shall return."""
        return hidden_states


@dataclass(frozen=True)
class ResidualSum:
    """Read the sum of what the module returns and the residual stream, in models that norm before each sublayer.

    With `u = h + r` and `g` the adapter's branch, the model goes on with the residual stream `u + g(u)`, or with
    `u + r + g(u)`, as `added_to` says.

    Attributes:
        added_to: `"sum"` or `"sum_plus_residual"`.
        source: qualified name of the module that receives the residual stream `r`.

    Source:
        AdapterHub's `original_ln_before=True` where the model has no norm behind its sublayers.
    """

    reads: ClassVar[str] = "output"
    added_to: str
    source: str

    def sizes(self, modules: Mapping[str, nn.Module], name: str) -> tuple[int, int]:
        """Return the widths of what the adapter reads and adds to, in elements; errors as in `module_sizes`."""
        return Output().sizes(modules, name)

    def start(self, call: Call) -> Tensor:
        """Return the hidden states that the first adapter receives."""
        return call.output

    def read(self, call: Call, hidden_states: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return the sum, and what the adapter of this name adds to; the model adds the residual stream itself."""
        total = hidden_states + call.captured(name)
        return total, hidden_states if self.added_to == "sum" else total

    def finish(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return what the module shall return."""
        return hidden_states


@dataclass(frozen=True)
class NormedOutput:
    """Read what the norm behind a sublayer returns, and add to it; it is not normed again (AdapterPlus)."""

    reads: ClassVar[str] = "normed output"
    source: ClassVar[str | None] = None

    def sizes(self, modules: Mapping[str, nn.Module], name: str) -> tuple[int, int]:
        """Return the widths of what the adapter reads and adds to; errors as in `NormedSum`."""
        return NormedSum().sizes(modules, name)

    def start(self, call: Call) -> Tensor:
        """Return the hidden states that the first adapter receives."""
        return call.output

    def read(self, call: Call, hidden_states: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return what the adapter of this name reads, and what it adds to."""
        return hidden_states, hidden_states

    def finish(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return what the module shall return."""
        return hidden_states


@dataclass(frozen=True)
class NormedSum:
    """Read the normed sum of a sublayer's output and the residual stream; the module is the norm itself.

    With `u = h + r` the sum that the norm receives, `x = norm(u)` and `g` the adapter's branch, the module returns
    `norm(u + g(x))`, `norm(u + r + g(x))` or `norm(x + r + g(x))`, as `added_to` says. The norm runs twice.

    Attributes:
        added_to: `"sum"`, `"sum_plus_residual"` or `"normed_plus_residual"`.
        source: qualified name of the module that receives the residual stream `r`; None where `"sum"` needs none.

    Source:
        Pfeiffer et al. 2021; AdapterHub's `original_ln_before=True` with `residual_before_ln` True, "post_add", False.
    """

    reads: ClassVar[str] = "normed sum"
    added_to: str = "sum"
    source: str | None = None

    def sizes(self, modules: Mapping[str, nn.Module], name: str) -> tuple[int, int]:
        """Return the widths of what the adapter reads and adds to.

        Raises:
            TargetError: the module is no norm.
        """
        size = norm_size(modules[name])
        if size is None:
            kind = type(modules[name]).__name__
            raise TargetError(f"{speaker()}: {name} must be a norm for placement 'normed_sum', got a {kind}")
        return size, size

    def start(self, call: Call) -> Tensor:
        """Return the sum, as the norm received it."""
        return call.received()

    def read(self, call: Call, hidden_states: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return the normed sum, and what the adapter of this name adds to."""
        # The module itself has normed the first sum already.
        unchanged = hidden_states is call.received()
        normed = call.output if unchanged else call.run_again(hidden_states)
        if self.added_to == "sum":
            return normed, hidden_states
        residual = call.captured(name)
        return normed, residual + (hidden_states if self.added_to == "sum_plus_residual" else normed)

    def finish(self, call: Call, hidden_states: Tensor) -> Tensor:
        """Return the norm of the sum that the last adapter gave."""
        return call.run_again(hidden_states)


Port = Output | Input | ResidualSum | NormedSum | NormedOutput
"""What an adapter reads and what it adds to."""


class _PerThread(threading.local):
    hidden_states: Tensor | None = None

    def __reduce__(self) -> tuple:  # copies and pickles start empty
        return _PerThread, ()


class Capture:
    """Carry what one module receives to the ports of adapters that hang on another.

    A plain object rather than a module: exporters refuse modules that change in the forward pass. It holds a tensor
    only between the two hooks of one forward pass, one per thread, so that threads may share a model.

    Args:
        source: qualified name of the module whose input is carried.
        root: qualified name of the module whose adapters read it, in the same model.
    """

    def __init__(self, source: str, root: str = "") -> None:
        self.source, self.root = source, root
        self.readers = 0  # how many adapters there are
        self.wanted = False  # whether one of them takes part in the forward pass
        self.captured = _PerThread()

    def store(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> None:
        """Forward pre-hook of the module that receives the input; a quantiser may hand it on without its options."""
        if self.wanted:
            self.captured.hidden_states = first_input(args, kwargs or {})

    def drop(self, *_: Any) -> None:
        """Forward hook of the module that runs source and reader: a reader that did not run must not keep a tensor."""
        self.captured.hidden_states = None

    def take(self, name: str) -> Tensor:
        """Return the captured hidden states to the adapter of this name."""
        hidden_states = self.captured.hidden_states
        if hidden_states is None:
            raise RuntimeError(
                f"attach: adapter {name!r} reads the input of {self.source}, which did not run before it; "
                "it must run in the same forward pass"
            )
        return hidden_states


def first_input(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states among the arguments of a module: the first one, or `hidden_states=`."""
    candidates = [*args[:1], kwargs.get("hidden_states"), *kwargs.values()]
    for value in candidates:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise TypeError("attach: a parallel adapter needs a module that receives hidden states, this one receives none")
