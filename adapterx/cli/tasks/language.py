"""What the tasks of language models share: how they are trained by default, and how their tokens are scored."""

from typing import Any

import torch
from torch import Tensor, nn

from adapterx.heads.labels import IGNORED

LANGUAGE_RECIPES = {
    "adapters": {"epochs": 3, "learning_rate": 1e-3},
    "full": {"epochs": 3, "learning_rate": 5e-5},
}


def token_scores(logits: Any, labels: Tensor) -> Tensor:
    """Return for each row the summed loss of its labels, how many there are, and how many were foretold.

    Args:
        logits: `(batch, tokens, vocabulary)`, or what a model returns with these first.
        labels: `(batch, tokens)`, of which each is foretold by the logits of the token before.

    Returns:
        `(batch, 3)`, float64.
    """
    logits = (logits[0] if isinstance(logits, tuple) else logits)[:, :-1]
    wanted = labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(wanted.shape)
    counted = wanted != IGNORED
    hits = (logits.argmax(dim=-1) == wanted) & counted
    return torch.stack([losses.double().sum(dim=1), counted.double().sum(dim=1), hits.double().sum(dim=1)], dim=1)
