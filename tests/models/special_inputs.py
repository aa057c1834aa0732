"""Inputs of tiny models that generic rules do not reach, by the class of a model or of a part of one."""

import torch
from special_configs import OLD


def noise(*shape):
    """Return random numbers, the same ones for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def _ids(*shape):
    return torch.randint(3, 80, shape, generator=torch.Generator().manual_seed(3))


def _patch_row(model):
    """Return the patches of two images in one row, as MiniCPM-V packs them, and how many each image has."""
    size = model.config.patch_size
    return {"pixel_values": noise(1, 3, size, 32 * size), "target_sizes": torch.tensor([[4, 4], [4, 4]])}


def _grid(model):
    """Return the patches of two images in one row, as Qwen2-VL packs them, with how far they are merged."""
    return {
        "pixel_values": noise(32, 3 * model.config.patch_size**2),
        "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
        "merge_sizes": torch.tensor([1, 2]),
    }


def _feature_maps(model):
    return {
        "vision_features": [noise(2, model.config.hidden_size, 4, 4)],
        "text_features": noise(2, 6, model.config.hidden_size),
        "vision_pos_embeds": [noise(2, model.config.hidden_size, 4, 4)],
    }


def _queried(model):
    width = model.config.hidden_size
    return {
        "vision_features": noise(2, 16, width),
        "text_features": noise(2, 6, width),
        "vision_pos_encoding": noise(2, 16, width),
        "spatial_shapes": torch.tensor([[4, 4]]),
    }


def _points(model):
    """Return an image with a point on it, and whether it belongs to what is searched."""
    size = model.config.prompt_encoder_config.image_size
    return {
        "pixel_values": noise(1, 3, size, size),
        "input_points": torch.tensor([[[[5.0, 7.0]]]]),
        "input_labels": torch.ones(1, 1, 1, dtype=torch.long),
    }


def _two_ways(block):
    """Return what a block of SAM's mask decoder receives: points, and an image."""
    width = block.layer_norm1.weight.shape[0]
    return {
        "queries": noise(2, 1, 5, width),
        "keys": noise(2, 1, 16, width),
        "query_point_embedding": noise(2, 1, 5, width),
        "key_point_embedding": noise(2, 1, 16, width),
        "attention_similarity": None,
    }


def _memory(block):
    """Return an image, and what a video model remembers of the ones before."""
    attention = block.self_attn
    angles = (torch.ones(16, attention.head_dim), torch.zeros(16, attention.head_dim))
    again = {"rope_position_embeddings_k": angles, "rope_k_repeat": 1} if "EdgeTam" in type(block).__name__ else {}
    return {
        "queries": noise(2, 1, 16, block.layer_norm1.weight.shape[0]),
        "keys": noise(2, 1, 16, block.cross_attn_image.kv_in_dim),
        "key_point_embedding": noise(2, 1, 16, block.cross_attn_image.kv_in_dim),
        "rope_position_embeddings": angles,
        **again,
    }


def _geometry(block):
    width = block.layer_norm1.weight.shape[0]
    return {
        "prompt_feats": noise(2, 5, width),
        "vision_feats": noise(2, 16, width),
        "vision_pos_encoding": noise(2, 16, width),
        "prompt_mask": None,
    }


def _codec(model):
    return {
        "input_values": noise(2, 1, 10 * model.config.hop_length),
        "input_features": noise(2, 10, model.config.semantic_model_config.feature_projection_input_dim),
    }


def _windows(config):
    """Return the size of an image that windows of patches fill."""
    return 2 * config.patch_size * config.num_windows


def _with_tokens(ids, token, count):
    """Return words behind `count` tokens that stand for an image."""
    return torch.cat([torch.full((ids.shape[0], count), token), ids], dim=1)


def _classes(model):
    """Return two images and texts; the model, which remembers by their tokens what texts gave, forgets from now on."""
    for cache in (model.language_cache_class, model.language_cache_prompt):
        cache.put = lambda key, value: None
    return {
        "pixel_values": noise(2, 3, 64, 64),
        "classes_input_ids": _ids(4, 6),
        "classes_attention_mask": torch.ones(4, 6, dtype=torch.long),
        "tasks_input_ids": _ids(2, 6),
        "tasks_attention_mask": torch.ones(2, 6, dtype=torch.long),
        "classes_structure": torch.tensor([2, 2]),
    }


