"""What tells the base model of a run from another: the values of its weights, and what its tokenizer makes of texts."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from adapterx.checkpoint.base import checksum
from adapterx.errors import CheckpointError, speaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Case, accents, compatibility forms, digits, punctuation, scripts, white space: where tokenizers differ.
PROBES = (
    "The Quick brown FOX jumps; over 1,234.5 lazy dogs!",
    "Café naïve Straße ﬁne  I'm   don't\tÅngström №",
    "日本語のテキスト 한국어 Привет مرحبا 🙂 <mask> [MASK] </s>",
)


def describe_base(base: nn.Module, tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """Return the SHA-256 of a base model's weights and of its tokenizer's vocabulary and ways.

    Args:
        base: as `load_text_model` returns it, before anything is attached or trained.
        tokenizer: likewise.
    """
    # A pooler that the file lacks is drawn anew at every loading; nothing here reads it.
    weights = {name: each for name, each in base.named_parameters() if not name.startswith("pooler.")}
    return {"weights": checksum(weights), "tokenizer": _fingerprint(tokenizer)}


def check_base(recorded: Mapping[str, str], found: Mapping[str, str], source: str) -> None:
    """Refuse a base model that is not the one of the training.

    Raises:
        CheckpointError: its weights or its tokenizer are others.
    """
    differ = sorted(part for part in recorded if found.get(part) != recorded[part])
    if differ:
        raise CheckpointError(
            f"{speaker()}: the base model {source} must be that of the training, its {' and '.join(differ)} differ; "
            "name the right one with --model, or give --other-base to go on with this one"
        )


def _fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    whole = [tokenizer(text)["input_ids"] for text in PROBES]
    cut = [tokenizer(text, truncation=True, max_length=8)["input_ids"] for text in PROBES]
    text = json.dumps([sorted(tokenizer.get_vocab().items()), whole, cut])
    return hashlib.sha256(text.encode()).hexdigest()
