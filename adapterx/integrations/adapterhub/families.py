"""Where AdapterHub's `adapters` hangs its modules in each family of models, and what it adds to what there.

| order | families | what `adapters` does with a sublayer's output h and the residual stream r |
|---|---|---|
| `post_norm` | BERT and its kin, DistilBERT, ALBERT, BART | adds r and norms, before or after its adapters, or both |
| `pre_norm` | GPT-2, Llama, Mistral, T5, mBART, ViT, CLIP | adds r, before or after its adapters, or both |
| `hooked` | those of its plugin interface: ModernBERT, Gemma 2, Qwen | leaves both to the model; reads r from a hook |
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from adapterx.errors import CheckpointError, speaker
from adapterx.integrations.adapterhub.interface import Interface
from adapterx.targets import Target
from adapterx.targets.layouts import model_type_of

POST_NORM, PRE_NORM, HOOKED = "post_norm", "pre_norm", "hooked"
ATTENTION, CROSS, FEED_FORWARD = "attention", "cross_attention", "feed_forward"


class Place(NamedTuple):
    """A sublayer, under the same name in both libraries: the list of blocks, the block in it, the position."""

    stack: str
    block: int
    position: str


@dataclass(frozen=True)
class Family:
    """Where one family keeps what `adapters` adds.

    Attributes:
        order: one of the table above.
        prefix: what stands before the names of the base model where a head is above it, with a dot, or nothing.
        locations: by stack and position the name of the module that holds the adapters; `{block}` stands for the index.
        stack_pattern: finds the stack in the names of our modules; None where a model has one.
        first_stack: the stack of modules in which the pattern finds none, such as those of a tower alone.
        invertible: what holds the invertible adapters, with a dot, or nothing; None where there are none, or none that
            would give the same here.
    """

    order: str
    prefix: str
    locations: Mapping[tuple[str, str], str]
    stack_pattern: str | None = None
    first_stack: str = ""
    invertible: str | None = ""

    def place_of_key(self, location: str) -> tuple[str, Place] | None:
        """Return the prefix and the place that the location in a key of a state dict names; None: there is none."""
        for (stack, position), name in self.locations.items():
            pattern = re.escape(name).replace(r"\{block\}", r"([0-9]{1,9})").replace(r"\{stack\}", r"([0-9]{1,9})")
            if match := re.fullmatch(rf"((?:.*\.)?){pattern}", location):
                *outer, block = match.groups()[1:]
                return match[1], Place(outer[0] if outer else stack, int(block), position)
        return None

    def key_of_place(self, place: Place) -> str:
        """Return the location that `adapters` has for a place, without the prefix."""
        stack = place.stack if (place.stack, place.position) in self.locations else "*"
        return self.locations[stack, place.position].format(block=place.block, stack=place.stack)

    def place_of_target(self, target: Target) -> Place:
        """Return the place of one of our targets.

        Raises:
            CheckpointError: `adapters` has none there.
        """
        match = re.search(self.stack_pattern, target.module) if self.stack_pattern else None
        place = Place(match[1] if match else self.first_stack, target.block or 0, target.position)
        if target.block is None or not {(place.stack, place.position), ("*", place.position)} & self.locations.keys():
            raise CheckpointError(f"{speaker()}: adapters has no place for an adapter behind {target.module}")
        return place


def layer_numbers(places: Iterable[Place]) -> dict[tuple[str, int], int]:
    """Return the number that `adapters` gives to each block: those of a second stack go on where the first one ends."""
    blocks = {(place.stack, place.block) for place in places}
    order = {stack: number for number, stack in enumerate(("", "encoder", "text_model", "decoder", "vision_model"))}
    known = sorted(blocks, key=lambda block: (int(block[0]) if block[0].isdecimal() else order[block[0]], block[1]))
    return {block: number for number, block in enumerate(known)}


def _family(order: str, prefix: str, block: str, attention: str, feed_forward: str, cross: str | None = None) -> Family:
    names = {ATTENTION: attention, CROSS: cross, FEED_FORWARD: feed_forward}
    return Family(order, prefix, {("", position): f"{block}.{name}" for position, name in names.items() if name})


def _encoder_decoder(order: str, prefix: str) -> Family:
    names = {ATTENTION: "attention_adapters", CROSS: "cross_attention_adapters", FEED_FORWARD: "output_adapters"}
    stacks = [("encoder", ATTENTION), ("encoder", FEED_FORWARD), *(("decoder", position) for position in names)]
    locations = {(stack, position): f"{stack}.layers.{{block}}.{names[position]}" for stack, position in stacks}
    return Family(order, prefix, locations, r"(?:^|\.)(encoder|decoder)\.layers\.", invertible="encoder.")


def _layers(order: str, prefix: str, block: str, invertible: str | None = "") -> Family:
    return replace(_family(order, prefix, block, "attention_adapters", "output_adapters"), invertible=invertible)


def _bert(prefix: str) -> Family:
    return _family(POST_NORM, prefix, "encoder.layer.{block}", "attention.output", "output", "crossattention.output")


_ALBERT = Family(
    POST_NORM,
    "albert.",
    {
        ("*", ATTENTION): "encoder.albert_layer_groups.{stack}.albert_layers.{block}.attention.attention_adapters",
        ("*", FEED_FORWARD): "encoder.albert_layer_groups.{stack}.albert_layers.{block}.output_adapters",
    },
    r"albert_layer_groups\.([0-9]+)\.",
)
_T5 = Family(
    PRE_NORM,
    "",
    {
        ("encoder", ATTENTION): "encoder.block.{block}.layer.0",
        ("encoder", FEED_FORWARD): "encoder.block.{block}.layer.1",
        ("decoder", ATTENTION): "decoder.block.{block}.layer.0",
        ("decoder", CROSS): "decoder.block.{block}.layer.1",
        ("decoder", FEED_FORWARD): "decoder.block.{block}.layer.2",
    },
    r"(?:^|\.)(encoder|decoder)\.block\.",
    invertible="encoder.",
)
_VIT = Family(
    PRE_NORM,
    "vit.",
    {
        ("", ATTENTION): "encoder.layer.{block}.attention_adapters",
        ("", FEED_FORWARD): "encoder.layer.{block}.output.output_adapters",
    },
    invertible=None,
)


def _clip(first_stack: str = "") -> Family:
    names = {ATTENTION: "attention_adapters", FEED_FORWARD: "output_adapters"}
    locations = {
        (tower, position): f"{tower}.encoder.layers.{{block}}.{name}"
        for tower in ("text_model", "vision_model")
        for position, name in names.items()
    }
    pattern = r"(?:^|\.)(text_model|vision_model)\."
    invertible = None if first_stack == "vision_model" else "text_model."
    return Family(PRE_NORM, "", locations, pattern, first_stack, invertible)


FAMILIES = {
    "bert": _bert("bert."),
    "roberta": _bert("roberta."),
    "xlm-roberta": _bert("roberta."),
    "electra": _bert("electra."),
    "distilbert": _layers(POST_NORM, "distilbert.", "transformer.layer.{block}"),
    "albert": _ALBERT,
    "bart": _encoder_decoder(POST_NORM, "model."),
    "mbart": _encoder_decoder(PRE_NORM, "model."),
    "t5": _T5,
    "mt5": _T5,
    "gpt2": _layers(PRE_NORM, "transformer.", "h.{block}"),
    "llama": _layers(PRE_NORM, "model.", "layers.{block}"),
    "mistral": _layers(PRE_NORM, "model.", "layers.{block}"),
    "vit": _VIT,
    "clip": _clip(),
    "clip_text_model": _clip("text_model"),
    "clip_vision_model": _clip("vision_model"),
    **dict.fromkeys(("modernbert", "qwen2", "qwen3"), _layers(HOOKED, "model.", "layers.{block}")),
    # Their embeddings are scaled on the way to the first block; `adapters` couples them before that.
    **dict.fromkeys(("gemma2", "gemma3_text"), _layers(HOOKED, "model.", "layers.{block}", invertible=None)),
}
"""By model type. DeBERTa, BEiT, GPT-J, Whisper, X-MOD and PLBart, which `adapters` knows too, have none here."""


def family_of(modules: Mapping[str, nn.Module], interface: Interface | None = None) -> tuple[str, Family]:
    """Return the model type and the family of a model.

    Args:
        modules: the model's modules by qualified name.
        interface: what hooks `adapters` into a model that it does not know; None takes what it knows.

    Raises:
        CheckpointError: the model has no type, or one without a table.
    """
    model_type = model_type_of(modules)
    if interface is not None and model_type is not None:
        prefix = getattr(modules[""], "base_model_prefix", "")
        known = FAMILIES.get(model_type)
        invertible = known.invertible if known and known.order == HOOKED else None
        block = f"{interface.model_layers}.{{block}}"
        return model_type, _layers(HOOKED, f"{prefix}." if prefix else "", block, invertible)
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{speaker()}: model must be of a type whose places in adapters are known, got {model_type!r}; known are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return model_type, FAMILIES[model_type]
