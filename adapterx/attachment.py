"""Hang adapters on a model, take them off again, and count them. The base modules keep class, place and keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import nn

from adapterx.composition import adapter_names, check_known, check_not_mixed
from adapterx.config import AdapterConfig
from adapterx.errors import UnknownAdapterError
from adapterx.modules import SwitchableModules
from adapterx.plan import Attachment, plan_attachment, remove_adapters, unfreeze


def attach(
    model: nn.Module, config: AdapterConfig, name: str = "default", *, active: bool = True, seed: int | None = None
) -> Attachment:
    """Hang new adapters on the model, in place, and freeze every parameter that is not an adapter's.

    Args:
        model: any module; the adapters become children (`adapterx`) of the modules they adapt.
        config: what the adapters look like and where they go.
        name: letters, digits, `_` and `-`; not in use yet.
        active: whether this adapter, and no other, becomes the active one; if not, nothing else changes.
        seed: for initial weights that do not depend on the global random numbers and do not move them.

    Returns:
        A report of the chosen modules; print it.

    Raises:
        ConfigError: the name or the bottleneck does not fit.
        TargetError: the modules to adapt cannot be chosen. The model is then as it was.
        RuntimeError: the model is inside a `mixed` block.
    """
    generator = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    return plan_attachment(model, config, name, generator=generator).commit(active=active)


def detach(model: nn.Module, name: str | None = None) -> None:
    """Undo `attach`; when no adapter is left, parameters get back the `requires_grad` that they had.

    Args:
        model: any module that encloses the adapted ones.
        name: the adapter to take off; None takes off all.

    Raises:
        UnknownAdapterError: it is not attached, or nothing is.
        RuntimeError: the model is inside a `mixed` block.
    """
    check_not_mixed(model, function="detach")
    if name is not None or not adapter_names(model):
        check_known(model, [name] if name is not None else [], function="detach")
        if name is None:
            raise UnknownAdapterError("detach: the model must have adapters, none is attached")
    remove_adapters(model, (name,) if name is not None else adapter_names(model))
    if not adapter_names(model):
        unfreeze(model)


def adapter_parameters(model: nn.Module, name: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the qualified names and parameters of one adapter, trained copies included, or of all.

    Raises:
        UnknownAdapterError: the adapter is not attached.
    """
    if name is not None:
        check_known(model, [name], function="adapter_parameters")
    for path, module in model.named_modules():
        if isinstance(module, SwitchableModules):
            for key, child in module.items():
                if name is None or key == name:
                    for parameter_name, parameter in child.named_parameters():
                        yield ".".join(filter(None, (path, key, parameter_name))), parameter


@dataclass(frozen=True)
class Summary:
    """Numbers of parameters; print it.

    Attributes:
        trainable: elements that require gradients.
        trainable_adapters: those of them in adapters and trained copies.
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
    """Count the parameters of the model, each once."""
    in_adapters = {id(parameter): parameter for _, parameter in adapter_parameters(model)}
    everything = {id(parameter): parameter for parameter in model.parameters()}
    trainable = sum(p.numel() for p in everything.values() if p.requires_grad)
    adapters = sum(p.numel() for p in in_adapters.values() if p.requires_grad)
    size = sum(p.numel() * p.element_size() for p in in_adapters.values())
    total = sum(p.numel() for p in everything.values())
    return Summary(trainable, adapters, trainable - adapters, total, size / 2**20)


def merge_adapter(model: nn.Module, name: str | None = None) -> NoReturn:
    """Refuse, because it cannot be done.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "merge_adapter: a bottleneck adapter cannot be merged into the base weights: between down_proj and up_proj "
        "stands a non-linear activation, and no single matrix computes that; export the model with its adapters instead"
    )
