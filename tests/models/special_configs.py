"""What generic rules get wrong for a model type: the configurations and classes of tiny models."""

import transformers

OLD = int(transformers.__version__.split(".")[0]) < 5

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
    "qk_head_dim": 16,
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
# A backbone without attention, for models that want one of timm by default.
_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
_ROTARY = {"num_spatial_rope_pairs_per_axis": 1, "num_uid_rope_pairs": 1}
_NO_OTHER = dict.fromkeys(("use_timm_backbone", "use_pretrained_backbone"), False) if OLD else {}
_NO_OTHER |= dict.fromkeys(("backbone", "backbone_kwargs"), None) if OLD else {}
_BACKBONE = {"backbone_config": _RESNET, **_NO_OTHER}
_INTRACLASS = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]} | {
    f"{name}_{ratio}ratio": [[high or size, wide or size], [1, 1], [(high or size) // 2, (wide or size) // 2]]
    for name, high, wide in (
        ("vertical_long_to_small_conv", 0, 1),
        ("horizontal_small_to_long_conv", 1, 0),
        ("symmetric_conv_long", 0, 0),
    )
    for ratio, size in (("long", 7), ("mid", 5), ("short", 3))
}


def _of(**kinds):
    """Return what makes a configuration of others that must be given, of types named or arguments given."""
    parts = {name: kind if isinstance(kind, dict) else {"model_type": kind} for name, kind in kinds.items()}
    return lambda changes: {} if changes else parts


_BERT_DECODER = {"model_type": "bert", "is_decoder": True, "add_cross_attention": True}


def _prompted(size, video=False, **more):
    """Return what gives a SAM small images; its encoder of prompts must know their size, and has not always a type."""
    memory = {
        "image_size": size,
        "memory_attention_num_layers": 2,
        "memory_attention_rope_feat_sizes": [8, 8],
    }

    def change(changes):
        prompts = {**changes.get("prompt_encoder_config", {}), "image_size": size, **more}
        return {"prompt_encoder_config": prompts, **(memory if video else {})}

    return change


# What generic shrinking gets wrong, by model type: keyword arguments of a configuration, whether it stands alone or in
# another one; a callable gets what generic shrinking made and returns what to change.
CONFIGS = {
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe", "mlp"],
        "num_hidden_layers": 4,
        "n_groups": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "autoformer": {"prediction_length": 4, "label_length": 2},
    "informer": {"prediction_length": 4},
    "time_series_transformer": {"prediction_length": 4},
    "esm": {"vocab_size": 64, "pad_token_id": 1},
    "step3p5": {"sliding_window": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "cpmant": {"dim_ff": 48},
    "videoprism_vision_model": {"image_size": 72, "num_frames": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "longcat_flash": {"num_key_value_heads": 4, "qk_head_dim": 16},
    "xmod": {"default_language": "en_XX"},
    "pop2piano": {"use_cache": False},
    "bailing_hybrid": {"n_group": 1, "topk_group": 1, "num_experts": 4, "num_experts_per_tok": 2},
    "kimi_linear": {"num_experts_per_token": 2, "num_expert_group": 1, "topk_group": 1},
    "zamba": {
        "use_mamba_kernels": False,
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "num_mem_blocks": 1,
        "mamba_headdim": 8,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 48},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "t5_gemma_module": {"dropout_rate": 0.0},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "t5gemma2_encoder": {"dropout_rate": 0.0, "mm_tokens_per_image": 16},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "ernie4_5_vl_moe_text": {"moe_num_experts": 4, "moe_k": 2},
    "gemma3n_text": {
        "intermediate_size": 48,
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "activation_sparsity_pattern": None,
    },
    "pix2struct_text_model": {"initializer_range": 0.02},
    "pixtral": {"image_size": 64, "patch_size": 16},
    "seamless_m4t": {"max_source_positions": 64, "upsample_initial_channel": 32},
    "seamless_m4t_v2": {"max_source_positions": 64, "upsample_initial_channel": 32},
    "detr": _BACKBONE,
    "conditional_detr": _BACKBONE,
    "dab-detr": _BACKBONE,
    "deformable_detr": _BACKBONE,
    "table-transformer": _BACKBONE,
    "omdet-turbo": lambda changes: {
        **_BACKBONE,
        "apply_layernorm_after_vision_backbone": False,
        "text_config": changes["text_config"] | {"hidden_size": 48},
        "text_projection_in_dim": 48,
        "text_projection_out_dim": 48,
        "class_embed_dim": 48,
        "num_queries": 10,
        "encoder_in_channels": [16, 24, 32],
        "vision_features_channels": [32, 32, 32],
    },
    "esmfold2": lambda changes: {
        "single_inputs_size": changes["atom_encoder"]["output_dim"] + 67,
        "atom_encoder": changes["atom_encoder"] | _ROTARY,
        "structure_head": changes["structure_head"]
        | {
            "diffusion_module": changes["structure_head"]["diffusion_module"]
            | {"atom_encoder": changes["structure_head"]["diffusion_module"]["atom_encoder"] | _ROTARY}
        },
    },
    "efficientloftr": {"out_features": [8, 8, 16, 32], "num_attention_heads": 8, "num_key_value_heads": 8},
    "lw_detr": lambda changes: {
        "backbone_config": changes["backbone_config"] | {"image_size": 128},
        "projector_scale_factors": [1.0],
        "num_queries": 10,
    },
    "vitmatte": lambda changes: {
        "backbone_config": changes["backbone_config"] | {"num_channels": 4, "image_size": 64, "initializer_range": 0.2},
        "initializer_range": 0.2,
        "convstream_hidden_sizes": [8, 16, 32],
        "fusion_hidden_sizes": [32, 16, 8, 8],
    },
    "pp_ocrv5_server_det": {"intraclass_block_config": _INTRACLASS},
    "pp_ocrv6_medium_det": {"intraclass_block_config": _INTRACLASS},
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "image_size": 64, "hidden_dim": 640},
    "align": {"projection_dim": 160},
    "align_vision_model": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "image_size": 64},
    "vibevoice_acoustic_tokenizer": {"num_filters": 2},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 2},
    "vibevoice_acoustic_tokenizer_decoder": {"num_filters": 2},
    "qwen2_5_omni_bigvgan": {"upsample_initial_channel": 64},
    "dots3_note_audio_encoder": {"downsample_hidden_size": 8, "conv_output_size": 32},
    "vjepa2": {"crop_size": 64, "frames_per_clip": 4},
    "chameleon": {
        "vocabulary_map": {"<image>": 127}
        | {"IMGIMG" + "".join(chr(ord("A") + int(d)) for d in str(i)) + "Z": 40 + i for i in range(32)}
    },
    "emu3": {
        "vocabulary_map": {"<image>": 127, "<|extra_200|>": 126}
        | {f"<|visual token {i:06d}|>": 40 + i for i in range(32)}
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma4": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "position_embedding_size": 64,
        },
        "audio_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "output_proj_dims": 32,
        },
    },
    "gemma4_assistant": {
        "text_config": {
            "vocab_size": 128,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": 2,
        }
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "linear_num_value_heads": 8,
        "layer_types": ["linear_attention", "indexed_attention"],
        "num_hidden_layers": 2,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense", "sparse"], "num_local_experts": 4},
    "glm5_next_text": {"index_topk": 16, "index_kpool": 4},
    "mistral_large4_text": {
        "kv_source_layers": [0, 1],
        "no_rope_layers": [1, 0],
        "indexer_types": ["full", "shared"],
        "mlp_layer_types": ["dense", "sparse"],
    },
    "hunyuan_vl_text": {"head_dim": 8},
    "Qwen3OmniMoeTalkerConfig": {"spatial_merge_size": 2},
    "granite4_vision": lambda changes: {
        "vision_config": changes["vision_config"] | {"hidden_size": 64, "image_size": 64, "patch_size": 16},
        "qformer_config": changes["qformer_config"] | {"hidden_size": 64, "encoder_hidden_size": 64},
        "deepstack_layer_map": [[-1, 0]],
        "downsample_rate": "1/2",
        "spatial_target_layers": [1],
    },
    "apertus1p5": {"image_token_offset": 40, "audio_token_offset": 72},
    "mimi": {"upsample_groups": 32},
    "bridgetower": {"hidden_size": 64},
    "bridgetower_text_model": {"hidden_size": 64, "num_hidden_layers": 3},
    "bridgetower_vision_model": {"hidden_size": 64, "num_hidden_layers": 3, "image_size": 64},
    "perceiver": {
        "num_self_attends_per_block": 2,
        "num_latents": 8,
        "d_latents": 32,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "deepseek_ocr2_sam_vision_model": {
        "image_size": 256,
        "global_attn_indexes": [1],
        "downsample_channels": [16, 32],
    },
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "muse_spark_audio": {"patch_sizes": [16, 6], "hidden_sizes": [16, 32], "depths": [1, 1], "num_hidden_layers": 2},
    "neomme": {"head_dim": 16, "rope_parameters": None},
    "fun_asr_nano": lambda changes: {
        "adaptor_config": changes["adaptor_config"] | {"intermediate_size": changes["text_config"]["hidden_size"] // 4}
    },
    "encoder-decoder": _of(encoder="bert", decoder=_BERT_DECODER),
    "speech-encoder-decoder": _of(encoder="wav2vec2", decoder=_BERT_DECODER),
    "vision-encoder-decoder": _of(encoder="vit", decoder=_BERT_DECODER),
    "vision-text-dual-encoder": _of(vision_config="vit", text_config="bert"),
    "musicgen": _of(text_encoder="t5", audio_encoder="encodec", decoder="musicgen_decoder"),
    "musicgen_melody": _of(text_encoder="t5", audio_encoder="encodec", decoder="musicgen_melody_decoder"),
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_token_id": 117,
        },
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_blocks": 2,
            "num_attention_heads": 4,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 32,
            "audio_token_id": 116,
        },
    }
    if OLD
    else {},
    "rag": _of(question_encoder="dpr", generator="bart"),
    "mllama_text_model": {"rope_scaling": {"rope_type": "default"}} if OLD else {},
    "gptsan-japanese": {"num_switch_layers": 2, "num_ext_layers": 1, "num_layers": 3},
    "speech_to_text_2": {"is_decoder": True},
    "EvollaModel": {"num_key_value_heads": 4},
    "transfo-xl": {"cutoffs": [40, 80], "d_embed": 32, "div_val": 2},
    "retribert": {"position_embedding_type": "absolute"},
    "jamba": {
        "use_mamba_kernels": False,
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
    "llama4_vision_model": {
        "image_size": 56,
        "intermediate_size": 128,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "vision_output_dim": 32,
    },
    "pvt": {"image_size": 64, "num_encoder_blocks": 4},
    "bros": {
        "hidden_size": 64,
        "dim_bbox_sinusoid_emb_2d": 16,
        "dim_bbox_sinusoid_emb_1d": 2,
        "dim_bbox_projection": 16,
    },
    "qwen2_5_omni_dit": {"attn_implementation": "sdpa"},  # it has no eager one
    "superglue": {"keypoint_encoder_sizes": [16, 32], "gnn_layers_types": ["self", "cross"]} if OLD else {},
    "tvp": {"type_vocab_size": 2, "max_img_size": 64, "visual_prompt_size": 8, "num_frames": 2},
    "seggpt": {"image_size": [128, 64]},
    "swin2sr": {"embed_dim": 24, "num_heads": [2, 2], "depths": [2, 2], "image_size": 16},
    "xclip_vision_model": {"image_size": 64},
    "clap_audio_model": {
        "hidden_size": 192,
        "spec_size": 64,
        "num_mel_bins": 16,
        "window_size": 2,
        "depths": [2, 2],
        "num_attention_heads": [4, 8],
    },
    "instructblip": {"image_token_index": 100},
    "instructblipvideo": {"video_token_index": 100},
    "swin": {"embed_dim": 24, "hidden_size": 192},
    "xcodec2": {"quantization_dim": 64},
    "neucodec": {"quantization_dim": 64},
    "phi4_multimodal_audio": {"input_size": 80, "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32},
    "pp_doclayout_v2": {"decoder_in_channels": [32, 32, 32], "num_queries": 20},
    "pp_doclayout_v3": {"decoder_in_channels": [32, 32, 32], "num_queries": 20, "x4_feat_dim": 128},
    "rf_detr": {"num_queries": 10},
    "clvp_encoder": {"hidden_size": 128, "num_attention_heads": 4},
    **{f"{name}_vision_model": {"image_size": 64, "num_pos_feats": 16} for name in ("sam", "sam_hq")},
    **dict.fromkeys(("sam", "sam_hq"), _prompted(64, image_embedding_size=4)),
    "sam2": _prompted(128),
    "sam3_tracker": _prompted(112),
    "sam2_hiera_det_model": {
        "image_size": [128, 128],
        "hidden_size": 16,
        "embed_dim_per_stage": [16, 32, 64, 128],
        "blocks_per_stage": [1, 1, 2, 1],
        "global_attention_blocks": [3],
    },
    "sam2_vision_model": {
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    },
    "sam2_video": _prompted(128, video=True),
    "edgetam_video": _prompted(128, video=True),
    "sam3_vit_model": {"image_size": 112, "pretrain_image_size": 56, "window_size": 4},
    "sam3_vision_model": {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]},
    "sam3_tracker_video": _prompted(112, video=True),
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, **({"use_cache": False} if OLD else {})},
}

