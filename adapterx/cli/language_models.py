"""Load language models with their heads, as generation needs them."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adapterx.cli.loading import load_config, loading, source_of
from adapterx.cli.models import check_belong, check_weights, load_tokenizer
from adapterx.errors import CheckpointError, speaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_language_model(model: str, kind: str) -> "tuple[PreTrainedTokenizerBase, nn.Module]":
    """Load a tokenizer and a language model with its head, in float32.

    Args:
        model: a folder, or the name of a model on the hub.
        kind: the class of transformers, `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`.

    Raises:
        CheckpointError: one cannot be loaded, they do not belong together, or the model is of another kind.
    """
    import transformers

    config = load_config(model)
    auto = getattr(transformers, kind)
    if type(config) not in auto._model_mapping:
        raise CheckpointError(
            f"{speaker()}: {model} must be a model for {kind}, transformers knows none of the type {config.model_type}"
        )
    tokenizer = load_tokenizer(model)
    source, local = source_of(model)
    options: dict[str, Any] = {"config": config, "local_files_only": local, "use_safetensors": True}
    with loading(f"the model {model}", source, local), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if getattr(config, "is_decoder", None) is False and kind == "AutoModelForCausalLM" and _is_encoder(config):
            config.is_decoder = True  # BERT and its kin look ahead otherwise
        language_model, info = auto.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **options
        )
    check_weights(model, info)
    check_belong(model, tokenizer, language_model)
    tokenizer.padding_side = "right"  # generation, which continues at the right, pads at the left
    return tokenizer, language_model.eval()


def _is_encoder(config: Any) -> bool:
    import transformers

    return type(config) in transformers.AutoModelForMaskedLM._model_mapping
