"""What labels a loss can take, and the losses: what cannot be meant is refused before a device meets it."""

import torch
from torch import Tensor, nn

from adapterx.errors import DataError

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)  # in the words of transformers
IGNORED = -100  # the label of an example, or of a token, that the loss leaves out


def sequence_loss(logits: Tensor, labels: Tensor, problem_type: str, class_weights: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: cross entropy, binary cross entropy, or squared error.

    Args:
        logits: `(batch, num_labels)`.
        labels: class ids `(batch,)`, or for the other two problem types numbers `(batch, num_labels)`.
        problem_type: one of `PROBLEM_TYPES`.
        class_weights: `(num_labels,)`, of cross entropy only.

    Raises:
        DataError: the labels are of another shape, dtype or range.
    """
    if problem_type == SINGLE_LABEL:
        check_labels(labels, *logits.shape)
        return nn.functional.cross_entropy(logits.float(), labels.long(), weight=class_weights)
    targets = checked_targets(labels, *logits.shape, problem_type=problem_type).float()
    if problem_type == MULTI_LABEL:
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), targets)
    return nn.functional.mse_loss(logits.float(), targets)


def check_labels(labels: Tensor, batch: int, num_labels: int) -> None:
    """Refuse labels that cross entropy would take for something else, or that no device reports in words.

    Args:
        labels: what should be class ids `(batch,)`.
        batch: number of texts.
        num_labels: number of classes.

    Raises:
        DataError: shape, dtype or range is wrong, or there is one class only, of which the loss is always 0.
    """
    own = f"; for multi-label targets or regression build it with problem_type {MULTI_LABEL!r} or {REGRESSION!r}"
    if num_labels < 2:
        raise DataError(
            f"SequenceClassifier: num_labels must be at least 2 where labels are given, got {num_labels}, of which the "
            f"loss is always 0{own}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.dim() != 1:
        raise DataError(
            f"SequenceClassifier: labels must be class ids of shape (batch,), int64, got {tuple(labels.shape)}, "
            f"{str(labels.dtype).removeprefix('torch.')}{own}"
        )
    if labels.shape[0] != batch:
        raise DataError(
            f"SequenceClassifier: labels must be as many as there are texts, got {labels.shape[0]} for {batch}"
        )
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or labels.is_meta:
        return  # the values are not known
    # Compared at once, so that a device is waited for once.
    if bool((((labels < 0) & (labels != IGNORED)) | (labels >= num_labels)).any()):
        wrong = sorted(set(labels.tolist()) - set(range(num_labels)) - {IGNORED})
        raise DataError(
            f"SequenceClassifier: labels must lie from 0 to {num_labels - 1}, or be {IGNORED} to be left out, "
            f"got {', '.join(map(str, wrong[:8]))}"
        )


def checked_targets(labels: Tensor, batch: int, num_labels: int, *, problem_type: str) -> Tensor:
    """Return multi-label or regression targets as `(batch, num_labels)`.

    Args:
        labels: what should be 0, 1 or a share of them for each label, or numbers; `(batch,)` where there is one.
        batch: number of texts.
        num_labels: number of labels, or of numbers.
        problem_type: of the classifier.

    Raises:
        DataError: shape, dtype or range is wrong.
    """
    shape, kind = tuple(labels.shape), str(labels.dtype).removeprefix("torch.")
    if labels.is_complex() or (shape != (batch, num_labels) and not (num_labels == 1 and shape == (batch,))):
        raise DataError(
            f"SequenceClassifier: labels of {problem_type} must be numbers of shape (batch, num_labels), "
            f"({batch}, {num_labels}), got {shape}, {kind}"
        )
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing() or labels.is_meta):
        wrong = ((labels < 0) | (labels > 1)) if problem_type == MULTI_LABEL else torch.zeros_like(labels).bool()
        if bool((wrong | ~labels.isfinite()).any()):
            rule = "lie from 0 to 1" if problem_type == MULTI_LABEL else "be finite"
            value = labels[wrong | ~labels.isfinite()][0].item()
            raise DataError(f"SequenceClassifier: labels of {problem_type} must {rule}, got {value}")
    return labels.view(batch, num_labels)