# The class of a model, where the type's name does not lead to it: "module:class" under transformers.models.
CLASSES = {
    "granite_speech_encoder": "granite_speech.modeling_granite_speech:GraniteSpeechCTCEncoder",
    "idefics_vision": "idefics.vision:IdeficsVisionTransformer",
    "instructblip_qformer": "instructblip.modeling_instructblip:InstructBlipQFormerModel",
    "instructblipvideo_qformer": "instructblipvideo.modeling_instructblipvideo:InstructBlipVideoQFormerModel",
    "lw_detr_vit": "lw_detr.modeling_lw_detr:LwDetrViTBackbone",
    "blip_text_model": "blip.modeling_blip_text:BlipTextModel",
    "pp_chart2table": "got_ocr2.modeling_got_ocr2:GotOcr2Model",
    "pp_chart2table_vision": "got_ocr2.modeling_got_ocr2:GotOcr2VisionEncoder",
    "semantic": "bark.modeling_bark:BarkSemanticModel",
    "coarse_acoustics": "bark.modeling_bark:BarkCoarseModel",
    "t5_gemma_module": "t5gemma.modeling_t5gemma:T5GemmaEncoder",
    "musicgen": "musicgen.modeling_musicgen:MusicgenForConditionalGeneration",
    "voxtral_realtime_text": "voxtral_realtime.modeling_voxtral_realtime:VoxtralRealtimeTextModel",
    "musicgen_melody": "musicgen_melody.modeling_musicgen_melody:MusicgenMelodyForConditionalGeneration",
    "clvp_encoder": "clvp.modeling_clvp:ClvpEncoder",
    "clvp_decoder": "clvp.modeling_clvp:ClvpModel",
    "dia_encoder": "dia.modeling_dia:DiaEncoder",
    "dia_decoder": "dia.modeling_dia:DiaDecoder",
    "GotOcr2VisionConfig": "got_ocr2.modeling_got_ocr2:GotOcr2VisionEncoder",
    "Qwen3OmniMoeCode2WavConfig": "qwen3_omni_moe.modeling_qwen3_omni_moe:Qwen3OmniMoeCode2Wav",
}

# Models that transformers itself fails to give first weights: they keep PyTorch's.
UNINITIALIZED = ("vit-hybrid", "speech_to_text_2")
