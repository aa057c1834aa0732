"""Make inputs that a tiny model takes, whatever it is: by the names of the arguments of its forward."""

import inspect
import itertools

import torch
from special_inputs import INPUTS, noise

BATCH, LENGTH = 2, 12
_MOST_TRIES = 24


def candidates(model):
    """Yield keyword arguments for the model's forward, the likeliest first."""
    if (special := INPUTS.get(type(model).__name__)) is not None:
        yield special(model)
    parameters = inspect.signature(model.forward).parameters
    required = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    main = [
        n
        for n in ("input_ids", "pixel_values", "input_features", "input_values", "audio_values", "past_values")
        if n in parameters
    ]
    towers = [n for n in ("decoder_input_ids",) if n in parameters]
    own = getattr(model, "main_input_name", None)
    sets = [
        required + main + towers,
        required + main,
        *([*required, n, *towers] for n in main),
        [*required, "input_ids", "pixel_values"],
    ]
    if isinstance(own, str) and own in parameters:
        sets.insert(2, [*required, own, *towers])
    sets += [
        required,
        [*required, "inputs_embeds", *towers],
        [*required, "inputs_embeds", "attention_mask"],
        required + main + ["attention_mask"],
    ]
    seen, count = set(), 0
    for names in sets:
        names = tuple(dict.fromkeys(n for n in names if n in parameters))
        if not names or names in seen:
            continue
        seen.add(names)
        choices = [_values(model, name) for name in names]
        if not all(choices):
            continue
        for values in itertools.islice(itertools.product(*choices), 16):
            count += 1
            if count > _MOST_TRIES:
                return
            yield {n: (v() if callable(v) else v) for n, v in zip(names, values, strict=True)}


def _config(model):
    return getattr(model, "config", None)


def _attribute(config, *names, default=None):
    for name in names:
        value = getattr(config, name, None)
        if value is not None and not isinstance(value, dict):
            return value
    for sub in ("text_config", "vision_config", "audio_config", "backbone_config", "encoder", "decoder"):
        inner = getattr(config, sub, None)
        if inner is not None:
            value = _attribute(inner, *names)
            if value is not None:
                return value
    return default


def _width(model):
    return _attribute(_config(model), "hidden_size", "d_model", "n_embd", "embed_dim", "dim", "hidden_dim", default=32)


def _vocabulary(model):
    try:
        size = model.get_input_embeddings().num_embeddings
        if isinstance(size, int):
            return size
    except Exception:  # many have none
        pass
    return _attribute(_config(model), "vocab_size", default=100)


def _ids(model, *shape):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, max(5, min(_vocabulary(model), 128) - 45), shape, generator=generator)


def _square(value):
    return tuple(value)[-2:] if isinstance(value, (list, tuple)) else (value, value)


def _images(model):
    config = _config(model)
    channels = _attribute(config, "num_channels", "in_channels", "in_chans", "input_channels", default=3)
    channels = channels[0] if isinstance(channels, (list, tuple)) else channels
    size = _attribute(config, "image_size", "img_size", "crop_size", "spatial_shapes", default=64)
    patch = _attribute(config, "patch_size", default=16)
    frames = _attribute(config, "num_frames", "frames_per_clip", default=2)
    try:
        height, width = _square(size)
    except Exception:
        height, width = 64, 64
    single = [
        lambda: noise(BATCH, channels, height, width),
        lambda: noise(BATCH, 3, 64, 64),
        lambda: noise(1, 3, 224, 224),
    ]
    videos = [lambda: noise(BATCH, frames, channels, height, width)]
    flat = []
    if isinstance(patch, int):
        times = _attribute(config, "temporal_patch_size", default=2)
        flat = [
            lambda: noise(16, channels * patch * patch),
            lambda: noise(16, channels * patch * patch * times),
            lambda: noise(16, channels * patch * patch * 2),
            lambda: noise(BATCH, 16, channels * patch * patch),
            lambda: noise(16, channels, patch, patch),
        ]
    return [*single[:1], *videos, *single[1:], *flat]


