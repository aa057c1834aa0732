"""Say which of the attached adapters take part in the forward pass, and in what order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from adapterx.errors import UnknownAdapterError
from adapterx.mixing import MixedBatch
from adapterx.modules import SwitchableModules


def switchable_modules(model: nn.Module) -> list[SwitchableModules]:
    """Return everything that adapterx has hung on the model, in the model's order."""
    return [module for module in model.modules() if isinstance(module, SwitchableModules)]


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all adapters in the model, active or not, in order of attachment per module."""
    return tuple(dict.fromkeys(name for switchable in switchable_modules(model) for name in switchable))


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the active adapters in order of application; a `disabled` block does not change them."""
    return tuple(dict.fromkeys(name for switchable in switchable_modules(model) for name in switchable.active))


def set_active(model: nn.Module, names: str | Sequence[str] | None) -> None:
    """Make these adapters, and no others, take part in the forward pass and in training.

    Args:
        model: any module that encloses the adapted ones.
        names: one name; several, which are stacked in this order behind each module (of several trained copies of a
            module the last one answers); or None for the base model alone.

    Raises:
        UnknownAdapterError: a name is not attached.
        ValueError: a name is repeated.
        RuntimeError: the model is inside a `mixed` block.
    """
    wanted = (names,) if isinstance(names, str) else tuple(names or ())
    check_not_mixed(model, function="set_active")
    check_known(model, wanted, function="set_active")
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"set_active: names must not repeat, got {list(wanted)}")
    for switchable in switchable_modules(model):
        switchable.active = wanted
        for name, module in switchable.items():
            module.requires_grad_(name in wanted)


def check_known(model: nn.Module, names: Sequence[str], *, function: str) -> None:
    """Raise UnknownAdapterError unless all names are attached."""
    known = adapter_names(model)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UnknownAdapterError(
            f"{function}: name must be an attached adapter, got {', '.join(map(repr, unknown))}; "
            f"attached are {', '.join(map(repr, sorted(known))) or 'none'}"
        )


def check_not_mixed(model: nn.Module, *, function: str) -> None:
    """Raise RuntimeError if a `mixed` block is open on the model or a part of it."""
    if any(switchable.mixture is not None for switchable in switchable_modules(model)):
        raise RuntimeError(
            f"{function}: model must not be inside a `mixed` block, which says which adapters take part until it ends"
        )


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Run the base model alone inside the `with` block; blocks nest, and an exception ends them too."""
    for switchable in switchable_modules(model):
        switchable.disabled_depth += 1
    try:
        yield model
    finally:
        for switchable in switchable_modules(model):
            switchable.disabled_depth = max(0, switchable.disabled_depth - 1)


@contextmanager
def mixed(model: nn.Module, names: Sequence[str | None]) -> Iterator[nn.Module]:
    """Adapt each sequence of a batch by an adapter of its own inside the `with` block.

    Each adapted module calls the grouped operator once for all adapters that share placement and activation, whatever
    their bottleneck, scaling, biases and dropout. The result is that of running each sequence alone with
    `set_active(model, name)`; a trained copy of a module (`modules_to_save`) answers for the sequences of its adapter.

    The named adapters, and no others, take part in training; `backward()` belongs inside the block. Without gradients
    their weights are stacked once and kept until the block ends; parameters may be changed in place meanwhile, but not
    through `parameter.data`, which hides the change. A `mixed` block inside replaces this one until it ends, and
    `disabled` shows the base model. At the end everything is as before, after an exception too. The block belongs to
    the model, not to the thread: threads that need different names at one time need models of their own.

    Args:
        model: any module that encloses the adapted ones.
        names: for each sequence of the batch the name of an attached adapter, or None for the base model alone. Where
            `generate` expands the batch (beams, several sequences per prompt), one entry per expanded row.

    Yields:
        The model. Its adapted modules must see the batch as the first dimension, or as a matrix with equally many
        consecutive rows per sequence.

    Raises:
        TypeError: `names` is not a sequence of strings and None.
        UnknownAdapterError: a name is not attached.
        ValueError: `names` is empty; in a forward pass: a shape does not fit the number of names.
        RuntimeError: in a backward pass after the block: gradients would be lost.
    """
    batch = MixedBatch(_checked_names(names))
    check_known(model, [name for name in batch.names if name is not None], function="mixed")
    modules = [(path, module) for path, module in model.named_modules() if isinstance(module, SwitchableModules)]
    former = [module.mixture for _, module in modules]
    steps = register_optimizer_step_post_hook(batch.note_optimizer_step)
    try:
        with _trained_by(batch, [module for _, module in modules]):
            for path, module in modules:
                module.start_mixture(batch, path.rpartition(".")[0] or type(model).__name__)
            yield model
    finally:
        steps.remove()
        for (_, module), mixture in zip(modules, former, strict=True):
            module.mixture = mixture


def _checked_names(names: Sequence[str | None]) -> Sequence[str | None]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"mixed: names must be a sequence of adapter names and None, got {names!r}")
    strangers = [name for name in names if name is not None and not isinstance(name, str)]
    if strangers:
        raise TypeError(f"mixed: names must hold strings and None, got {strangers[0]!r} among them")
    if not names:
        raise ValueError("mixed: names must have one entry for each sequence of the batch, got none")
    return names


@contextmanager
def _trained_by(batch: MixedBatch, switchables: Sequence[SwitchableModules]) -> Iterator[None]:
    """Let the parameters of the picked adapters, and of no others, require gradients; give all flags back."""
    children = [(name, child) for switchable in switchables for name, child in switchable.items()]
    former = [(p, p.requires_grad, name in batch.names) for name, child in children for p in child.parameters()]
    try:
        for parameter, _, wanted in former:
            parameter.requires_grad_(wanted)
        yield
    finally:
        batch.refrozen = [parameter for parameter, flag, _ in former if parameter.requires_grad and not flag]
        for parameter, flag, _ in former:
            parameter.requires_grad_(flag)
