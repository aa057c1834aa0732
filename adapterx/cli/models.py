"""Load base models and tokenizers without surprises: no pickles, no remote code, no network for a local folder."""

import inspect
import os
import sys
import warnings
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adapterx.cli.base_folder import check_tokenizer_files
from adapterx.cli.loading import load_config, loading, reason_of, source_of
from adapterx.cli.recipes import MAX_LENGTH
from adapterx.couplings import INVERTIBLES
from adapterx.errors import CheckpointError, ConfigError, DataError, speaker
from adapterx.host import ADAPTERS, COPIES
from adapterx.positions import max_positions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

SHORTEST = 3  # tokens: a text of one, between two that mark its ends


def load_text_model(model: str) -> "tuple[PreTrainedTokenizerBase, nn.Module]":
    """Load a tokenizer and its base model, and check that one reads what the other writes.

    Raises:
        CheckpointError: one cannot be loaded, they do not belong together, or the model does not read text.
    """
    load_config(model)  # first: a tokenizer reads it too, and the model takes much longer
    tokenizer = load_tokenizer(model)
    base = load_base(model)
    check_belong(model, tokenizer, base)
    check_reads_text(model, base)
    return tokenizer, base


def check_belong(model: str, tokenizer: "PreTrainedTokenizerBase", base: nn.Module) -> None:
    """Refuse a tokenizer that makes tokens for which the model has no embeddings.

    Raises:
        CheckpointError: it does.
    """
    rows, largest = embedded_tokens(base), _largest_id(tokenizer)
    if rows is not None and largest >= rows:
        raise CheckpointError(
            f"{speaker()}: the tokenizer of {model} must belong to the model: it makes token ids up to {largest}, "
            f"the model has embeddings for {rows} tokens"
        )


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer and give it a padding token.

    Raises:
        CheckpointError: there is none, it knows no words, or it has no token that could pad.
    """
    from transformers import AutoTokenizer

    source, local = source_of(model)
    if os.path.isdir(source):
        check_tokenizer_files(Path(source))
    with loading(f"the tokenizer of {model}", source, local):
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens)
    if not words:  # without its files a tokenizer is made up, for which every word is unknown
        files = ", ".join(sorted({*tokenizer.vocab_files_names.values(), "tokenizer.json"}))
        raise CheckpointError(
            f"{speaker()}: {model} must hold the vocabulary of its tokenizer, the files are missing or empty ({files})"
        )
    if not isinstance(tokenizer.model_max_length, (int, float)):  # the library compares it with lengths later
        raise CheckpointError(
            f"{speaker()}: the tokenizer of {model} must have a number for model_max_length, "
            f"got {tokenizer.model_max_length!r}"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(f"{speaker()}: the tokenizer of {model} must have a padding or an end token")
        tokenizer.pad_token = tokenizer.eos_token  # decoders pad with it; the mask hides it anyway
    with loading(f"the tokenizer of {model}", source, local):  # some damage shows only at work
        tokenizer.pad(tokenizer(["", "one text"], truncation=True, max_length=SHORTEST), return_tensors="pt")
        _largest_id(tokenizer)
    return tokenizer


def load_base(model: str, *, whole: bool = False) -> nn.Module:
    """Load a base model without head, in float32.

    Args:
        model: a folder, or the name of a model on the hub.
        whole: whether an encoder-decoder has its decoder, and BERT its pooler where the file has one.

    Raises:
        CheckpointError: it cannot be loaded, or its file lacks weights.
    """
    source, local = source_of(model)
    with loading(f"the model {model}", source, local), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = load_config(model)
        loader = _class_for(config, whole=whole)
        options: dict[str, Any] = {"config": config, "local_files_only": local, "use_safetensors": True}
        if not whole and "add_pooling_layer" in inspect.signature(loader.__init__).parameters:
            options["add_pooling_layer"] = False  # nothing here reads BERT's pooler, so it should not be carried along
        base, info = loader.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **options)
        unneeded = _unneeded(base, whole=whole)
        if _has_decoder(base) and not whole:
            base = base.get_encoder()
        if any(name.startswith("pooler.") for name in info["missing_keys"]):
            base.pooler = None  # made up at loading
    check_weights(model, info, unneeded)
    return base


def check_weights(model: str, info: dict[str, Any], unneeded: Set[str] = frozenset()) -> None:
    """Refuse a model of which loading has made something up, or dropped adapters.

    Args:
        model: where it was loaded from, for the message.
        info: what `from_pretrained` tells of missing and unexpected weights.
        unneeded: the weights that the file may lack.

    Raises:
        CheckpointError: it has.
    """
    dropped = sorted(key for key in info["unexpected_keys"] if {ADAPTERS, COPIES, INVERTIBLES} & set(key.split(".")))
    if dropped:
        raise CheckpointError(
            f"{speaker()}: model must be a base without adapters, {model} was written by save_pretrained with adapters "
            f"inside ({dropped[0]}), which loading would drop; name the base, and save adapters by save_adapter"
        )
    missing = sorted(name for name in info["missing_keys"] if name not in unneeded and not name.startswith("pooler."))
    wrong = missing or sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise CheckpointError(f"{speaker()}: {len(wrong)} weights of {model} are missing or do not fit: {wrong[:3]}")


def resolve_max_length(
    asked: int | None, tokenizer: "PreTrainedTokenizerBase", base: nn.Module, default: int = MAX_LENGTH
) -> int:
    """Return how many tokens of a text are read.

    Raises:
        ConfigError: more are asked for than the model has positions.
    """
    limit = max_positions(base, base.config)
    if asked is not None:
        if asked < SHORTEST or (limit is not None and asked > limit):
            range_ = f"be at least {SHORTEST}" if limit is None else f"lie between {SHORTEST} and {limit}"
            raise ConfigError(f"train: max_length must {range_}, the model's positions, got {asked}")
        return asked
    advised = tokenizer.model_max_length  # what the tokenizer's makers advise; not every model ends there
    advice = [advised] if isinstance(advised, int) and advised >= SHORTEST else []
    return min(default, *advice, *([limit] if limit is not None else []))


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    max_length: int,
    *,
    embedded: int | None = None,
    stride: int | None = None,
) -> list[dict[str, Any]]:
    """Tokenize texts; padding is left to the batch.

    Args:
        tokenizer: as `load_text_model` returns it.
        texts: what to read.
        max_length: tokens read of each text.
        embedded: of how many tokens the base model has embeddings, see `embedded_tokens`.
        stride: give all windows of a text, which share so many tokens, with `overflow_to_sample_mapping`.

    Raises:
        DataError: a text has no tokens, such as an empty one where the tokenizer adds none of its own, or it holds a
            token for which the model has no embedding.
    """
    windows = {} if stride is None else {"stride": stride, "return_overflowing_tokens": True}
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, **windows)
    for i, ids in enumerate(encoded["input_ids"]):
        text = texts[i if stride is None else encoded["overflow_to_sample_mapping"][i]]
        if not ids:
            raise DataError(f"{speaker()}: a text must have tokens, the tokenizer finds none in {text[:80]!r}")
        if embedded is not None and max(ids) >= embedded:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise DataError(
                f"{speaker()}: a text must not hold the token {token!r}, for which the model has no embedding: "
                f"{text[:80]!r}"
            )
    return [{name: column[i] for name, column in encoded.items()} for i in range(len(encoded["input_ids"]))]


def _largest_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the largest token id that is sure to come up.

    Added tokens that nothing uses may lie beyond the table of a published model; `encode` looks at each text.
    """
    words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
    marks = tokenizer("", truncation=True, max_length=SHORTEST)["input_ids"]
    ids = [*tokenizer.convert_tokens_to_ids(list(words)), *marks]
    return max(ids + [number for number in (tokenizer.pad_token_id, tokenizer.unk_token_id) if number is not None])