def _values(model, name):
    config, width = _config(model), _width(model)
    if name in ("input_ids", "decoder_input_ids", "text_input_ids", "src_tokens"):
        return [
            lambda: _ids(model, BATCH, LENGTH),
            lambda: _ids(model, BATCH, 64),
            lambda: _ids(model, BATCH, LENGTH, _attribute(config, "num_codebooks", "num_quantizers", default=4)),
        ]
    if name in ("pixel_values", "pixel_values_videos", "images", "flattened_patches", "image", "videos"):
        return _images(model)
    if name in ("input_features", "features", "audio_values", "spectrogram", "mel_spectrogram"):
        mel = _attribute(
            config,
            "num_mel_bins",
            "feature_size",
            "input_feat_per_channel",
            "num_mels",
            "n_mels",
            "num_mel_filters",
            "model_in_dim",
            "in_channels",
            "feature_projection_input_dim",
            "input_dim",
            "input_channels",
            "mel_bins",
            default=80,
        )
        source = _attribute(config, "max_source_positions", default=100)
        return [
            lambda: noise(BATCH, mel, 2 * source), lambda: noise(BATCH, 200, mel), lambda: noise(BATCH, mel, 200),
            lambda: noise(BATCH, 1, 1024, mel), lambda: noise(BATCH, 96, 64), lambda: noise(mel, 200),
            lambda: noise(BATCH, 64, width),
        ]  # fmt: skip
    if name in ("input_values", "waveform", "wav", "audio"):
        mel = _attribute(config, "num_mel_bins", default=80)
        longest = _attribute(config, "max_length", default=200)
        return [
            lambda: noise(BATCH, 4000),
            lambda: noise(BATCH, 1, 4000),
            lambda: noise(BATCH, longest, mel),
            lambda: _ids(model, BATCH, LENGTH),
            lambda: noise(BATCH, 1, 24000),
        ]
    if name in (
        "hidden_states",
        "inputs_embeds",
        "x",
        "hidden_state",
        "embeddings",
        "embedding_output",
        "inputs",
        "query_embeds",
        "encoder_hidden_states",
        "input_embeds",
        "input_tensor",
        "tgt",
    ):
        patch = _attribute(config, "patch_size")
        if isinstance(patch, int) and any("grid" in n for n in inspect.signature(model.forward).parameters):
            times = _attribute(config, "temporal_patch_size", default=1)
            channels = _attribute(config, "in_channels", "in_chans", "num_channels", default=3)
            return [lambda: noise(16, channels * times * patch * patch), lambda: noise(BATCH, LENGTH, width)]
        return [
            lambda: noise(BATCH, LENGTH, width),
            lambda: noise(BATCH, width, 16, 16),
            lambda: noise(16, width),
            lambda: noise(BATCH, _attribute(config, "num_channels", "in_channels", default=3), 64, 64),
        ]
    if name in ("input_features_mask", "feature_attention_mask"):
        source = _attribute(config, "max_source_positions", default=100)
        return [
            lambda: torch.ones(BATCH, 2 * source, dtype=torch.long),
            lambda: torch.ones(BATCH, 200, dtype=torch.long),
        ]
    if name == "encoder_hidden_states":
        inner = getattr(config, "encoder_hidden_size", None) or width
        return [lambda: noise(BATCH, LENGTH, inner), lambda: noise(BATCH, LENGTH, width)]
    if name in ("attention_mask", "decoder_attention_mask"):
        return [lambda: torch.ones(BATCH, LENGTH, dtype=torch.long), lambda: None]
    if name == "bbox":
        return [lambda: torch.zeros(BATCH, LENGTH, 4, dtype=torch.long)]
    if name in ("past_values", "future_values"):
        length = _attribute(config, "context_length", "seq_length", default=32)
        channels = _attribute(config, "num_input_channels", "input_size", default=1)
        return [lambda: noise(BATCH, length, channels), lambda: noise(BATCH, length)]
    if name in (
        "grid_thw",
        "image_grid_thw",
        "grid_hws",
        "spatial_shapes",
        "target_sizes",
        "tgt_sizes",
        "grid_hw",
        "image_sizes",
    ):
        if "thw" not in name:
            return [lambda: torch.tensor([[4, 4]]), lambda: torch.tensor([[8, 8]] * BATCH)]
        return [lambda: torch.tensor([[1, 4, 4]])]
    if name in ("position_ids",):
        return [lambda: torch.arange(LENGTH)[None].expand(BATCH, -1)]
    if name in ("cache_position",):
        return [lambda: torch.arange(LENGTH)]
    if name in ("visual_feats",):
        return [lambda: noise(BATCH, 4, config.visual_feat_dim)]
    if name in ("visual_pos",):
        return [lambda: torch.rand(BATCH, 4, config.visual_pos_dim)]
    if name in ("state", "states"):
        return [lambda: noise(BATCH, LENGTH, config.state_dim)]
    if name in ("pixel_mask",):
        return [lambda: None]
    return [lambda: None]


def block_candidates(block, width, head_size):
    """Yield keyword arguments for one block of a model that cannot be run whole."""
    if (special := INPUTS.get(type(block).__name__)) is not None:
        yield special(block)
    parameters = inspect.signature(block.forward).parameters
    rows = LENGTH
    for shape in ((BATCH, rows, width), (rows, width), (BATCH, 4, 4, width), (BATCH, width, 4, 4)):
        for size in (head_size, head_size // 2, 2 * head_size):
            angles = (torch.ones(*shape[:-1][-2:], size), torch.zeros(*shape[:-1][-2:], size))
            known = {
                "position_embeddings": angles,
                "position_embeddings_global": angles,
                "position_embeddings_local": angles,
                "rotary_pos_emb": torch.zeros(rows, size),
                "cu_seqlens": torch.tensor([0, rows], dtype=torch.int32),
                "position_ids": torch.arange(rows)[None],
                "encoder_hidden_states": noise(BATCH, rows, width),
                "attention_mask": None,
                "max_seqlen": rows,
            }
            states = [name for name in parameters if name not in known][:1]
            wanted = {name: value for name, value in known.items() if name in parameters}
            if states:
                yield {states[0]: noise(*shape), **wanted}
