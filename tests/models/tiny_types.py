"""Build a tiny random model of any model type that transformers knows."""

import importlib
import inspect
import re
from unittest import mock

import torch
from special_configs import CLASSES, CONFIGS, NAMES, UNINITIALIZED
from transformers import PretrainedConfig as PreTrainedConfig
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 128
MOST_PARAMETERS = 60_000_000  # what a model may have that cannot be made smaller than its defaults

_LAYERS = re.compile(
    r"(num_|n_|text_|encoder_|decoder_|vision_|audio_)*(hidden_|encoder_|decoder_|transformer_|mm_|temporal_|resampler_|"
    r"block_|attention_|dec_|enc_)*(layers?|depths?|blocks?|n_layers?)"
)
_HEADS = re.compile(
    r".*(num|n|attention|attn|q|query|temporal)_(attn_|attention_|q_|qk_|query_|v_|value_)?heads?|.*n_head|.*_num_heads|num_head"
)
_KV_HEADS = re.compile(r".*(kv|key_value|key)_heads?|.*heads_kv|n_head_kv|num_key_value_heads|linear_num_key_heads")
_HEAD_DIM = re.compile(
    r"rotary_dim|.*head_(dim|size)|d_kv|attention_key_size|.*head_width|.*head_dim|.*key_value_channels|attention_head_size"
)
_EXPERTS = re.compile(r".*(num|n)_(\w+_)?experts|.*moe_num_experts|.*(num|n)_routed_experts")
_EXPERTS_USED = re.compile(
    r".*(experts?_per_tok(en)?|top_?k(_experts)?|moe_topk|moe_k|num_selected_experts|experts_per_token)"
)
_INNER = re.compile(
    r".*(intermediate|ffn|inner|mlp|feed_forward|filter|hidden_act_dim|d_ff|linear_units|expert).*(size|dim|hidden.*)?"
)
_WIDTH = re.compile(
    r".*(hidden|embed|embd|dim|d_model|width|_size|channels|state_size|features|n_embd|lora_rank|kv_rank|rank).*"
)
_KEEP = re.compile(
    r".*(image|patch|crop|window|kernel|stride|vocab|position|max_|token|type_|num_labels|chunk|block_size|sample|rate|"
    r"num_channels|in_channels|in_chans|input_channels|mel|bins|temporal_patch|pool|grid|factor|shape|_ratio|conv_k|queries|"
    r"context_length|prediction_length|num_buckets|out_indices|out_features|seed|levels|points|n_fft|hop|groups?|spatial_merge).*"
)


