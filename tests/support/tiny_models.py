"""Tiny random Hugging Face models of many families, and plain ones, with inputs that they take."""

import torch
import transformers
from torch import nn

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 99,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER_DECODER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 99,
    "decoder_start_token_id": 1,
    **SPECIAL,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
IMAGE = {"image_size": 16, "patch_size": 8}
NO_VOCABULARY = {key: value for key, value in SIZES.items() if key != "vocab_size"}

CLIP = {
    "text_config": SIZES | {"max_position_embeddings": 12},
    "vision_config": NO_VOCABULARY | IMAGE,
    "projection_dim": 8,
}

# name: (config class, its values, number of adapted modules at both positions)
FAMILIES = {
    "bert": ("BertConfig", SIZES, 4),
    "roberta": ("RobertaConfig", SIZES | SPECIAL, 4),
    "xlm-roberta": ("XLMRobertaConfig", SIZES | SPECIAL, 4),
    "electra": ("ElectraConfig", SIZES | {"embedding_size": 16}, 4),
    "camembert": ("CamembertConfig", SIZES | SPECIAL, 4),
    "ernie": ("ErnieConfig", SIZES, 4),
    "data2vec-text": ("Data2VecTextConfig", SIZES | SPECIAL, 4),
    "megatron-bert": ("MegatronBertConfig", SIZES, 4),
    "distilbert": ("DistilBertConfig", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 99}, 4),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, **SPECIAL}, 4),
    "gptj": (
        "GPTJConfig",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_inner": 48, "vocab_size": 99, **SPECIAL},
        4,
    ),
    "llama": ("LlamaConfig", SIZES, 4),
    "mistral": ("MistralConfig", SIZES | {"num_key_value_heads": 2}, 4),
    "qwen2": ("Qwen2Config", SIZES | {"num_key_value_heads": 2}, 4),
    "qwen3": ("Qwen3Config", SIZES | {"num_key_value_heads": 2, "head_dim": 16}, 4),
    "gemma": ("GemmaConfig", SIZES | {"num_key_value_heads": 2, "head_dim": 16}, 4),
    "gemma2": ("Gemma2Config", SIZES | {"num_key_value_heads": 2, "head_dim": 16}, 4),
    "gemma3_text": ("Gemma3TextConfig", SIZES | {"num_key_value_heads": 2, "head_dim": 16}, 4),
    "phi3": ("Phi3Config", SIZES | {"num_key_value_heads": 2, **SPECIAL}, 4),
    "granite": ("GraniteConfig", SIZES, 4),
    "olmo": ("OlmoConfig", SIZES | SPECIAL, 4),
    "olmo2": ("Olmo2Config", SIZES | SPECIAL, 4),
    "smollm3": ("SmolLM3Config", SIZES | SPECIAL | {"num_key_value_heads": 2}, 4),
    "cohere": ("CohereConfig", SIZES | SPECIAL, 4),
    "t5": ("T5Config", T5, 8),
    "t5-gated": (
        "T5Config",
        {"d_model": 32, "d_kv": 4, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 99}
        | {"feed_forward_proj": "gated-gelu"},
        4,
    ),
    "mt5": ("MT5Config", T5, 8),
    "umt5": ("UMT5Config", T5, 8),
    "bart": ("BartConfig", ENCODER_DECODER, 6),
    "mbart": ("MBartConfig", ENCODER_DECODER, 6),
    "whisper": (
        "WhisperConfig",
        ENCODER_DECODER | {"num_mel_bins": 8, "max_source_positions": 8, "suppress_tokens": [3]},
        6,
    ),
    "vit": ("ViTConfig", NO_VOCABULARY | IMAGE, 4),
    "clip": ("CLIPConfig", CLIP, 8),
    "clip_text_model": ("CLIPTextConfig", CLIP["text_config"], 4),
    "clip_vision_model": ("CLIPVisionConfig", CLIP["vision_config"], 4),
    "modernbert": ("ModernBertConfig", SIZES | SPECIAL | {"cls_token_id": 1, "sep_token_id": 2}, 4),
    "opt": ("OPTConfig", NO_VOCABULARY | {"ffn_dim": 48, "vocab_size": 99, "word_embed_proj_dim": 32, **SPECIAL}, 4),
    "gpt_neox": ("GPTNeoXConfig", SIZES, 4),
    "albert": ("AlbertConfig", SIZES | {"embedding_size": 16}, 2),
    "deberta-v2": ("DebertaV2Config", SIZES, 4),
    "mpnet": ("MPNetConfig", SIZES, 4),
    "phi": ("PhiConfig", SIZES | SPECIAL, 4),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99}, 4),
    "falcon": ("FalconConfig", SIZES, 4),
    "swin": (
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        4,
    ),
}


def build(name, *, dropout=False):
    """Return a tiny random model in eval mode; without dropout unless asked for."""
    config_class, values, _ = FAMILIES[name]
    config = getattr(transformers, config_class)(**values)
    if not dropout:
        for key in vars(config):
            if ("drop" in key or key.endswith("pdrop")) and isinstance(getattr(config, key), float):
                setattr(config, key, 0.0)
    return transformers.AutoModel.from_config(config).eval()


def inputs_for(name, model, *, batch=2, length=7):
    """Return keyword arguments for the model's forward."""
    generator = torch.Generator().manual_seed(7)
    config = model.config
    if name in ("vit", "swin", "clip_vision_model"):
        size = config.image_size
        return {"pixel_values": torch.randn(batch, 3, size, size, generator=generator)}
    if name == "clip":
        images = inputs_for("vit", model.vision_model, batch=batch)
        return inputs_for("clip_text_model", model.text_model, batch=batch, length=length) | images
    ids = torch.randint(3, 99, (batch, length), generator=generator)
    if name == "whisper":
        features = torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
        return {"input_features": features, "decoder_input_ids": ids}
    if name in ("t5", "t5-gated", "mt5", "umt5", "bart", "mbart"):
        return {"input_ids": ids, "decoder_input_ids": ids.flip(1)}
    return {"input_ids": ids}


def run(model, inputs):
    """Return the model's first output."""
    return model(**inputs)[0]


class Block(nn.Module):
    """A block without attention, such as a mixer has."""

    def __init__(self, size=8, width=12):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.widen = nn.Linear(size, width)
        self.narrow = nn.Linear(width, size)

    def forward(self, hidden_states):
        return hidden_states + self.narrow(torch.relu(self.widen(self.norm(hidden_states))))


def plain_model(depth=2, size=8, width=12):
    """Return a model that is not Hugging Face's: `depth` blocks in a Sequential and a classifier."""
    torch.manual_seed(3)
    model = nn.Sequential()
    model.add_module("blocks", nn.Sequential(*(Block(size, width) for _ in range(depth))))
    model.add_module("classifier", nn.Linear(size, 3))
    return model
