"""What a document of AdapterHub says of an adapter, in the terms of a model: configuration, modules, places, shapes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from adapterx.bottleneck import BottleneckAdapter
from adapterx.config import AdapterConfig
from adapterx.errors import CheckpointError, ConfigError, TargetError, speaker
from adapterx.integrations.adapterhub.blocks import Uneven, layers_of, widths_of
from adapterx.integrations.adapterhub.families import ATTENTION, CROSS, FEED_FORWARD, HOOKED, Place, family_of
from adapterx.integrations.adapterhub.files import ADAPTER
from adapterx.integrations.adapterhub.interface import KNOWN, read_interface
from adapterx.integrations.adapterhub.options import Surroundings, branch_of, options_of, placement_of
from adapterx.targets import find_targets

OPTION_OF_POSITION = {ATTENTION: "mh_adapter", CROSS: "cross_adapter", FEED_FORWARD: "output_adapter"}
_CROSS_ATTENTIONS = ("encoder_attn", "EncDecAttention", "crossattention")
_BY_NAME = (("sequential", "sum"), ("normed_sum", "sum"), ("normed_sum", "normed"))  # need no residual stream


class Described:
    """What the document in a folder says of an adapter of this model.

    Args:
        document: what was read.
        modules: the model's modules by qualified name.
        folder: where the document is.
        check_base: whether the model must be of the type that the document names.

    Raises:
        CheckpointError: the document describes what is no adapter of ours, or does not fit the model.
    """

    def __init__(
        self, document: Mapping[str, Any], modules: Mapping[str, nn.Module], folder: Path, *, check_base: bool
    ) -> None:
        self.modules, self.source = modules, folder / ADAPTER.document
        self.options = options_of(document, self.source)
        interface = read_interface(folder)
        model_type, self.family = family_of(modules, interface)
        if check_base and document.get("model_type", model_type) != model_type:
            raise CheckpointError(
                f"{speaker()}: model must be of the type {document['model_type']!r} that {folder} was trained on, got "
                f"{model_type!r}; check_base=False takes it all the same"
            )
        if interface is None and self.family.order == HOOKED:
            interface = KNOWN[model_type]
        if self.options["inv_adapter"] and self.family.invertible is None:
            raise CheckpointError(
                f"{speaker()}: inv_adapter of {self.source} must be None for {model_type!r}, where adapters has none, "
                "or one that acts elsewhere"
            )
        self._choose(Surroundings(model_type, self.family.order, interface))

    def _choose(self, around: Surroundings) -> None:
        """Set configuration, targets, and the place of each module."""
        positions = self._positions()
        placement, added_to = placement_of(self.options, positions, around, self.source)
        values = {"placement": placement, "added_to": added_to, "positions": positions}
        values |= branch_of(self.options, placement, added_to, self.source)
        try:
            everywhere = find_targets(self.modules, AdapterConfig(bottleneck_dim=1, **values))[0]
            self.places = {target.module: self.family.place_of_target(target) for target in everywhere}
            sizes = {target.hidden_size for target in everywhere}
            values |= self._kept((placement, added_to) in _BY_NAME)
            widths = widths_of(self.options["reduction_factor"], [*self.places.values()], sizes, self.source)
            self.config = AdapterConfig(**values, **widths)
            self.targets = find_targets(self.modules, self.config)[0]
        except (ConfigError, TargetError) as error:
            reason = str(error).removeprefix(f"{speaker()}: ").removeprefix("AdapterConfig: ")
            raise CheckpointError(f"{speaker()}: {self.source} does not fit the model: {reason}") from error

    def _positions(self) -> tuple[str, ...]:
        """Return the positions that the options name and the model has."""
        crossed = any(name.endswith(_CROSS_ATTENTIONS) for name in self.modules)
        named = [position for position, option in OPTION_OF_POSITION.items() if self.options[option]]
        positions = tuple(position for position in named if position != CROSS or crossed)
        if not positions:
            given = ", ".join(f"{option}={self.options[option]!r}" for option in OPTION_OF_POSITION.values())
            raise CheckpointError(f"{speaker()}: {self.source} must name a place for adapters, got {given}")
        return positions

    def _kept(self, by_name: bool) -> dict[str, Any]:
        """Return what chooses the blocks that are not left out, by their indices or, if need be, by module."""
        places: Sequence[Place] = [*self.places.values()]
        try:
            return {"layers": layers_of(self.options["leave_out"], places, self.source)}
        except Uneven as uneven:
            if not by_name:
                raise
            kept = [module for module, place in self.places.items() if (place.stack, place.block) in uneven.kept]
            return {"target_modules": tuple(kept)}

    def shapes(self) -> dict[Place, dict[str, tuple[int, ...]]]:
        """Return the shapes of all tensors that the adapter has, by place and name, without taking their memory."""
        found, shared = {}, {}
        for target in self.targets:
            adapter = BottleneckAdapter(
                target.input_size,
                target.hidden_size,
                self.config.resolve_bottleneck_dim(target.hidden_size, target.block),
                device="meta",
                shared=shared,
                **self.config.branch_options(),
            )
            state = {key: tuple(tensor.shape) for key, tensor in adapter.state_dict().items()}
            found[self.places[target.module]] = state
        return found
