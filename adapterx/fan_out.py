"""One input, several adapters: what lies below the lowest adapted block runs once for all of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapterx.active import check_fits, picked
from adapterx.compose import Composition, Parallel, adapter_names_in, parse_composition
from adapterx.compose.batch import Shared
from adapterx.compose.naming import fusions_in
from adapterx.errors import ConfigError, speaking_as
from adapterx.host import base_modules, switchable_modules
from adapterx.replicas import are_replicas, is_cache, leaves, map_tensors, repeat_inputs, repeat_rows, share_of_rows
from adapterx.targets import find_blocks
from adapterx.targets.ports import first_input


@contextmanager
def fan_out(model: nn.Module, names: Sequence[str | Composition | None]) -> Iterator["FanOut"]:
    """Run one input under several adapters inside the `with` block, and get an output for each of them.

    The batch is repeated, once for each name, and runs as one mixed batch: an adapted module calls the operator once
    for all names that share placement and activation. A block that holds no adapter of these names and receives the
    same for all of them runs for one in place of all: of a model that is adapted in its upper third, two thirds run
    once. Nothing is guessed: a block runs for all names where what it receives differs, or cannot be compared. In
    training the names share the dropout of what they share.

    The named adapters, and no others, take part in training; `backward()` belongs inside the block, as in `mixed`.

    Args:
        model: any module that encloses the adapted ones.
        names: different names of attached adapters, or compositions of such, of `Stack` and `Average`; None is the base
            model alone.

    Yields:
        A `FanOut`: called as the model is, it returns a dictionary of outputs by name.

    Raises:
        TypeError: `names` is not a sequence of names, compositions and None.
        ValueError: `names` is empty, or repeats an entry.
        UnknownAdapterError: a name is not attached.
        ConfigError: a composition cannot stand there.
    """
    with speaking_as("fan_out"):
        copies = _checked(names)
        check_fits(model, copies)
    fan = FanOut(model, copies.parts)
    shared = Shared("fan_out", in_block=True, in_shares=True)
    with picked(model, copies, shared), ExitStack() as hooks:
        for handle in fan.hook_blocks():
            hooks.callback(handle.remove)
        yield fan


def _checked(names: Sequence[str | Composition | None]) -> Parallel:
    known = isinstance(names, Sequence) and all(isinstance(name, str | Composition | None) for name in names)
    if isinstance(names, str) or not known:
        raise TypeError(f"fan_out: names must be a sequence of adapter names and None, got {names!r}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"fan_out: names must be one or more, and different, got {list(names)!r}")
    copies = parse_composition(Parallel(*names))
    if fusions_in(copies):
        raise ConfigError("fan_out: names must not hold Fuse, which says what trains and for how long; use set_active")
    return copies


class FanOut:
    """The model inside a `fan_out` block, which makes it.

    Attributes:
        model: the model.
        names: the names, in the order of the outputs.
        shared: qualified names of the blocks that ran for one name in place of all, once each time, since the last
            call began.
    """

    def __init__(self, model: nn.Module, names: tuple[str | Composition | None, ...]) -> None:
        self.model, self.names = model, names
        self.shared: list[str] = []

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str | Composition | None, Any]:
        """Run the model, and return its output for each name.

        Args:
            *args: as the model takes them. Tensors, and caches of keys and values, whose first dimension is that of
                the batch are for all names.
            **kwargs: likewise. `labels` are refused: a model would return the mean of its loss over all names.

        Raises:
            ValueError: `labels` are given, there is no batch, or an output has no row for each sequence.
        """
        batch, args, kwargs = self._repeated(args, kwargs)
        return self._divided(self.model(*args, **kwargs), batch)

    def generate(self, *args: Any, **kwargs: Any) -> dict[str | Composition | None, Any]:
        """Call `model.generate`, and return what it gives for each name; arguments and errors as in a call.

        The prompt runs once below the lowest adapted block; behind it the names go on with tokens of their own. Beams,
        and several sequences for a prompt, are as many for each name. Names that end early are padded.

        Raises:
            ValueError: hidden states or attentions are asked for, of which the prompt's have rows of their own.
        """
        for option in ("output_hidden_states", "output_attentions"):
            if kwargs.get(option):
                raise ValueError(f"fan_out: {option} must not be given to generate, call the model for them")
        batch, args, kwargs = self._repeated(args, kwargs)
        return self._divided(self.model.generate(*args, **kwargs), batch)

    def _repeated(self, args: tuple, kwargs: dict[str, Any]) -> tuple[int, tuple, dict[str, Any]]:
        """Return the number of sequences, and the arguments for all names."""
        if kwargs.get("labels") is not None:
            raise ValueError(
                "fan_out: labels must not be given, the loss would be a mean over all names; take it of the logits of "
                "each name"
            )
        self.shared.clear()
        return repeat_inputs(args, kwargs, len(self.names), "fan_out")

    def _divided(self, output: Any, batch: int) -> dict[str | Composition | None, Any]:
        if isinstance(output, Mapping) and (compared := [key for key in output if str(key).startswith("logits_per_")]):
            raise ValueError(
                f"fan_out: outputs must not compare the sequences of a batch with each other, as {compared[0]} does; "
                "fan out the part that encodes them"
            )

        def take(tensor: Tensor, number: int) -> Tensor:
            rows = tensor.shape[0] if tensor.dim() else 0
            if rows and rows % (batch * len(self.names)) == 0:
                return share_of_rows(tensor, number, len(self.names))
            if rows in (1, batch):  # it was noted inside a block that ran for one name, or is nobody's
                return tensor
            raise ValueError(
                f"fan_out: outputs must have rows for each of {batch} sequences and {len(self.names)} names, got shape "
                f"{tuple(tensor.shape)}"
            )

        return {
            name: map_tensors(output, partial(take, number=number), caches=True)
            for number, name in enumerate(self.names)
        }

    def hook_blocks(self) -> Iterator[RemovableHandle]:
        """Let blocks without an adapter of these names run for one where they can, and dropout before them act alike.

        Yields:
            The handles of the hooks.
        """
        modules = base_modules(self.model)
        blocks = find_blocks(modules)
        used = set(adapter_names_in(Parallel(*self.names)))
        for name in blocks:
            block = modules[name]
            if not any(hung.keys() & used for hung in switchable_modules(block)):
                run = _SharedRun(name, block, self)
                yield block.register_forward_pre_hook(run.cut, with_kwargs=True)
                # Before the hooks of those who note the outputs of blocks.
                yield block.register_forward_hook(run.repeat, with_kwargs=True, prepend=True)
        inside = {id(module) for name in blocks for module in modules[name].modules()}
        for module in modules.values():
            if isinstance(module, nn.Dropout) and id(module) not in inside:
                yield module.register_forward_hook(self._drop_alike)

    def _drop_alike(self, module: nn.Dropout, args: tuple, output: Tensor) -> Tensor | None:
        copies = len(self.names)
        if not module.training or output.shape[0] % copies or not are_replicas(args[:1], copies):
            return None
        return repeat_rows(share_of_rows(output, 0, copies), copies)


class _SharedRun:
    """The hooks of one block: cut what it receives to the rows of one name, and repeat what it returns."""

    def __init__(self, name: str, block: nn.Module, fan: FanOut) -> None:
        self.name, self.fan = name, fan
        self.entry = _entry_of(block)
        self.sizes: tuple[int, int] | None = None  # sequences and tokens, while the block runs for one name
        self.caches: list[Any] = []

    def cut(self, _block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Forward pre-hook: return the arguments of one name; None where the names differ, or may differ."""
        self.sizes, copies = None, len(self.fan.names)
        try:
            hidden_states = first_input(args, kwargs)
        except TypeError:
            return None
        rows = hidden_states.shape[0]
        others = list(leaves((args, kwargs)))
        caches = [leaf for leaf in others if _has_no_entry(leaf, self.entry)]
        tensors = [leaf for leaf in others if isinstance(leaf, Tensor)]
        batched = [tensor for tensor in tensors if tensor.dim() and tensor.shape[0] % rows == 0]
        if hidden_states.dim() < 3 or rows % copies or len(caches) + len(tensors) < len(others):
            return None
        if not are_replicas(batched, copies):
            return None
        chosen = set(map(id, batched))

        def take(tensor: Tensor) -> Tensor:
            return share_of_rows(tensor, 0, copies) if id(tensor) in chosen else tensor

        self.sizes, self.caches = (rows // copies, hidden_states.shape[1]), caches
        self.fan.shared.append(self.name)
        return map_tensors(args, take), map_tensors(kwargs, take)

    def repeat(self, _block: nn.Module, _args: tuple, _kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook: return the output for all names, and let what the block has cached serve all of them."""
        if self.sizes is None:
            return None
        (batch, tokens), copies = self.sizes, len(self.fan.names)

        def repeat(tensor: Tensor) -> Tensor:
            fits = tensor.dim() and tensor.shape[0] in (batch, batch * tokens)
            return repeat_rows(tensor, copies) if fits else tensor

        for cache in self.caches:
            cache.layers[self.entry] = map_tensors(cache.layers[self.entry], repeat, caches=True)
        self.sizes, self.caches = None, []
        return map_tensors(output, repeat)


def _entry_of(block: nn.Module) -> int | None:
    """Return the index of a block in caches; None where it has none, or several."""
    found = {module.layer_idx for module in block.modules() if isinstance(getattr(module, "layer_idx", None), int)}
    return found.pop() if len(found) == 1 else None


def _has_no_entry(value: Any, index: int | None) -> bool:
    """Tell whether a value is a cache that grows as it is filled, and that holds nothing yet at this index."""
    if index is None or not is_cache(value) or type(value).__name__ != "DynamicCache":
        return False
    entry = vars(value.layers[index]).values() if index < len(value.layers) else ()
    return not any(isinstance(item, Tensor) and item.dim() > 1 and item.numel() for item in entry)