def shrink(config, factor=1):
    """Return keyword arguments that make a tiny config of this one's class."""
    changes = {}
    for name, value in list(vars(config).items()):
        if name.startswith("_") or name in ("transformers_version",):
            continue
        if isinstance(value, PreTrainedConfig):
            changes[name] = _config_values(value, shrink(value))
            continue
        if isinstance(value, bool) or value is None:
            continue
        new = _shrink_value(name, value, factor)
        if _KV_HEADS.fullmatch(name) and value == vars(config).get("num_attention_heads"):
            new = min(value, 4)
        if new is not None and new != value:
            changes[name] = new
    if kept := _kinds_of_layers(config):
        changes["layer_types"] = kept
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            if name in vars(config):
                changes[name] = len(kept)
        for name, value in vars(config).items():
            if name.endswith("layer_types") and name != "layer_types" and isinstance(value, list) and value:
                changes[name] = (list(dict.fromkeys(value)) * len(kept))[: len(kept)]
    _shrink_stages(config, changes)
    for name in ("rope_parameters", "rope_scaling"):
        rope = vars(config).get(name) or ({"rope_type": "default"} if name in vars(config) else None)
        if rope and ("mrope_section" in rope or _reads_sections(type(config))):
            part = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1
            half = int(4 * factor * part)
            changes[name] = {**rope, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
    return changes


def _kinds_of_layers(config):
    """Return each kind of layer that a configuration names, for two layers at least; nothing where it names none."""
    types = vars(config).get("layer_types")
    kinds = list(dict.fromkeys(types)) if isinstance(types, (list, tuple)) else []
    return kinds if len(kinds) > 1 else kinds * 2


def _reads_sections(config_class):
    """Tell whether the code of a model divides rotary positions into sections of time, height and width."""
    try:
        module = importlib.import_module(config_class.__module__.replace("configuration_", "modeling_"))
        return "mrope_section" in inspect.getsource(module)
    except (ImportError, OSError):
        return False


def _shrink_stages(config, changes):
    """Name the first stages of a backbone that has fewer layers now than the stages it named."""
    values = vars(config)
    features = values.get("_out_features") or values.get("out_features")
    if features and any(
        re.fullmatch(r"stage\d+", str(f)) and int(f[5:]) > changes.get("num_hidden_layers", 99) for f in features
    ):
        count = len(features)
        names = [f"stage{i + 1}" for i in range(max(2, count) - count, max(2, count))]
        changes |= {
            "num_hidden_layers": max(2, count),
            "out_features": names,
        }
        changes["out_indices"] = None
    if per_layer := values.get("per_layer_config"):
        layers = changes.get("num_hidden_layers", 99)
        changes["per_layer_config"] = {k: v for k, v in per_layer.items() if int(k) < layers} or None


def _config_values(config, changes):
    return {**_plain(config), **changes, **special(config.model_type or type(config).__name__, changes)}


def special(model_type, changes):
    """Return what a type needs beyond what generic rules made of its configuration."""
    found = CONFIGS.get(model_type, {})
    return found(changes) if callable(found) else found


def _plain(config):
    values = {
        k: v
        for k, v in config.to_dict().items()
        if k not in ("transformers_version", "torch_dtype", "dtype", "_name_or_path", "per_layer_config")
    }
    return values


def _shrink_value(name, value, factor):
    if isinstance(value, int):
        return _shrink_number(name, value, factor)
    if (
        isinstance(value, (list, tuple))
        and value
        and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    ):
        if name in (
            "depths",
            "num_blocks",
            "num_layers",
            "layers",
            "encoder_layers",
            "decoder_layers",
            "block_repeats",
        ) or name.endswith("depths"):
            return type(value)(min(v, 2) for v in value)
        if name.endswith(("token_id", "token_ids")):
            return type(value)(v % VOCABULARY for v in value)
    return None


def _shrink_number(name, value, factor):
    if name in NAMES:
        return min(value, NAMES[name])
    if name.endswith(("token_id", "token_index", "_token")) or name.endswith("_id") or name.endswith("token_idx"):
        return value if value < VOCABULARY else VOCABULARY - 1 - (value % 40)
    if "vocab" in name:
        return min(value, VOCABULARY)
    if _EXPERTS_USED.fullmatch(name):
        return min(value, 2)
    if _EXPERTS.fullmatch(name):
        return min(value, 4)
    if _LAYERS.fullmatch(name):
        return min(value, 2)
    if _KV_HEADS.fullmatch(name):
        return min(value, 2)
    if _HEADS.fullmatch(name):
        return min(value, 4)
    if _HEAD_DIM.fullmatch(name):
        return min(value, 8 * factor)
    if _KEEP.fullmatch(name):
        return None
    if _INNER.fullmatch(name) and value > 8:
        return min(value, 48 * factor)
    if _WIDTH.fullmatch(name) and value > 8:
        return min(value, 32 * factor)
    return None


def all_types():
    """Return model type or class name to configuration class, sub-configurations included."""
    found = {}

    def add(cls, name):
        if cls in found.values():
            return
        name = getattr(cls, "model_type", "") or name
        name = name if name and name not in found else cls.__name__
        found[name] = cls
        subs = getattr(cls, "sub_configs", None)
        for sub in (subs if isinstance(subs, dict) else {}).values():
            if sub.__name__ not in ("AutoConfig", "PretrainedConfig", "PreTrainedConfig"):
                add(sub, getattr(sub, "model_type", ""))

    for model_type in CONFIG_MAPPING:
        add(CONFIG_MAPPING[model_type], model_type)
    return found


def model_class(config_class):
    """Return the bare model class of a configuration class, or None."""
    if (named := CLASSES.get(getattr(config_class, "model_type", "") or config_class.__name__)) is not None:
        module, name = named.split(":")
        return getattr(importlib.import_module(f"transformers.models.{module}"), name, None)
    mapping = modeling_auto.MODEL_MAPPING
    if config_class in mapping:
        cls = mapping[config_class]
        return cls[0] if isinstance(cls, (list, tuple)) else cls
    name = config_class.__module__.replace("configuration_", "modeling_")
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    candidates = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, PreTrainedModel)
        and cls.__module__ == name
        and getattr(cls, "config_class", None) is config_class
        and cls.forward is not torch.nn.modules.module._forward_unimplemented
        and "forward" in vars(cls)
    ]
    candidates.sort(key=lambda cls: (not cls.__name__.endswith("Model"), "For" in cls.__name__, len(cls.__name__)))
    return candidates[0] if candidates else None


