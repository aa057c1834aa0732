"""Ask a model about its adapters: which there are, which are active, what they look like, how large they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from torch import nn

from adapterx.compose import Composition, Stack, adapter_names_in
from adapterx.couplings import Couplings
from adapterx.errors import TargetError, UnknownAdapterError, speaker, speaking_as
from adapterx.fusion import FusionSet
from adapterx.host import COPIES, ModuleCopies, base_modules, switchable_modules, walk
from adapterx.records import Attachment, Book, book_of
from adapterx.route import SwitchableModules
from adapterx.targets import Target


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all adapters in the model, active or not, in order of attachment per module."""
    return tuple(dict.fromkeys(name for switchable in switchable_modules(model) for name in switchable))


def is_attached(model: nn.Module, name: str) -> bool:
    """Tell whether the model has an adapter of this name."""
    return any(name in switchable for switchable in switchable_modules(model))


def recorded_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all adapters in the model, and of those that were attached to it and have vanished."""
    recorded = (name for book in books_in(model) for names in book.hung.values() for name in sorted(names))
    return tuple(dict.fromkeys([*adapter_names(model), *recorded]))


def is_recorded(model: nn.Module, name: str) -> bool:
    """Tell whether the model has an adapter of this name, or had one that was attached to it and has vanished."""
    vanished = any(name in names for book in books_in(model) for names in book.hung.values())
    return vanished or is_attached(model, name)


def books_in(model: nn.Module) -> list[Book]:
    """Return what attachments have recorded on the modules of the model."""
    return [book for module in base_modules(model).values() if (book := book_of(module)) is not None]


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the active adapters in order of application; a `disabled` block does not change them."""
    compositions = [switchable.route.composition for switchable in switchable_modules(model)]
    return tuple(dict.fromkeys(name for composition in compositions for name in adapter_names_in(composition)))


def active_composition(model: nn.Module) -> Composition:
    """Return the composition that runs now: `Stack()` inside a `disabled` block, or where there is none.

    Where parts of the model were switched apart, it is the composition of the first part.
    """
    first = next(iter(switchable_modules(model)), None)
    return Stack() if first is None else first.route.in_effect()[0]


def adapters(model: nn.Module) -> dict[str, Attachment]:
    """Return what `attach` has put into the model, by adapter name.

    Args:
        model: any module that encloses adapted ones, or a part of the model; names are relative to it.

    Returns:
        For each adapter its configuration, targets, rule, blocks, trained copies, and the active composition that it
        takes part in.

    Raises:
        TargetError: base modules that were adapted have been replaced, and their adapters with them.
    """
    with speaking_as("adapters"):
        check_whole(model)
    found: dict[str, tuple[Attachment, list[Target], list[str], list[str]]] = {}
    for path, switchable in walk(model):
        if not isinstance(switchable, SwitchableModules):
            continue
        base, composition = path.rpartition(".")[0], switchable.route.composition
        active = adapter_names_in(composition)
        for name, place in switchable.places.items():
            if name not in found:
                attachment = replace(place.attachment, composition=composition if name in active else None)
                found[name] = (attachment, [], [], [])
            _, targets, copies, ends = found[name]
            if isinstance(switchable, Couplings):
                ends.insert(len(ends) if switchable.inverse else 0, base)
            elif place.target is None:
                copies.append(base)
            else:
                targets.append(place.target.renamed(*_prefixes(place.module, base)))
    return {
        name: replace(attachment, targets=tuple(targets), modules_to_save=tuple(copies), invertible=tuple(ends))
        for name, (attachment, targets, copies, ends) in found.items()
    }


def _prefixes(name: str, path: str) -> tuple[str, str]:
    """Return what to take off `name`, and what to put on, for a name that is `path` where it is asked for."""
    if name.endswith(path):
        return name[: len(name) - len(path)], ""
    return "", path[: len(path) - len(name)]