def _questions(model):
    """Return what InstructBLIP asks of an image, in words and in learned queries, and the image."""
    return {
        "input_ids": _ids(2, 7),
        "query_embeds": noise(2, 4, model.config.hidden_size),
        "encoder_hidden_states": noise(2, 5, model.config.encoder_hidden_size),
    }


def _half(size):
    """Return height and width of a picture that stands above another one of its size."""
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return height // 2, width


def _series(model):
    """Return a past and a future of a series that lags behind itself."""
    config = model.config
    past, features = config.context_length + max(config.lags_sequence), config.num_time_features
    return {
        "past_values": noise(2, past),
        "past_time_features": noise(2, past, features),
        "past_observed_mask": torch.ones(2, past),
        "future_values": noise(2, config.prediction_length),
        "future_time_features": noise(2, config.prediction_length, features),
    }


def _denoising(model):
    """Return what the diffusion transformer of Qwen2.5-Omni denoises."""
    config = model.config
    return {
        "hidden_states": noise(2, 12, config.mel_dim),
        "condition_vector": noise(2, 20, config.mel_dim),
        "speaker_embedding": noise(2, 12, config.enc_emb_dim),
        "quantized_code": _ids(2, 12 // config.repeats) % config.num_embeds,
        "time_step": torch.tensor(0.5),
        **({"apply_cfg": False} if OLD else {}),
    }


def _characters(model):
    """Return six states of text with the two characters of each, which units are made of."""
    return {
        "inputs_embeds": noise(2, 6, model.config.hidden_size),
        "char_input_ids": _ids(2, 12),
        "char_count_per_id": torch.full((2, 6), 2),
    }


def _shared_states(model):
    """Return the keys and values of the model that an assistant of Gemma 4 drafts for."""
    config = model.config.get_text_config()
    states = {
        kind: (noise(2, config.num_key_value_heads, 6, layer.self_attn.head_dim),) * 2
        for kind, layer in zip(config.layer_types, model.model.layers, strict=True)
    }
    return {
        "inputs_embeds": noise(2, 1, 2 * model.backbone_hidden_size),
        "position_ids": torch.full((2, 1), 5),
        "shared_kv_states": states,
    }


def _flattened_patches(model):
    """Return patches that begin with the numbers of their row and column."""
    config = getattr(model.config, "vision_config", model.config)
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).expand(2, -1, -1)
    patches = {"flattened_patches": torch.cat([places, noise(2, 16, config.patch_embed_hidden_size)], -1)}
    if hasattr(model.config, "vision_config"):
        patches["decoder_input_ids"] = _ids(2, 12)
    return patches