def configs(model_type, config_class):
    """Yield tiny configurations of one type, the smallest first."""
    try:
        base = config_class()
    except Exception:
        base = config_class(**special(model_type, {}))
    attempts = [lambda: shrink(base), lambda: shrink(base, 2), lambda: only_layers(base)]
    for attempt in attempts:
        try:
            changes = attempt()
            extra = {"attn_implementation": "eager", **special(model_type, changes)}
            attention = extra.pop("attn_implementation")
            config = config_class(**{**without_drop(base), **changes, **extra})
            config._attn_implementation = attention
            yield config
        except Exception as error:  # the next attempt may do
            yield error


def only_layers(config):
    changes = {}
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            changes[name] = _config_values(value, only_layers(value))
        elif isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
            if _LAYERS.fullmatch(name) or name in ("first_k_dense_replace",):
                changes[name] = min(value, 2)
            elif _EXPERTS.fullmatch(name):
                changes[name] = min(value, 4)
            elif _EXPERTS_USED.fullmatch(name):
                changes[name] = min(value, 2)
    _shrink_stages(config, changes)
    if kept := _kinds_of_layers(config):
        changes |= {"layer_types": kept, "num_hidden_layers": len(kept)}
    return changes


def without_drop(config):
    return {
        name: 0.0
        for name, value in vars(config).items()
        if isinstance(value, float) and "drop" in name and not name.startswith("_")
    }


def _with_sane_weights(model):
    """Give what a model leaves as memory held it some numbers."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() and not parameter.abs().max() < 1e3:
                parameter.normal_(0, 0.02)
    return model


def _instance(cls, config):
    """Return a model, with PyTorch's own first weights where transformers fails to give it others."""
    if config.model_type not in UNINITIALIZED:
        return cls(config)
    with mock.patch.object(cls, "_init_weights", return_value=None):
        return cls(config)


def _without_memory(cls, config):
    """Return a model whose weights have no memory; None where its own code reads a weight's value."""
    try:
        with torch.device("meta"):
            return _instance(cls, config)
    except NotImplementedError:
        return None


def build(model_type, config_class, device="cpu", start=0):
    """Return (model, number of the attempt), or raise the last error."""
    cls, last = model_class(config_class), []
    if cls is None:
        raise LookupError("no model class")
    for number, config in enumerate(configs(model_type, config_class)):
        if number < start:
            continue
        if isinstance(config, Exception):
            last.append(config)
            continue
        try:
            probe = _without_memory(cls, config)
            size = sum(p.numel() for p in probe.parameters()) if probe is not None else 0
            if size > MOST_PARAMETERS:
                raise ValueError(f"{size:,} parameters")
            if device == "meta" and probe is not None:
                return probe.eval(), number
            torch.manual_seed(0)
            return _with_sane_weights(_instance(cls, config)).eval(), number
        except Exception as error:
            last.append(error)
    raise RuntimeError(" | ".join(f"{type(e).__name__}: {str(e)[:150]}" for e in last) or "no attempt is left")
