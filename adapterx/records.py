"""What `attach` tells, and what it remembers: why each thing hangs where it does, and what must still be there."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from adapterx.compose.expression import Composition
from adapterx.config import AdapterConfig
from adapterx.serving import what_runs_where
from adapterx.targets import Target

# Plain attribute of the module that `attach` was called on: the book of what hangs in it.
_BOOK = "_adapterx_book"


@dataclass(frozen=True)
class Attachment:
    """One adapter of a model: what `attach` has done, and what `adapters` tells; print it.

    Attributes:
        name: the adapter's name.
        rule: how the modules were chosen, in words.
        config: the adapter's configuration.
        targets: the adapted modules.
        modules_to_save: the modules of which the adapter trains a copy.
        invertible: the modules at which its invertible adapter acts: the one that returns or receives the embeddings,
            and the head where there is one.
        composition: the active composition that the adapter takes part in; None where it is inactive.
        notes: in words, what was left out and why, and which adapters serve several places.
    """

    name: str
    rule: str
    config: AdapterConfig
    targets: tuple[Target, ...]
    modules_to_save: tuple[str, ...]
    invertible: tuple[str, ...] = ()
    composition: Composition | None = None
    notes: tuple[str, ...] = ()

    @property
    def blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that hold adapted modules."""
        return tuple(sorted({target.block for target in self.targets} - {None}))

    def __str__(self) -> str:
        lines = [f"adapter {self.name!r} on {len(self.targets)} modules, chosen by {self.rule}"]
        for target in self.targets:
            width = self.config.resolve_bottleneck_dim(target.hidden_size, target.block)
            source = f", reads the input of {target.input_module}" if target.input_module else ""
            sizes = f"{target.input_size} -> {width} -> {target.hidden_size}"
            lines.append(f"  {target.module} ({target.position}): {sizes}{source}")
        lines += [f"  {name}: trained copy" for name in self.modules_to_save]
        for name, side in zip(self.invertible, ("at the embeddings", "its inverse before the head"), strict=False):
            lines.append(f"  {name}: invertible adapter ({self.config.invertible}), {side}")
        lines += [f"  {words}" for words in what_runs_where(self.config)]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


class Book:
    """Where attachments that were called on one module have hung something: what was recorded must still be there.

    That module has it, and each `Place`. Base modules that someone replaces, such as a quantiser does, take with them
    what hangs on them; nothing else would tell.

    Attributes:
        hung: by qualified name of a base module and of its child that holds them: the names of adapters.
    """

    def __init__(self) -> None:
        self.hung: dict[tuple[str, str], set[str]] = {}

    def note(self, key: tuple[str, str], name: str) -> None:
        """Note that an adapter has hung something there."""
        self.hung.setdefault(key, set()).add(name)

    def strike(self, key: tuple[str, str], name: str) -> None:
        """Note that it is taken off."""
        names = self.hung.get(key, set())
        names.discard(name)
        if not names:
            self.hung.pop(key, None)

    def forget(self, name: str) -> None:
        """Note that the adapter is taken off, or lost, everywhere."""
        for key in list(self.hung):
            self.strike(key, name)

    def rename(self, old: str, new: str) -> None:
        """Note that the adapter has another name."""
        for names in self.hung.values():
            if old in names:
                names.remove(old)
                names.add(new)


class Place(NamedTuple):
    """Why something hangs on a module: the attachment, and the target there (None but for a bottleneck adapter)."""

    attachment: Attachment
    module: str
    target: Target | None
    book: Book


def book_of(module: nn.Module) -> Book | None:
    """Return what attachments that were called on this very module have recorded."""
    return vars(module).get(_BOOK)


def open_book(module: nn.Module) -> Book:
    """Return the module's book, a new one if it has none."""
    book = getattr(module, _BOOK, None)  # a wrapper, as torch.compile makes one, hands attributes on
    if book is None:
        setattr(module, _BOOK, book := Book())
    return book


def close_book(module: nn.Module) -> None:
    """Let the module have no book."""
    vars(module).pop(_BOOK, None)
