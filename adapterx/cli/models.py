"""Load base models and tokenizers without surprises: no pickles, no remote code, no network for a local folder."""

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adapterx.cli.recipes import MAX_LENGTH
from adapterx.cli.tables import first_line
from adapterx.errors import CheckpointError, ConfigError, DataError, speaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def quiet_transformers() -> None:
    """Leave only errors: this program draws its own progress bars and reports what matters itself."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _check_folder(model: str) -> bool:
    """Return whether `model` is a folder here (else it is a name on a hub), and refuse folders that cannot serve."""
    path = Path(model)
    if not path.is_dir():
        # A hub name is `name` or `owner/name`; everything else can only be meant as a path.
        if path.exists() or path.is_absolute() or model.startswith(".") or model.count("/") > 1:
            raise CheckpointError(f"{speaker()}: model must be a hub name or a folder, no such folder exists: {model}")
        return False
    names = [file.name for file in path.iterdir()]
    if "config.json" not in names:
        raise CheckpointError(f"{speaker()}: the model folder {model} has no config.json")
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        if pickled:
            raise CheckpointError(
                f"{speaker()}: the model folder {model} has only {pickled[0]}: a pickle can run any program when it is "
                "loaded, so it is refused; convert it where you trust it: "
                "model.save_pretrained(folder, safe_serialization=True)"
            )
        raise CheckpointError(f"{speaker()}: the model folder {model} has no .safetensors file")
    return True


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer and give it a padding token.

    Raises:
        CheckpointError: there is none, or it has no token that could pad.
    """
    from transformers import AutoTokenizer

    local = _check_folder(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=local)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"{speaker()}: cannot load the tokenizer of {model}: {first_line(error)}") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(f"{speaker()}: the tokenizer of {model} must have a padding or an end token")
        tokenizer.pad_token = tokenizer.eos_token  # decoders pad with it; the mask hides it anyway
    return tokenizer


def load_base(model: str) -> nn.Module:
    """Load a base model without head, in float32.

    Raises:
        CheckpointError: it cannot be loaded, or its file lacks weights.
    """
    import transformers

    local = _check_folder(model)
    try:
        config = transformers.AutoConfig.from_pretrained(model, local_files_only=local)
        loader = transformers.AutoModelForTextEncoding if config.is_encoder_decoder else transformers.AutoModel
        options: dict[str, Any] = {"config": config, "local_files_only": local, "use_safetensors": True}
        model_class = loader._model_mapping.get(type(config), None)
        if isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
            options["add_pooling_layer"] = False  # nothing here reads BERT's pooler, so it should not be carried along
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            base, info = loader.from_pretrained(model, dtype=torch.float32, output_loading_info=True, **options)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{speaker()}: cannot load the model {model}: {first_line(error)}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing or info["mismatched_keys"]:
        wrong = missing or sorted(str(key) for key in info["mismatched_keys"])
        raise CheckpointError(f"{speaker()}: {len(wrong)} weights of {model} are missing or do not fit: {wrong[:3]}")
    return base


def resolve_max_length(asked: int | None, tokenizer: "PreTrainedTokenizerBase", base: nn.Module) -> int:
    """Return how many tokens of a text are read.

    Raises:
        ConfigError: more are asked for than the model has positions.
    """
    positions = getattr(base.config, "max_position_embeddings", None) or tokenizer.model_max_length
    limit = int(min(tokenizer.model_max_length, positions))
    if asked is not None and not 3 <= asked <= limit:
        raise ConfigError(f"train: max_length must lie between 3 and {limit}, the model's positions, got {asked}")
    return min(MAX_LENGTH, limit) if asked is None else asked


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int) -> list[dict[str, list[int]]]:
    """Tokenize texts; padding is left to the batch.

    Raises:
        DataError: a text has no tokens, such as an empty one where the tokenizer adds none of its own.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    if [] in encoded["input_ids"]:
        text = texts[encoded["input_ids"].index([])]
        raise DataError(f"{speaker()}: a text must have tokens, the tokenizer finds none in {text[:80]!r}")
    return [{name: column[i] for name, column in encoded.items()} for i in range(len(texts))]
