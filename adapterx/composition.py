"""Say which of the attached adapters take part in the forward pass, and in what order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from adapterx.errors import UnknownAdapterError
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
    """
    wanted = (names,) if isinstance(names, str) else tuple(names or ())
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
