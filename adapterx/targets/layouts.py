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
        residual: the module that receives the residual stream as it is, in models that norm it before the sublayer
            (pre-LN); None where `input` receives it.
    """

    output: str
    input: str
    norm: str | None = None
    residual: str | None = None

    @property
    def stream(self) -> str:
        """The module that receives the residual stream, which the sublayer's output is added to."""
        return self.residual or self.input


class Layout(NamedTuple):
    """Where one family of models keeps its blocks and, in each, the sublayers."""

    blocks: str
    attention: Sublayer
    feed_forward: Sublayer
    cross_attention: Sublayer | None = None

    def block_pattern(self) -> re.Pattern:
        """Return the pattern of the qualified names of the blocks; its second group is the index."""
        return re.compile(rf"((?:.*\.)?{re.escape(self.blocks)}\.(\d+))")


_BERT = Layout(
    "encoder.layer",
    Sublayer("attention.output.dense", "attention.self", "attention.output.LayerNorm"),
    Sublayer("output.dense", "intermediate.dense", "output.LayerNorm"),
    Sublayer("crossattention.output.dense", "crossattention.self", "crossattention.output.LayerNorm"),
)
_MEGATRON_BERT = Layout(  # norms before each sublayer
    "encoder.layer",
    Sublayer("attention.output.dense", "attention.self", residual="attention.ln"),
    Sublayer("output.dense", "intermediate.dense", residual="ln"),
)
_DISTILBERT = Layout(
    "transformer.layer",
    Sublayer("attention.out_lin", "attention", "sa_layer_norm"),
    Sublayer("ffn.lin2", "ffn", "output_layer_norm"),
)
_ALBERT = Layout(
    "albert_layers",
    Sublayer("attention.dense", "attention", "attention.LayerNorm"),
    Sublayer("ffn_output", "ffn", "full_layer_layer_norm"),
)
_MODERNBERT = Layout(
    "layers",
    Sublayer("attn.Wo", "attn", residual="attn_norm"),
    Sublayer("mlp.Wo", "mlp.Wi", residual="mlp_norm"),
)
_GPT2 = Layout(
    "h",
    Sublayer("attn.c_proj", "attn", residual="ln_1"),
    Sublayer("mlp.c_proj", "mlp", residual="ln_2"),
    Sublayer("crossattention.c_proj", "crossattention", residual="ln_cross_attn"),
)
_GPTJ = Layout(  # both sublayers read one norm
    "h", Sublayer("attn.out_proj", "attn", residual="ln_1"), Sublayer("mlp.fc_out", "mlp", residual="ln_1")
)
_LLAMA = Layout(
    "layers",
    Sublayer("self_attn.o_proj", "self_attn", residual="input_layernorm"),
    Sublayer("mlp.down_proj", "mlp", residual="post_attention_layernorm"),
)
_COHERE = _LLAMA._replace(feed_forward=Sublayer("mlp.down_proj", "mlp", residual="input_layernorm"))
# These norm a sublayer's output too, before it is added to the stream.
_GEMMA2 = _LLAMA._replace(feed_forward=Sublayer("mlp.down_proj", "mlp", residual="pre_feedforward_layernorm"))
_OLMO2 = Layout("layers", Sublayer("self_attn.o_proj", "self_attn"), Sublayer("mlp.down_proj", "mlp"))


def _bart(norms: str) -> tuple[Layout, ...]:
    """Return the layouts of encoder and decoder; `norms`, a field of `Sublayer`, says where the norms stand."""
    attention = Sublayer("self_attn.out_proj", "self_attn", **{norms: "self_attn_layer_norm"})
    feed_forward = Sublayer("fc2", "fc1", **{norms: "final_layer_norm"})
    cross_attention = Sublayer("encoder_attn.out_proj", "encoder_attn", **{norms: "encoder_attn_layer_norm"})
    return (
        Layout("encoder.layers", attention, feed_forward),
        Layout("decoder.layers", attention, feed_forward, cross_attention),
    )


_T5 = (
    Layout(
        "encoder.block",
        Sublayer("layer.0.SelfAttention.o", "layer.0.SelfAttention", residual="layer.0.layer_norm"),
        Sublayer("layer.1.DenseReluDense.wo", "layer.1.DenseReluDense", residual="layer.1.layer_norm"),
    ),
    Layout(
        "decoder.block",
        Sublayer("layer.0.SelfAttention.o", "layer.0.SelfAttention", residual="layer.0.layer_norm"),
        Sublayer("layer.2.DenseReluDense.wo", "layer.2.DenseReluDense", residual="layer.2.layer_norm"),
        Sublayer("layer.1.EncDecAttention.o", "layer.1.EncDecAttention", residual="layer.1.layer_norm"),
    ),
)
_VIT = (
    Layout(
        "layers",
        Sublayer("attention.o_proj", "attention", residual="layernorm_before"),
        Sublayer("mlp.fc2", "mlp", residual="layernorm_after"),
    ),
    Layout(  # up to transformers 4
        "encoder.layer",
        Sublayer("attention.output.dense", "attention.attention", residual="layernorm_before"),
        Sublayer("output.dense", "intermediate.dense", residual="layernorm_after"),
    ),
)
_CLIP = Layout(
    "encoder.layers",
    Sublayer("self_attn.out_proj", "self_attn", residual="layer_norm1"),
    Sublayer("mlp.fc2", "mlp", residual="layer_norm2"),
)

_FAMILIES = {
    "bert roberta xlm-roberta electra camembert ernie data2vec-text": (_BERT,),
    "megatron-bert": (_MEGATRON_BERT,),
    "distilbert": (_DISTILBERT,),
    "albert": (_ALBERT,),
    "modernbert": (_MODERNBERT,),
    "gpt2": (_GPT2,),
    "gptj": (_GPTJ,),
    "llama mistral qwen2 qwen3 gemma phi3 granite olmo smollm3": (_LLAMA,),
    "gemma2 gemma3_text": (_GEMMA2,),
    "olmo2": (_OLMO2,),
    "cohere": (_COHERE,),
    "bart": _bart("norm"),
    "mbart": _bart("residual"),
    "t5 mt5 umt5": _T5,
    "vit": _VIT,
    "clip clip_text_model clip_vision_model": (_CLIP,),
}
LAYOUTS = {model_type: layouts for model_types, layouts in _FAMILIES.items() for model_type in model_types.split()}


def layouts_of(modules: Mapping[str, nn.Module]) -> tuple[tuple[Layout, ...], str | None]:
    """Return the layouts of a model's lists of blocks, none where no table knows it, and its model type."""
    model_type = model_type_of(modules)
    return LAYOUTS.get(model_type, ()), model_type


def model_type_of(modules: Mapping[str, nn.Module]) -> str | None:
    """Return `config.model_type` of the outermost module that has one (a wrapper may have no config)."""
    for module in modules.values():
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if isinstance(model_type, str) and model_type:
            return model_type
    return None