# Inputs that made-up ones do not reach, by the name of the class of a model or of a part of one: a callable gets the
# model and returns the keyword arguments of its forward; it is tried before all others.
INPUTS = {
    "Blip2QFormerModel": lambda model: {
        "query_embeds": noise(2, 8, model.config.hidden_size),
        "encoder_hidden_states": noise(2, 5, model.config.encoder_hidden_size),
    },
    "BrosModel": lambda model: {"input_ids": _ids(2, 12), "bbox": noise(2, 12, 4)},
    "FunAsrNanoEncoder": lambda model: {
        "input_features": noise(2, 12, model.config.input_size),
        "input_features_mask": torch.ones(2, 12, dtype=torch.long),
    },
    "Gemma3nAudioEncoder": lambda model: {
        "audio_mel": noise(2, 64, model.config.input_feat_size),
        "audio_mel_mask": torch.zeros(2, 64, dtype=torch.bool),
    },
    "Dots3NoteAudioModel": lambda model: {
        "input_features": noise(2, model.config.feature_size, 64),
        "chunk_sample_lengths": torch.tensor([64, 64]) * model.config.hop_length,
    },
    "Gemma4AssistantForCausalLM": _shared_states,
    "Gemma4AudioModel": lambda model: {"input_features": noise(2, 64, 128)},
    "Gemma4UnifiedAssistantForCausalLM": _shared_states,
    "Gemma4VisionModel": lambda model: {
        "pixel_values": noise(2, 36, 3 * model.config.patch_size**2),
        "pixel_position_ids": torch.cartesian_prod(torch.arange(6), torch.arange(6)).expand(2, -1, -1),
    },
    "GraniteSpeech5Encoder": lambda model: {"input_features": noise(2, 40, 4 * model.config.num_mel_bins)},
    "GraniteSpeech5ForCTC": lambda model: {
        "input_features": noise(2, 40, 4 * model.config.encoder_config.num_mel_bins)
    },
    "Idefics2PerceiverResampler": lambda model: {
        "context": noise(2, 12, model.config.hidden_size),
        "attention_mask": torch.ones(2, 12, dtype=torch.long),
    },
    "MiniCPMOcrVisionModel": _patch_row,
    "MiniCPMV4_6VisionModel": _patch_row,
    "MiniCPMV4_7VisionModel": _patch_row,
    "Molmo2Adapter": lambda model: {
        "image_features": noise(2, 9, model.config.hidden_size * len(model.config.vision_feature_layer)),
        "pooled_patches_idx": torch.arange(16).view(4, 4),
    },
    "Molmo2VisionModel": lambda model: {
        "pixel_values": noise(2, model.config.num_position_embeddings, 3 * model.config.patch_size**2)
    },
    "MuseSparkAudioModel": lambda model: {"input_values": noise(2, 20 * model.config.samples_per_token)},
    "MusicgenMelodyForConditionalGeneration": lambda model: {
        "input_ids": _ids(2, 12),
        "input_features": noise(2, 20, model.config.num_chroma),
        "decoder_input_ids": _ids(2 * model.config.decoder.num_codebooks, 5),
    },
    "OmDetTurboForObjectDetection": _classes,
    "PerceiverModel": lambda model: {"inputs": noise(2, 12, model.config.d_model)},
    "SeamlessM4TCodeHifiGan": lambda model: {
        "input_ids": _ids(2, 12),
        "spkr_id": torch.tensor([[0], [1]]),
        "lang_id": torch.tensor([[0], [1]]),
    },
    "SeamlessM4Tv2CodeHifiGan": lambda model: {
        "input_ids": _ids(2, 12),
        "speaker_id": torch.tensor([[0], [1]]),
        "lang_id": torch.tensor([[0], [1]]),
    },
    "SeamlessM4Tv2TextToUnitForConditionalGeneration": _characters,
    "T5Gemma2Decoder": lambda model: {
        "input_ids": _ids(2, 12),
        "encoder_hidden_states": noise(2, 5, model.config.hidden_size),
    },
    "MuseGlimmerAssistantModel": lambda model: {
        "noise_embeds": noise(2, model.config.block_size, model.config.hidden_size),
        "context_hidden_states": noise(2, 6, model.config.hidden_size * len(model.config.target_layer_ids)),
    },
    "Qwen2_5OmniToken2WavDiTModel": _denoising,
    "Sam3DetrEncoder": _feature_maps,
    "Sam3LiteTextDetrEncoder": _feature_maps,
    "SamModel": _points,
    "SamHQModel": _points,
    "Sam2Model": _points,
    "Sam3TrackerModel": _points,
    "EdgeTamModel": _points,
    "Sam2VideoTwoWayAttentionBlock": _two_ways,
    "EdgeTamVideoTwoWayAttentionBlock": _two_ways,
    "Sam3TrackerVideoTwoWayAttentionBlock": _two_ways,
    "Sam2VideoMemoryAttentionLayer": _memory,
    "EdgeTamVideoMemoryAttentionLayer": _memory,
    "Sam3TrackerVideoMemoryAttentionLayer": _memory,
    "Sam3GeometryEncoderLayer": _geometry,
    "Sam3LiteTextGeometryEncoderLayer": _geometry,
    "EdgeTamVideoPerceiverEncoderLayer": lambda block: {
        "latents": noise(2, 4, block.layer_norm_latents.weight.shape[0]),
        "input_features": noise(2, 16, block.layer_norm_latents.weight.shape[0]),
        "positional_encoding": None,
    },
    "VoxtralRealtimeModel": lambda model: {
        "input_ids": _ids(2, 10),
        "input_features": noise(2, model.config.audio_config.num_mel_bins, 80),
    },
    "Nemotron3_5TranscribeAudioModel": lambda model: {"input_features": noise(2, 64, 128)},
    "OneFormerModel": lambda model: {
        "pixel_values": noise(2, 3, 64, 64),
        "task_inputs": noise(2, model.config.task_seq_len),
    },
    "Phi4MultimodalAudioModel": lambda model: {"hidden_states": noise(2, 64, model.config.input_size), "mask": None},
    "RfDetrModel": lambda model: {"pixel_values": noise(2, 3, *[_windows(model.config.backbone_config)] * 2)},
    "T5Gemma2Model": lambda model: {"input_ids": _ids(2, 12), "decoder_input_ids": _ids(2, 5)},
    "Xcodec2Model": _codec,
    "NeuCodecModel": _codec,
    "ClapModel": lambda model: {"input_ids": _ids(2, 12), "input_features": noise(2, 1, 256, 16)},
    "ClapAudioModel": lambda model: {"input_features": noise(2, 1, 256, 16)},
    "ClvpModelForConditionalGeneration": lambda model: {
        "input_ids": _ids(2, 12),
        "input_features": noise(2, model.config.decoder_config.feature_size, 20),
    },
    "EvollaModel": lambda model: {
        "input_ids": _ids(2, 12),
        "protein_input_ids": _ids(2, 9) % 20 + 4,
        "protein_attention_mask": torch.ones(2, 9, dtype=torch.long),
    },
    "IdeficsModel": lambda model: {
        "input_ids": _ids(2, 12),
        "pixel_values": noise(2, 1, 3, *[model.config.vision_config.image_size] * 2),
        "image_attention_mask": torch.ones(2, 12, 1, dtype=torch.long),
    },
    "InstructBlipModel": lambda model: {
        "pixel_values": noise(2, 3, *[model.config.vision_config.image_size] * 2),
        "qformer_input_ids": _ids(2, 7),
        "input_ids": _with_tokens(_ids(2, 6), model.config.image_token_index, model.config.num_query_tokens),
    },
    "InstructBlipVideoModel": lambda model: {
        "pixel_values": noise(2, 2, 3, *[model.config.vision_config.image_size] * 2),
        "qformer_input_ids": _ids(2, 7),
        "input_ids": _with_tokens(_ids(2, 6), model.config.video_token_index, 2 * model.config.num_query_tokens),
    },
    "InstructBlipQFormerModel": _questions,
    "InstructBlipVideoQFormerModel": _questions,
    "LxmertModel": lambda model: {
        "input_ids": _ids(2, 12),
        "visual_feats": noise(2, 4, model.config.visual_feat_dim),
        "visual_pos": torch.rand(2, 4, model.config.visual_pos_dim, generator=torch.Generator().manual_seed(4)),
    },
    "SegGptModel": lambda model: dict.fromkeys(
        ("pixel_values", "prompt_pixel_values", "prompt_masks"), noise(2, 3, *_half(model.config.image_size))
    ),
    "TimeSeriesTransformerModel": _series,
    "TimesFmModel": lambda model: {
        "past_values": noise(2, 4 * model.config.patch_length),
        "past_values_padding": torch.zeros(2, 4 * model.config.patch_length),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    },
    "TvpModel": lambda model: {  # its positions are made for one video
        "input_ids": _ids(1, 12),
        "pixel_values": noise(1, model.config.num_frames, 3, model.config.max_img_size, model.config.max_img_size),
    },
    "UdopModel": lambda model: {
        "input_ids": _ids(2, 12),
        "bbox": torch.rand(2, 12, 4, generator=torch.Generator().manual_seed(4)),
        "pixel_values": noise(2, 3, model.config.image_size, model.config.image_size),
        "decoder_input_ids": _ids(2, 5),
    },
    "UnlimitedOcrVisionEncoder": lambda model: {"patch_embeds": noise(2, model.config.hidden_size, 4, 4)},
    "VideoLlama3VisionModel": _grid,
    "VoxtralRealtimeTextModel": lambda model: {
        "input_ids": _ids(2, 12),
        "t_cond": noise(1, 1, model.config.hidden_size),
    },
    "XCLIPVisionModel": lambda model: {
        "pixel_values": noise(2 * model.config.num_frames, 3, model.config.image_size, model.config.image_size)
    },
    "Sam3DetrDecoder": _queried,
    "Sam3LiteTextDetrDecoder": _queried,
    "AutoformerModel": _series,
    "InformerModel": _series,
    "Pix2StructForConditionalGeneration": _flattened_patches,
    "Pix2StructVisionModel": _flattened_patches,
    "RelPartialLearnableDecoderLayer": lambda block: {"dec_inp": noise(12, 2, 32), "r": noise(12, 1, 32)},
}