def _class_for(config: "PretrainedConfig", *, whole: bool) -> Any:
    """Return the class to load: the model without head, and unless all is wanted, the encoder where it can be had."""
    import transformers

    base = transformers.AutoModel._model_mapping.get(type(config), None)
    if whole or not isinstance(base, type):
        return transformers.AutoModel
    saved = config.architectures[0] if isinstance(config.architectures, list) and config.architectures else None
    if isinstance(saved, str) and saved.endswith(("Encoder", "EncoderModel", "Stack")):
        part = getattr(sys.modules[base.__module__], saved, None)  # the folder holds an encoder alone
        if isinstance(part, type) and issubclass(part, transformers.PreTrainedModel):
            return part
    encoder = transformers.AutoModelForTextEncoding._model_mapping.get(type(config), None)
    return encoder if isinstance(encoder, type) and encoder.__name__.endswith("EncoderModel") else base


def _has_decoder(base: nn.Module) -> bool:
    return "decoder_input_ids" in inspect.signature(base.forward).parameters


def _unneeded(base: nn.Module, *, whole: bool) -> set[str]:
    """Return the weights that a file may lack: sinusoidal positions, and those of a decoder that is not wanted."""
    read = base.get_encoder() if _has_decoder(base) and not whole else base
    kept = {id(parameter) for parameter in read.parameters()}
    for module in base.modules():
        if "Sinusoidal" in type(module).__name__:
            kept -= {id(parameter) for parameter in module.parameters()}
    return {name for name, parameter in base.named_parameters(remove_duplicate=False) if id(parameter) not in kept}


def embedded_tokens(base: nn.Module) -> int | None:
    """Return of how many tokens a base model has embeddings; None: it does not tell."""
    try:
        table = base.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return getattr(table, "num_embeddings", None)


def check_reads_text(model: str, base: nn.Module) -> None:
    """Try two tokens: what else a model may want, such as an image, would be missed in the middle of the training."""
    ids = torch.zeros(1, 2, dtype=torch.int64)
    try:
        with torch.inference_mode():
            states = base.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
        shape = tuple(states.shape)
    except Exception as error:
        kind = type(error).__name__
        said = reason_of(error)
        raise CheckpointError(f"{speaker()}: {model} must be a model that reads text alone: {kind}: {said}") from error
    if len(shape) != 3:
        raise CheckpointError(
            f"{speaker()}: {model} must return states (batch, tokens, hidden size), got the shape {shape} of "
            f"{type(base).__name__}"
        )
