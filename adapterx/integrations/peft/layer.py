"""The adapters of one base module, as a layer that PEFT can find and ask."""

from typing import NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from adapterx.adapters import merge_adapter
from adapterx.compose import adapter_names_in
from adapterx.devices import device_and_dtype
from adapterx.host import AdapterSet
from adapterx.route import Route


class TunedAdapters(AdapterSet, BaseTunerLayer):
    """An `AdapterSet` that answers what PEFT asks of its layers; `BottleneckModel` switches those of a model together.

    The base module is not replaced: PEFT finds this layer as its child `adapterx`.

    Args:
        where: qualified name of the base module, for messages.
    """

    adapter_layer_names = ("adapters",)

    def __init__(self, where: str = "") -> None:
        super().__init__(where)
        self.base: tuple[nn.Module, ...] = ()  # the base module; a tuple is no child
        self._active_adapter: list[str] = []

    @property
    def adapters(self) -> "TunedAdapters":
        """The adapters by name."""
        return self

    def get_base_layer(self) -> nn.Module:
        """Return the base module."""
        return self.base[0]

    def mark(self, active: list[str], *, enabled: bool) -> None:
        """Note what PEFT shall be told, where the adapters that run do not tell: all are off."""
        self._active_adapter, self._disable_adapters = list(active), not enabled

    def _build(self, route: Route) -> Route:
        if not self._disable_adapters:  # also where `adapterx.set_active` was called past PEFT
            self._active_adapter = list(adapter_names_in(route.composition))
        return super()._build(route)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        if adapter_name in self:
            base = self.get_base_layer()
            self[adapter_name].to(device or device_and_dtype(base, base)[0])

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refuse, because it cannot be done."""
        merge_adapter(self)

    def unmerge(self) -> NoReturn:
        """Refuse, because nothing can have been merged."""
        merge_adapter(self)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> NoReturn:
        """Refuse: a model has one composition, and its layers follow."""
        self._refuse("set_adapter")

    def enable_adapters(self, enabled: bool) -> NoReturn:
        """Refuse: a model has one composition, and its layers follow."""
        self._refuse("enable_adapter_layers or disable_adapter")

    def delete_adapter(self, adapter_name: str) -> NoReturn:
        """Refuse: an adapter is taken off all layers at once."""
        self._refuse("delete_adapter")

    def _refuse(self, function: str) -> NoReturn:
        raise NotImplementedError(
            f"TunedAdapters: the layers of a model are switched together, call {function} of the PeftModel"
        )
