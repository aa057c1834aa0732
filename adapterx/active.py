"""Say which of the attached adapters take part in the forward pass, and how: for good, or inside a `with` block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from adapterx.adapters import check_known, check_whole
from adapterx.compose import Composition, Pick, Stack, adapter_names_in, parse_composition
from adapterx.compose.batch import MixedBatch
from adapterx.compose.expression import keep_names
from adapterx.compose.program import check_runnable
from adapterx.errors import speaker, speaking_as
from adapterx.host import Override, SwitchableModules, switchable_modules

# Plain attribute of the module that adapters were last switched on: the composition of all modules inside it. What is
# attached later, below it, takes it over from the nearest one.
_COMPOSITION = "_adapterx_composition"
# What is open on any model, the innermost last: what is attached meanwhile, even to a bare model, belongs to it.
_OVERRIDES: list[Override] = []


def set_active(model: nn.Module, names: str | Sequence[str | Composition] | Composition | None) -> None:
    """Make these adapters, and no others, take part in the forward pass and in training.

    Args:
        model: any module that encloses the adapted ones.
        names: one name; several, which are stacked in this order behind each module (of several trained copies of a
            module the last one answers); a composition, such as `Average("a", Stack("b", "c"))`; or None for the base
            model alone.

    Raises:
        UnknownAdapterError: a name is not attached.
        ConfigError: a name is repeated, `names` is none of the above, or adapters would not run in the order given.
        NotImplementedError: the composition cannot be run.
        TargetError: base modules that were adapted have been replaced, and their adapters with them.
        RuntimeError: the model is inside a `mixed` block.
    """
    with speaking_as("set_active"):
        check_not_mixed(model)
        switchables = check_whole(model)
        composition = parse_composition(names)
        wanted = adapter_names_in(composition)
        if not set(wanted) <= {name for switchable in switchables for name in switchable}:
            check_known(model, wanted)
        check_runnable(composition, _sublayers(switchables))
    _remember(model, composition)
    for switchable in switchables:
        switchable.change_route(composition=composition)
        for name, module in switchable.items():
            module.requires_grad_(name in wanted)


def _sublayers(switchables: Sequence[SwitchableModules]) -> dict[str, dict[tuple[int, str], str]]:
    """Return by adapter name what its ports read, by block and position, where both are known."""
    found: dict[str, dict[tuple[int, str], str]] = {}
    for switchable in switchables:
        for name, place in switchable.places.items():
            read, target = found.setdefault(name, {}), place.target
            if target is not None and target.block is not None and target.position != "named":
                read[target.block, target.position] = target.port.reads
    return found


def take_over(model: nn.Module, added: Sequence[SwitchableModules]) -> None:
    """Let what is new in the model follow the compositions and the overrides around it.

    Args:
        model: what `attach` was called on.
        added: what hangs there newly.
    """
    overrides = [(override, set(map(id, override.model.modules()))) for override in _OVERRIDES]
    for switchable in added:
        chain = [model]
        for part in switchable.where.split(".") if switchable.where else ():
            chain.append(chain[-1]._modules[part])
        nearest = next((module for module in reversed(chain) if _COMPOSITION in vars(module)), None)
        around = tuple(override for override, inside in overrides if id(chain[-1]) in inside)
        composition = Stack() if nearest is None else vars(nearest)[_COMPOSITION]
        for override in around:
            override.switchables.append(switchable)
        switchable.change_route(composition=composition, overrides=around)


def keep_compositions(model: nn.Module, names: Sequence[str]) -> None:
    """Take all adapters but these out of the compositions in the model.

    A name that is attached no more, here or in a part that has been taken out, must not come alive with its namesake.
    """
    for module in model.modules():
        if _COMPOSITION in vars(module):
            composition = keep_names(vars(module)[_COMPOSITION], names)
            if composition.parts:
                setattr(module, _COMPOSITION, composition)
            else:
                delattr(module, _COMPOSITION)
        if isinstance(module, SwitchableModules):
            module.change_route(composition=keep_names(module.route.composition, names))


def _remember(model: nn.Module, composition: Composition) -> None:
    """Note the composition on the model, in place of those of its parts."""
    for module in model.modules():
        vars(module).pop(_COMPOSITION, None)
    if composition.parts:
        setattr(model, _COMPOSITION, composition)


def check_not_mixed(model: nn.Module) -> None:
    """Raise RuntimeError if a `mixed` block is open on the model, a part of it, or what encloses it."""
    own = None
    for override in _OVERRIDES:
        if override.batch is None:
            continue
        own = own or set(map(id, model.modules()))
        if any(id(module) in own for module in override.model.modules()):
            raise RuntimeError(
                f"{speaker()}: model must not be inside a `mixed` block, which says which adapters take part until "
                "it ends"
            )


@contextmanager
def _open(override: Override) -> Iterator[None]:
    """Let an override reach everything that hangs on its model, and what is hung there meanwhile."""
    _OVERRIDES.append(override)
    try:
        for switchable in switchable_modules(override.model):
            override.switchables.append(switchable)
            switchable.change_route(overrides=(*switchable.route.overrides, override))
        yield
    finally:
        _OVERRIDES.remove(override)
        trained = override.trained()
        for switchable in override.switchables:  # not the model's: a part may have been taken out meanwhile
            others = tuple(other for other in switchable.route.overrides if other is not override)
            switchable.change_route(overrides=others)
        if override.batch is not None:
            override.batch.refrozen = [parameter for parameter in trained if not parameter.requires_grad]


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Run the base model alone inside the `with` block; blocks nest, and an exception ends them too.

    What is attached inside takes part after the block. A copy of the model that is taken inside is not disabled.

    Args:
        model: any module that encloses the adapted ones.

    Yields:
        The model.
    """
    with _open(Override(model)):
        yield model


@contextmanager
def mixed(model: nn.Module, names: Sequence[str | None]) -> Iterator[nn.Module]:
    """Adapt each sequence of a batch by an adapter of its own inside the `with` block.

    Each adapted module calls the operator once for all adapters that share placement and activation, whatever
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
    with speaking_as("mixed"):
        batch = MixedBatch(Pick(names))
        check_known(model, adapter_names_in(batch.pick))
    with picked(model, batch):
        yield model


@contextmanager
def picked(model: nn.Module, batch: MixedBatch) -> Iterator[None]:
    """Let the adapters that a batch picks, and no others, run and train inside the `with` block."""
    steps = register_optimizer_step_post_hook(batch.note_optimizer_step)
    try:
        with _open(Override(model, batch)):
            yield
    finally:
        steps.remove()
