"""The options of the adapter: one for each field of AdapterConfig, which gives it its name and its type."""

from collections.abc import Mapping
from typing import Any

from adapterx.cli.recipes import BOTTLENECK_DIM, INIT
from adapterx.cli.words import READ_FROM_A_WORD
from adapterx.config import AdapterConfig
from adapterx.errors import ConfigError

# One line for each field of AdapterConfig, which gives it its name and its type, and for the second way to say targets.
ADAPTER_OPTIONS = {
    "bottleneck_dim": f"Width of the bottleneck (default {BOTTLENECK_DIM}), or one per block: default=64,0=8.",
    "reduction_factor": "Hidden size divided by the width, instead; likewise.",
    "placement": "sequential (default), parallel, normed_sum (behind the LayerNorm of a BERT-like sublayer), "
    "residual_sum or parallel_residual (on the residual stream of models such as GPT-2 and Llama).",
    "added_to": "With normed_sum: sum (default), sum_plus_residual, normed_plus_residual, normed; with residual_sum: "
    "sum, sum_plus_residual.",
    "positions": "attention, feed_forward, cross_attention; repeat for several (default: the first two).",
    "activation": "gelu (default), relu, silu, tanh, mish, prelu, ...",
    "scaling": "A number (default 1), learned, or learned_per_channel.",
    "dropout": "Dropout of the branch (default 0).",
    "down_bias": "Bias of the down projection (default: yes).",
    "up_bias": "Bias of the up projection (default: yes).",
    "init": f"houlsby, xavier or he (default {INIT}).",
    "init_up": "zero (default: starts as the base model) or near_zero.",
    "norm_before": "A LayerNorm before the down projection (default: no).",
    "norm_after": "A LayerNorm of the branch, or of the sum with what it is added to: branch or sum (default: none).",
    "gating": "Multiply the branch of each text by a trained gate (default: no).",
    "phm": "Compacter's layers, as dim=4, or dim=4,rank=2,shared_weight=true: values of PHMConfig (default: none).",
    "stochastic_depth": "Probability of dropping the whole branch of a text in training (default 0).",
    "layers": "Only these blocks, such as 0,1,8-11 (default: all).",
    "target_modules": "Suffix of module names to adapt instead; repeat for several.",
    "target_regex": "Regular expression for whole module names, instead.",
    "invertible": "An invertible adapter at the embeddings: nice or glow (default: none).",
    "invertible_reduction_factor": "Half the width of the embeddings divided by that of its bottleneck (default 2).",
    "train_norms": "Train copies of the model's norms in the adapted blocks too (default: no).",
    "modules_to_save": "Module of which the adapter trains a copy; repeat for several.",
}


def adapter_values(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of AdapterConfig that were typed; what was not is left to its default."""
    given = {name: value for name, value in typed.items() if value not in (None, [])}
    given |= {name: read(given[name]) for name, read in READ_FROM_A_WORD.items() if name in given}
    if "target_regex" in given:
        if "target_modules" in given:
            raise ConfigError("train: --target-modules and --target-regex exclude each other")
        given["target_modules"] = given.pop("target_regex")
    return given


def adapter_config(method: str, given: Mapping[str, Any]) -> AdapterConfig | None:
    """Return the configuration of the adapter, with the defaults of `adapterx.cli.recipes`; None if there is none.

    Raises:
        ConfigError: a value is wrong, or the method trains no adapters.
    """
    if method == "adapters":
        sized = any(given.get(name) is not None for name in ("bottleneck_dim", "reduction_factor"))
        return AdapterConfig(**({"init": INIT} | ({} if sized else {"bottleneck_dim": BOTTLENECK_DIM}) | given))
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        raise ConfigError(f"train: {named} can only be used with --method adapters, got --method {method}")
    return None