def adapter_parameters(model: nn.Module, name: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the qualified names and parameters of one adapter, trained copies included, or of all, each once.

    Args:
        model: any module that encloses adapted ones.
        name: which adapter; None takes all.

    Raises:
        UnknownAdapterError: the adapter is not attached.
    """
    if name is not None:
        with speaking_as("adapter_parameters"):
            check_known(model, [name])
    seen: set[int] = set()
    for path, module in walk(model):
        if isinstance(module, SwitchableModules):
            for key, child in module.items():
                if name is None or key == name:
                    for parameter_name, parameter in child.named_parameters():
                        if id(parameter) in seen:  # modules may share some
                            continue
                        seen.add(id(parameter))
                        yield ".".join(filter(None, (path, key, parameter_name))), parameter


def check_known(model: nn.Module, names: Sequence[str]) -> None:
    """Raise UnknownAdapterError unless all names are attached."""
    switchables = switchable_modules(model)
    unknown = sorted(name for name in set(names) if not any(name in switchable for switchable in switchables))
    if unknown:
        check_whole(model)  # it may have been lost, which is the better answer
        known = sorted(adapter_names(model))
        shown = ", ".join(map(repr, known[:20])) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        raise UnknownAdapterError(
            f"{speaker()}: name must be an attached adapter, got {', '.join(map(repr, unknown))}; "
            f"attached are {shown or 'none'}"
        )


def check_whole(model: nn.Module) -> list[SwitchableModules]:
    """Return everything that adapterx has hung on the model, in the model's order.

    Raises:
        TargetError: some of what `attach` has hung there is gone, or does not fit its module any more.
    """
    switchables: list[SwitchableModules] = []
    books: list[Book] = []
    copied: list[nn.Module] = []
    for _, module in walk(model):  # once: switching asks each time
        if (book := book_of(module)) is not None:
            books.append(book)
        if COPIES in module._modules:
            copied.append(module)
        if isinstance(module, SwitchableModules):
            switchables.append(module)
    found = {
        (book, where, switchable.child): count
        for switchable in switchables
        for (book, where), count in switchable.counts().items()
    }
    for book in books:
        if any(found.get((book, *key)) != len(names) for key, names in book.hung.items()):
            _refuse_losses(book, switchables)
    for base in copied if books else ():
        _check_sizes(base)
    return switchables


def _refuse_losses(book: Book, switchables: Sequence[SwitchableModules]) -> None:
    """Raise TargetError about the adapters that hang no more where the book says."""
    found = {
        (place.module, switchable.child, name)
        for switchable in switchables
        for name, place in switchable.places.items()
        if place.book is book
    }
    lost: dict[str, set[str]] = {}
    for (where, child), names in book.hung.items():
        for name in names:
            if (where, child, name) not in found:
                lost.setdefault(name, set()).add(where)
    for name, modules in sorted(lost.items()):
        wheres = sorted(modules)
        shown = ", ".join(wheres[:4]) + (f" and {len(wheres) - 4} more" if len(wheres) > 4 else "")
        raise TargetError(
            f"{speaker()}: model must keep the modules that adapter {name!r} hangs on, {shown} "
            f"{'was' if len(wheres) == 1 else 'were'} replaced or taken out after `attach`, and what was trained "
            "there with it; resize, prune and quantise before attaching, or detach the adapter first"
        )


def _check_sizes(base: nn.Module) -> None:
    """Raise TargetError if a base module was resized in place and its trained copies were not."""
    copies: ModuleCopies = base._modules[COPIES]
    sizes = {
        f"{path}.{key}" if path else key: tuple(own.shape)
        for path, module in base_modules(base).items()
        for key, own in module.named_parameters(recurse=False)
        if own.is_floating_point()
    }
    if sizes == copies.sizes:
        return
    for name, copied in copies.items():
        for key, parameter in copied.named_parameters():
            if sizes.get(key, tuple(parameter.shape)) != tuple(parameter.shape):
                raise TargetError(
                    f"{speaker()}: model must keep the sizes of modules that have trained copies, "
                    f"{copies.where}.{key} is {sizes[key]} now and {tuple(parameter.shape)} "
                    f"in adapter {name!r}; resize before attaching, or detach the adapter first"
                )
    copies.sizes = sizes


@dataclass(frozen=True)
class Summary:
    """Numbers of parameters; print it.

    Attributes:
        trainable: elements that require gradients.
        trainable_adapters: those of them in adapters, trained copies and fusions.
        trainable_other: those of them elsewhere, such as in a head outside the adapted model.
        total: all elements, adapters included.
        adapter_mebibytes: memory of the tensors of all adapters, active or not, in MiB.
    """

    trainable: int
    trainable_adapters: int
    trainable_other: int
    total: int
    adapter_mebibytes: float

    @property
    def percent(self) -> float:
        """Share of the trainable elements in all, in percent."""
        return 100.0 * self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return (
            f"{self.trainable:,} of {self.total:,} parameters are trainable ({self.percent:.2f} %): "
            f"{self.trainable_adapters:,} in adapters, {self.trainable_other:,} elsewhere; "
            f"the adapters take {self.adapter_mebibytes:.2f} MiB"
        )


def summary(model: nn.Module) -> Summary:
    """Count the parameters of the model, each once.

    Returns:
        How many there are, how many train, and what the adapters take; print it.

    Raises:
        TargetError: base modules that were adapted have been replaced, and their adapters with them.
    """
    with speaking_as("summary"):
        check_whole(model)
    fused = (parameter for _, hung in walk(model) if isinstance(hung, FusionSet) for parameter in hung.parameters())
    in_adapters = {id(parameter): parameter for parameter in (*(p for _, p in adapter_parameters(model)), *fused)}
    everything = {id(parameter): parameter for parameter in model.parameters()}
    trainable = sum(p.numel() for p in everything.values() if p.requires_grad)
    adapters = sum(p.numel() for p in in_adapters.values() if p.requires_grad)
    size = sum(p.numel() * p.element_size() for p in in_adapters.values())
    total = sum(p.numel() for p in everything.values())
    return Summary(trainable, adapters, trainable - adapters, total, size / 2**20)


def merge_adapter(model: nn.Module, name: str | None = None) -> NoReturn:
    """Refuse, because it cannot be done.

    Args:
        model: any.
        name: any.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "merge_adapter: a bottleneck adapter cannot be merged into the base weights: between down_proj and up_proj "
        "stands a non-linear activation, and no single matrix computes that; export the model with its adapters instead"
    )
