"""Say which adapters serve a model in more than one place: modules that it calls again, and weights that it ties."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import nn

from adapterx.targets.sizes import own_children


class _Named(Protocol):
    module: str


def shared_modules(modules: Mapping[str, nn.Module], targets: Sequence[_Named]) -> tuple[str, ...]:
    """Return in words where one adapter serves several places, and where tied modules have an adapter each.

    Args:
        modules: qualified name to module, the model itself under `""`.
        targets: what adapters hang on, each with its qualified name in `module`.
    """
    chosen = {modules[target.module]: target.module for target in targets}
    places: dict[str, list[str]] = {}
    for name, module in _everywhere(modules[""], ""):
        if module in chosen:
            places.setdefault(chosen[module], []).append(name)
    notes = [
        f"{name} is one module in {len(names)} places, its adapter serves all: {', '.join(names[:6])}"
        + (" ..." if len(names) > 6 else "")
        for name, names in places.items()
        if len(names) > 1
    ]
    return (*notes, *_repeated(modules, targets), *_tied(chosen))


def _everywhere(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield every place of every module by name, without what earlier attachments have hung there."""
    yield name, module
    for key, child in own_children(module).items():
        yield from _everywhere(child, f"{name}.{key}" if name else key)


def _repeated(modules: Mapping[str, nn.Module], targets: Sequence[_Named]) -> list[str]:
    """ALBERT runs each group of blocks for several layers."""
    notes = []
    for name, module in modules.items():
        config = getattr(module, "config", None)
        groups, layers = getattr(config, "num_hidden_groups", None), getattr(config, "num_hidden_layers", None)
        runs_groups = any(type(child).__name__.endswith("LayerGroup") for child in _elements(module))
        if isinstance(groups, int) and isinstance(layers, int) and runs_groups and layers > groups:
            notes.append(
                f"{name or 'the model'} runs {groups} group{'s' if groups > 1 else ''} of blocks for {layers} layers: "
                f"each adapter serves {layers / groups:g} of them"
            )
    return notes


def _elements(module: nn.Module) -> list[nn.Module]:
    return [element for child in module.children() if isinstance(child, nn.ModuleList) for element in child]


def _tied(chosen: Mapping[nn.Module, str]) -> list[str]:
    owners: dict[int, list[str]] = {}
    for module, name in chosen.items():
        weight = module._parameters.get("weight")
        if weight is not None and not weight.is_meta:
            owners.setdefault(id(weight), []).append(name)
    return [f"{', '.join(names)} have one weight and an adapter each" for names in owners.values() if len(names) > 1]
