"""What generic rules get wrong for a model type: configurations, classes and inputs of tiny models."""

import torch

# The most that an argument of this name may be.
NAMES = {
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_expert_group": 1,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_fpn_layers": 1,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "max_position_embeddings": 512,
    "num_nextn_predict_layers": 1,
    "num_hidden_groups": 1,
    "moe_intermediate_size": 48,
    "first_num_layers": 1,
    "num_kv_shared_layers": 0,
    "num_local_experts": 4,
    "num_experts": 4,
    "max_source_positions": 1500,
    "router_n_groups": 1,
    "moe_layer_start_index": 1,
}
# What generic shrinking gets wrong, by model type: keyword arguments of a configuration, whether it stands alone or in
# another one; a callable gets what generic shrinking made and returns what to change.
CONFIGS = {
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe", "mlp"], "num_hidden_layers": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "autoformer": {"prediction_length": 4},
    "informer": {"prediction_length": 4},
    "time_series_transformer": {"prediction_length": 4},
    "esm": {"vocab_size": 64, "pad_token_id": 1},
    "step3p5": {"sliding_window": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "longcat_flash": {"num_key_value_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "pop2piano": {"use_cache": False},
    "bailing_hybrid": {"n_group": 1, "topk_group": 1, "num_experts": 4, "num_experts_per_tok": 2},
    "kimi_linear": {"num_experts_per_token": 2, "num_expert_group": 1, "topk_group": 1},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"], "num_mem_blocks": 1},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 48},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "moonshine_streaming": {"encoder_num_key_value_heads": 4},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "t5gemma2_encoder": {"dropout_rate": 0.0},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "ernie4_5_vl_moe_text": {"moe_num_experts": 4, "moe_k": 2},
    "gemma3n_text": {"intermediate_size": 48, "num_kv_shared_layers": 0, "laurel_rank": 8},
    "pix2struct_text_model": {"initializer_range": 0.02},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    # the eager attention of these takes a mask of booleans, gets one of numbers, and returns NaN
    "nemotron3_5_asr": {"attn_implementation": "sdpa"},
    "nemotron_asr_streaming": {"attn_implementation": "sdpa"},
    "nemotron_asr_streaming_encoder": {"attn_implementation": "sdpa"},
}

# The class of a model, where the type's name does not lead to it: "module:class" under transformers.models.
CLASSES = {}


def _noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


# Inputs that made-up ones do not reach, by the name of the class of a model or of a part of one: a callable gets the
# model and returns the keyword arguments of its forward; it is tried before all others.
INPUTS = {}
