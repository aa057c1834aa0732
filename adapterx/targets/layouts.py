"""Where the families of models keep their blocks and, in each, the sublayers that adapters go behind."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn


class Sublayer(NamedTuple):
    """One sublayer, by names relative to its block.

    Attributes:
        output: the output projection.
        input: the module that receives what the sublayer receives.
        norm: the norm of output + residual stream, in models that norm behind the sublayer (post-LN).
    """

    output: str
    input: str
    norm: str | None = None


class Layout(NamedTuple):
    """Where one family of models keeps its blocks and, in each, the two sublayers."""

    blocks: str
    attention: Sublayer
    feed_forward: Sublayer

    def block_pattern(self) -> re.Pattern:
        """Return the pattern of the qualified names of the blocks; its second group is the index."""
        return re.compile(rf"((?:.*\.)?{re.escape(self.blocks)}\.(\d+))")


_BERT = Layout(
    "encoder.layer",
    Sublayer("attention.output.dense", "attention.self", "attention.output.LayerNorm"),
    Sublayer("output.dense", "intermediate.dense", "output.LayerNorm"),
)
_MEGATRON_BERT = Layout(  # norms before each sublayer
    "encoder.layer",
    Sublayer("attention.output.dense", "attention.self"),
    Sublayer("output.dense", "intermediate.dense"),
)
_DISTILBERT = Layout(
    "transformer.layer",
    Sublayer("attention.out_lin", "attention", "sa_layer_norm"),
    Sublayer("ffn.lin2", "ffn", "output_layer_norm"),
)
_GPT2 = Layout("h", Sublayer("attn.c_proj", "attn"), Sublayer("mlp.c_proj", "mlp"))
_LLAMA = Layout("layers", Sublayer("self_attn.o_proj", "self_attn"), Sublayer("mlp.down_proj", "mlp"))

_FAMILIES = {
    "bert roberta xlm-roberta electra camembert ernie data2vec-text": _BERT,
    "megatron-bert": _MEGATRON_BERT,
    "distilbert": _DISTILBERT,
    "gpt2": _GPT2,
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 granite olmo olmo2 smollm3 cohere": _LLAMA,
}
LAYOUTS = {model_type: layout for model_types, layout in _FAMILIES.items() for model_type in model_types.split()}


def layout_of(modules: Mapping[str, nn.Module]) -> tuple[Layout | None, str | None]:
    """Return the layout of a model, None where no table knows it, and its model type."""
    model_type = model_type_of(modules)
    return LAYOUTS.get(model_type), model_type


def model_type_of(modules: Mapping[str, nn.Module]) -> str | None:
    """Return `config.model_type` of the outermost module that has one (a wrapper may have no config)."""
    for module in modules.values():
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if isinstance(model_type, str) and model_type:
            return model_type
    return None
