"""Save the head of a classifier of sequences or tokens, and load it back: strict, without pickle, all or nothing."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adapterx.checkpoint.fitting import check_fit, copy_into
from adapterx.checkpoint.pair import read_pair, stored_metadata, write_pair
from adapterx.checks import check_finite, check_size
from adapterx.errors import CheckpointError, ConfigError, speaker, speaking_as
from adapterx.heads import ClassificationHead, SequenceClassifier, TokenClassificationHead, TokenClassifier
from adapterx.heads.labels import SINGLE_LABEL
from adapterx.sharding import gathered, written_once

HEADS = {kind.__name__: kind for kind in (ClassificationHead, TokenClassificationHead)}


@speaking_as("save_head")
def save_head(
    classifier: SequenceClassifier | TokenClassifier, folder: str | Path, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `head_config.json` and `head_model.safetensors`; an interruption leaves the old pair or the new one.

    Args:
        classifier: its head is written, its base model is not.
        folder: made if it is not there; an adapter may stand in the same one.
        metadata: further values for the JSON file, under `"metadata"`: what JSON can hold, less than 16 MiB.

    Raises:
        CheckpointError: the folder cannot be written, or the metadata cannot be stored.
    """
    document = {**_to_dict(classifier.head), "metadata": stored_metadata(metadata)}
    tensors = gathered(classifier.head.state_dict())
    written_once(classifier, lambda: write_pair(folder, "head", tensors, document))


@speaking_as("load_head")
def load_head(folder: str | Path) -> ClassificationHead | TokenClassificationHead:
    """Build the head that `save_head` wrote.

    Args:
        folder: what `save_head` wrote.

    Returns:
        A new head on the CPU, of the kind that was saved, for `classifier.head`.

    Raises:
        CheckpointError: the files are missing or damaged, or do not describe a head.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise CheckpointError(
            f"load_head: folder must be a path, got {type(folder).__name__}; restore_head(classifier, folder) copies a "
            "saved head into a classifier"
        )
    document, tensors = read_pair(folder, "head")
    head = _described(document, folder)
    check_fit(head.state_dict(), tensors, folder, planned=True)
    head.to_empty(device="cpu")
    copy_into(head.state_dict(), tensors)
    return head


@speaking_as("restore_head")
def restore_head(classifier: SequenceClassifier | TokenClassifier, folder: str | Path) -> None:
    """Copy a saved head into the classifier's, whose parameters stay the same objects.

    Args:
        classifier: its head must be of the saved one's kind, size, classes and pooling; the dropout is its own.
        folder: what `save_head` wrote.

    Raises:
        CheckpointError: the files are missing or damaged, or are of another kind of head; it is then as it was.
    """
    document, tensors = read_pair(folder, "head")
    saved, own = _to_dict(_described(document, folder)), _to_dict(classifier.head)
    usual = {"dense": False, "problem_type": SINGLE_LABEL, "type": ClassificationHead.__name__, "pooling": None}
    compared = [key for key in {**own, **usual} if key != "dropout"]
    saved, own = (usual | values for values in (saved, own))
    wrong = [f"{key} {saved[key]!r} instead of {own[key]!r}" for key in compared if saved[key] != own[key]]
    if wrong:
        raise CheckpointError(f"{speaker()}: the head in {folder} does not fit: it has {', '.join(wrong)}")
    state = classifier.head.state_dict()
    check_fit(state, tensors, folder)
    copy_into(state, tensors)


def _to_dict(head: ClassificationHead | TokenClassificationHead) -> dict[str, object]:
    """Return what describes a head; the kind of head that the first version knew is not named."""
    kind = type(head).__name__
    return head.to_dict() if kind == ClassificationHead.__name__ else head.to_dict() | {"type": kind}


def _described(document: Mapping[str, Any], folder: str | Path) -> ClassificationHead | TokenClassificationHead:
    """Return the head that a document describes, without memory: nobody knows yet whether the files hold as much."""
    kind = document.get("type", ClassificationHead.__name__)
    if not isinstance(kind, str) or kind not in HEADS:
        raise CheckpointError(
            f"{speaker()}: {folder} must hold a head of a known type, {', '.join(HEADS)}, got {kind!r}; a newer "
            "adapterx may have written it"
        )
    values = {name: document.get(name) for name in ("hidden_size", "num_labels", "dropout")}
    if kind == ClassificationHead.__name__:
        values |= {"pooling": document.get("pooling"), "dense": document.get("dense", False)}
        values["problem_type"] = document.get("problem_type", SINGLE_LABEL)
    try:
        check_size(kind, "hidden_size", values["hidden_size"])
        check_size(kind, "num_labels", values["num_labels"])
        values["dropout"] = check_finite(kind, "dropout", values["dropout"])
        with torch.device("meta"):
            return HEADS[kind](values.pop("hidden_size"), values.pop("num_labels"), **values)
    except (ConfigError, RuntimeError) as error:  # PyTorch has limits of its own for the sizes of tensors
        raise CheckpointError(f"{speaker()}: {folder} does not describe a head: {error}") from error
