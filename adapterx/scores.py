"""Scores of predictions that are no single class: several labels a text, and numbers. Torch only."""

__all__ = ["multi_label_scores", "regression_scores"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adapterx.errors import DataError


def multi_label_scores(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Return micro-F1, macro-F1 and subset accuracy.

    Macro-F1 is the plain mean over the labels; one that is neither right nor predicted anywhere counts 0, as in
    scikit-learn with `zero_division=0`. Micro-F1 counts every pair of a text and a label alike. Subset accuracy is the
    share of texts of which every label is right.

    Args:
        predictions: `(texts, labels)`, true where a label was predicted.
        labels: `(texts, labels)`, true where it is right.

    Returns:
        `{"micro_f1": ..., "macro_f1": ..., "subset_accuracy": ...}`, all from 0 to 1.

    Raises:
        DataError: the two differ in shape, or are empty.
    """
    _require_alike("multi_label_scores", predictions, labels)
    guessed, truth = predictions.bool(), labels.bool()
    hits, mistakes = (guessed & truth).sum(dim=0).double(), (guessed ^ truth).sum(dim=0).double()
    each = torch.where(hits > 0, 2 * hits / (2 * hits + mistakes).clamp(min=1), 0.0)
    total = 2 * hits.sum() + mistakes.sum()
    return {
        "micro_f1": (2 * hits.sum() / total).item() if total else 0.0,
        "macro_f1": each.mean().item(),
        "subset_accuracy": (guessed == truth).all(dim=1).double().mean().item(),
    }


def regression_scores(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Return mean squared and absolute error and the correlations of Pearson and Spearman.

    Each is the mean over the numbers of a text. A correlation with values that are all equal is NaN.

    Args:
        predictions: `(texts, numbers)`.
        labels: `(texts, numbers)`.

    Returns:
        `{"mse": ..., "mae": ..., "pearson": ..., "spearman": ...}`, the errors in the units of the labels.

    Raises:
        DataError: the two differ in shape, or are empty.
    """
    _require_alike("regression_scores", predictions, labels)
    guessed, truth = predictions.double(), labels.double()
    pairs = list(zip(guessed.T, truth.T, strict=True))
    return {
        "mse": (guessed - truth).square().mean().item(),
        "mae": (guessed - truth).abs().mean().item(),
        "pearson": _mean([_correlation(a, b) for a, b in pairs]),
        "spearman": _mean([_correlation(_ranks(a), _ranks(b)) for a, b in pairs]),
    }


def _require_alike(who: str, predictions: Tensor, labels: Tensor) -> None:
    if predictions.shape != labels.shape or predictions.dim() != 2 or not labels.numel():
        raise DataError(
            f"{who}: predictions and labels must have the same shape of two dimensions above 0, got "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}"
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    spread = a.norm() * b.norm()
    return ((a * b).sum() / spread).item() if spread > 0 else math.nan


def _ranks(values: Tensor) -> Tensor:
    """Return ranks; equal values share the mean of theirs."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(dim=0).double()
    return (last - (count - 1) / 2)[place]
