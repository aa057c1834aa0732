"""Long texts as windows: pieces of as many tokens as are read at once, each of which overlaps the one before."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapterx.cli.data.spool import empty_like
from adapterx.cli.models import encode
from adapterx.cli.tasks.task import Encoder
from adapterx.errors import ConfigError, speaker
from adapterx.heads.labels import MULTI_LABEL, SINGLE_LABEL

OWNER = "overflow_to_sample_mapping"  # the tokenizers' name for the text of a window
TEXT = "text"  # in a row: the position of the text that a window is of
CHUNK = 100  # texts that are encoded at once; of long ones a tokenizer makes a hundred times as much for a moment


def stride_of(settings: Mapping[str, Any]) -> int | None:
    """Return how many tokens a window shares with the one before; None where texts are cut off instead."""
    return settings.get("window_stride")


def encode_texts(encoder: Encoder, texts: Sequence[str], targets: Sequence[Any] | None = None) -> Sequence[Any]:
    """Return a row for each text, or for each window of it, on the disk if the texts are there.

    Args:
        encoder: what makes rows.
        texts: what to read.
        targets: what the loss compares with, which becomes `labels`; None: there are none.

    Raises:
        ConfigError: windows would never come to an end, or the tokenizer cannot cut them.
        DataError: as in `encode`.
    """
    rows = empty_like(texts)
    stride = stride_of(encoder.settings)
    if stride is not None:
        _check_stride(encoder, stride)
    for start in range(0, len(texts), CHUNK):
        part = [texts[i] for i in range(start, min(start + CHUNK, len(texts)))]
        encoded = encode(encoder.tokenizer, part, encoder.max_length, embedded=encoder.embedded, stride=stride)
        for row in encoded:
            owner = len(rows) if stride is None else start + row.pop(OWNER)
            row |= {} if stride is None else {TEXT: owner}
            rows.append(row if targets is None else row | {"labels": targets[owner]})
    return rows


def _check_stride(encoder: Encoder, stride: int) -> None:
    tokenizer, marks = encoder.tokenizer, encoder.tokenizer.num_special_tokens_to_add()
    if not tokenizer.is_fast:
        raise ConfigError(f"{speaker()}: window_stride needs a tokenizer of the library tokenizers, which cuts windows")
    if stride >= encoder.max_length - marks:
        raise ConfigError(
            f"{speaker()}: window_stride must be below the {encoder.max_length - marks} tokens of a text that are read "
            f"at once, got {stride}"
        )


def texts_of_rows(rows: Sequence[Any]) -> list[int] | None:
    """Return for each row the position of its text; None where each row is a text of its own."""
    return [row[TEXT] for row in rows] if len(rows) and TEXT in rows[0] else None


def labels_of_texts(rows: Sequence[Any]) -> Iterator[Any]:
    """Yield the labels of each text, also where its windows are rows."""
    last = None
    for row in rows:
        if last is None or row.get(TEXT) != last:
            yield row["labels"]
        last = row.get(TEXT)


def averaged(logits: Tensor, owners: Sequence[int], count: int, problem_type: str = SINGLE_LABEL) -> Tensor:
    """Return logits of whole texts: those of the mean of their windows' probabilities; of numbers, the mean.

    A text of one window keeps its logits.

    Args:
        logits: of the windows, `(windows, labels)`.
        owners: the text of each window, from 0 to `count - 1`.
        count: texts, each of which has a window.
        problem_type: what the logits say, see `ClassificationHead`.

    Returns:
        `(count, labels)`, float32.
    """
    owner = torch.tensor(owners)
    windows = owner.bincount(minlength=count)[:, None]

    def mean(values: Tensor) -> Tensor:
        return torch.zeros(count, logits.shape[1], dtype=torch.float64).index_add_(0, owner, values) / windows

    if problem_type == SINGLE_LABEL:
        found = _log(mean(logits.double().softmax(dim=1)))
    elif problem_type == MULTI_LABEL:  # from both sides: 1 - p of a p near 1 would have no digits
        found = _log(mean(logits.double().sigmoid())) - _log(mean((-logits.double()).sigmoid()))
    else:
        found = mean(logits.double())
    alone = torch.zeros(count, logits.shape[1])
    alone[owner] = logits.float()
    return torch.where(windows == 1, alone, found.float())


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(torch.finfo(torch.float64).tiny).log()
