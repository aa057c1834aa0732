"""Say which of the attached adapters take part in the forward pass, and how: for good, or inside a `with` block."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from adapterx.adapters import check_known, check_whole
from adapterx.compose import BatchSplit, Composition, Parallel, Stack, adapter_names_in, parse_composition
from adapterx.compose.batch import Shared
from adapterx.compose.naming import copies_in, fusions_in, keep_names, renamed, trained_names
from adapterx.compose.nesting import check_runnable
from adapterx.compose.parse import batch_of
from adapterx.errors import ConfigError, speaker, speaking_as
from adapterx.facts import facts_of
from adapterx.fusion import FusionSet
from adapterx.host import base_modules, switchable_modules, walk
from adapterx.repeating import follow_composition
from adapterx.route import Override, SwitchableModules
from adapterx.sharding import check_agreed

# Plain attribute of the module that adapters were last switched on: the composition of all modules inside it, and the
# blocks left out. What is attached later, below it, takes them over from the nearest one.
_COMPOSITION = "_adapterx_composition"
# What is open on any model, the innermost last: what is attached meanwhile, even to a bare model, belongs to it.
_OVERRIDES: list[Override] = []


def set_active(
    model: nn.Module,
    names: str | Sequence[str | Composition] | Composition | None,
    *,
    skip_layers: Collection[int] = (),
    train_fused: bool = False,
) -> None:
    """Make these adapters, and no others, take part in the forward pass and in training.

    Args:
        model: any module that encloses the adapted ones.
        names: one name; several, which are stacked in this order behind each module (of several trained copies of a
            module the last one answers); a composition, such as `Average("a", Stack("b", "c"))`; or None for the base
            model alone.
        skip_layers: indices of the blocks whose adapters are left out, as `skip_layers` does for a while.
        train_fused: whether adapters inside `Fuse` train too, and not the fusion alone.

    Raises:
        UnknownAdapterError: a name is not attached.
        ConfigError: a name is repeated, `names` is none of the above, a composition may not stand where it stands, a
            fusion has not been added, `skip_layers` holds no block indices, or adapters would not run in the order
            given.
        TargetError: base modules that were adapted have been replaced, and their adapters with them.
        RuntimeError: the model is inside a `mixed` block.
    """
    with speaking_as("set_active"):
        check_not_mixed(model)
        switchables = check_whole(model)
        composition = parse_composition(names)
        skipped = block_indices(skip_layers)
        wanted = adapter_names_in(composition)
        if not all(any(name in switchable for switchable in switchables) for name in wanted):
            check_known(model, wanted)
        check_runnable(composition, facts_of(model, wanted))
    _remember(model, composition, skipped)
    shared = Shared(repeated=copies_in(composition) > 0)
    trained = trained_names(composition, train_fused=train_fused)
    for switchable in switchables:
        switchable.change_route(composition=composition, skipped=skipped, shared=shared)
        switchable.train_only(trained)
    fused = {fuse.key for fuse in fusions_in(composition)}
    for _, module in walk(model):
        if isinstance(module, FusionSet):
            for key, fusion in module.items():
                fusion.requires_grad_(key in fused)


def block_indices(values: Collection[int]) -> frozenset[int]:
    """Return the indices of blocks that a user gave.

    Raises:
        ConfigError: they are none.
    """
    indices = () if isinstance(values, str) or not isinstance(values, Collection) else tuple(values)
    whole = all(isinstance(index, int) and not isinstance(index, bool) and index >= 0 for index in indices)
    if not whole or not isinstance(values, Collection) or isinstance(values, str):
        raise ConfigError(f"{speaker()}: layers must be block indices from 0 up, got {values!r}")
    return frozenset(indices)


def take_over(model: nn.Module, added: Sequence[SwitchableModules]) -> None:
    """Let what is new in the model follow the compositions and the overrides around it.

    Args:
        model: what `attach` was called on.
        added: what hangs there newly.
    """
    overrides = [(override, set(map(id, base_modules(override.model).values()))) for override in _OVERRIDES]
    for switchable in added:
        chain = [model]
        for part in switchable.where.split(".") if switchable.where else ():
            chain.append(chain[-1]._modules[part])
        nearest = next((module for module in reversed(chain) if _COMPOSITION in vars(module)), None)
        around = tuple(override for override, inside in overrides if id(chain[-1]) in inside)
        composition, skipped = (Stack(), frozenset()) if nearest is None else vars(nearest)[_COMPOSITION]
        for override in around:
            override.switchables.append(switchable)
        switchable.change_route(composition=composition, skipped=skipped, overrides=around)


def keep_compositions(model: nn.Module, names: Sequence[str] | None = None) -> None:
    """Take all adapters but these out of the compositions in the model; None keeps those that are attached to it.

    A name that is attached no more, here or in a part that has been taken out, must not come alive with its namesake.
    """
    modules = walk(model)
    switchables = [module for _, module in modules if isinstance(module, SwitchableModules)]

    def kept(composition: Composition) -> Composition:
        used = adapter_names_in(composition)
        here = names if names is not None else [n for n in used if any(n in each for each in switchables)]
        return keep_names(composition, here)

    for _, module in modules:
        if _COMPOSITION in vars(module):
            before, skipped = vars(module)[_COMPOSITION]
            if (composition := kept(before)).parts:
                setattr(module, _COMPOSITION, (composition, skipped))
            else:
                delattr(module, _COMPOSITION)
            follow_composition(module, composition)
    for switchable in switchables:
        if (composition := kept(switchable.route.composition)) != switchable.route.composition:
            switchable.change_route(composition=composition)


def rename_in_compositions(model: nn.Module, old: str, new: str) -> None:
    """Put another name into the compositions in the model."""
    for _, module in walk(model):
        if _COMPOSITION in vars(module):
            composition, skipped = vars(module)[_COMPOSITION]
            composition = renamed(composition, old, new)
            setattr(module, _COMPOSITION, (composition, skipped))
            follow_composition(module, composition)
        if isinstance(module, SwitchableModules) and old in adapter_names_in(module.route.composition):
            module.change_route(composition=renamed(module.route.composition, old, new))


def _remember(model: nn.Module, composition: Composition, skipped: frozenset[int]) -> None:
    """Note the composition on the model, in place of those of its parts."""
    for _, module in walk(model):
        if vars(module).pop(_COMPOSITION, None) is not None:
            follow_composition(module, None)
    if composition.parts:
        setattr(model, _COMPOSITION, (composition, skipped))
        follow_composition(model, composition)


def check_not_mixed(model: nn.Module) -> None:
    """Raise RuntimeError if a `mixed` block is open on the model, a part of it, or what encloses it."""
    own = None
    for override in _OVERRIDES:
        if override.composition is None:
            continue
        own = own or set(map(id, base_modules(model).values()))
        if any(id(module) in own for module in base_modules(override.model).values()):
            raise RuntimeError(
                f"{speaker()}: model must not be inside a `mixed` block, which says which adapters take part until "
                "it ends"
            )


@contextmanager
def _open(override: Override) -> Iterator[None]:
    """Let an override reach everything that hangs on its model, and what is hung there meanwhile."""
    _OVERRIDES.append(override)
    try:
        switchables = switchable_modules(override.model)
        for switchable in switchables if override.composition is not None else ():
            switchable.note_flags(override.names)
        for switchable in switchables:
            override.switchables.append(switchable)
            switchable.change_route(overrides=(*switchable.route.overrides, override))
        yield
    finally:
        _OVERRIDES.remove(override)
        trained = override.trained()
        for switchable in override.switchables:  # not the model's: a part may have been taken out meanwhile
            others = tuple(other for other in switchable.route.overrides if other is not override)
            switchable.change_route(overrides=others)
        if override.shared is not None:
            override.shared.refrozen = [parameter for parameter in trained if not parameter.requires_grad]


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
def skip_layers(model: nn.Module, layers: Collection[int]) -> Iterator[nn.Module]:
    """Leave the adapters of some blocks out inside the `with` block (AdapterDrop); they are as if not attached there.

    Without the adapters of the lowest blocks a backward pass ends above these. Trained copies of modules still answer.
    Blocks nest, and leave out what any of them names.

    Args:
        model: any module that encloses the adapted ones.
        layers: indices of blocks, from 0; those that the model does not have are of no effect.

    Yields:
        The model.

    Raises:
        ConfigError: `layers` holds other things than block indices.

    Source:
        Rücklé et al. 2021 (AdapterDrop).
    """
    with speaking_as("skip_layers"):
        skipped = block_indices(layers)
    with _open(Override(model, skipped=skipped)):
        yield model


@contextmanager
def mixed(model: nn.Module, names: Sequence[str | Composition | None]) -> Iterator[nn.Module]:
    """Adapt each sequence of a batch by an adapter of its own inside the `with` block.

    Inside the composition is `BatchSplit(*names)`: one sequence for each entry. Each adapted module calls the operator
    once for all adapters that share placement and activation, whatever their bottleneck, scaling, biases and dropout.
    The result is that of running each sequence alone with `set_active(model, name)`; a trained copy of a module
    (`modules_to_save`) answers for the sequences of its adapter.

    The named adapters, and no others, take part in training; `backward()` belongs inside the block. Without gradients
    their weights are stacked once and kept until the block ends; parameters may be changed in place meanwhile, but not
    through `parameter.data`, which hides the change. A `mixed` block inside replaces this one until it ends, and
    `disabled` shows the base model. At the end everything is as before, after an exception too. The block belongs to
    the model, not to the thread: threads that need different names at one time need models of their own.

    Args:
        model: any module that encloses the adapted ones.
        names: for each sequence of the batch the name of an attached adapter, a composition of such, or None for the
            base model alone. Where `generate` expands the batch (beams, several sequences per prompt), one entry per
            expanded row.

    Yields:
        The model. Its adapted modules must see the batch as the first dimension, or as a matrix with equally many
        consecutive rows per sequence.

    Raises:
        TypeError: `names` is not a sequence of names, compositions and None.
        UnknownAdapterError: a name is not attached.
        ConfigError: a composition cannot stand there, or processes that share the model by FSDP2 name other adapters.
        ValueError: `names` is empty; in a forward pass: a shape does not fit the number of names.
        RuntimeError: in a backward pass after the block: gradients would be lost.
    """
    with speaking_as("mixed"):
        composition = batch_of(names)
        check_fits(model, composition)
    with picked(model, composition, Shared("mixed", in_block=True)):
        yield model


def check_fits(model: nn.Module, composition: Composition) -> None:
    """Raise UnknownAdapterError or ConfigError unless the model can run a composition."""
    used = adapter_names_in(composition)
    check_known(model, used)
    check_agreed(model, used)
    check_runnable(composition, facts_of(model, used))


@contextmanager
def picked(model: nn.Module, composition: BatchSplit | Parallel, shared: Shared) -> Iterator[None]:
    """Let the adapters that a batch picks, and no others, run and train inside the `with` block."""
    with _open(Override(model, composition, shared)):
        yield
