"""A classifier of tokens on any Hugging Face encoder or decoder: names of entities, parts of speech."""

import torch
from torch import Tensor, nn

from adapterx.errors import ConfigError, DataError
from adapterx.heads.labels import IGNORED
from adapterx.heads.wrapper import HeadedModel


class TokenClassificationHead(nn.Module):
    """Turn hidden states into logits of each token: `linear(dropout(hidden_states))`.

    Args:
        hidden_size: width of the hidden states, in elements.
        num_labels: number of classes.
        dropout: probability of dropping an element of the hidden states in training.

    Raises:
        ConfigError: a value breaks its rule.
    """

    def __init__(self, hidden_size: int, num_labels: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if num_labels < 1:
            raise ConfigError(f"TokenClassificationHead: num_labels must be at least 1, got {num_labels}")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"TokenClassificationHead: dropout must be in [0, 1), got {dropout}")
        self.hidden_size, self.num_labels = hidden_size, num_labels
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, num_labels)

    def to_dict(self) -> dict[str, object]:
        """Return what `TokenClassificationHead(**...)` needs to build this head again."""
        return {"hidden_size": self.hidden_size, "num_labels": self.num_labels, "dropout": self.dropout.p}

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the logits `(batch, tokens, num_labels)` of hidden states `(batch, tokens, hidden_size)`."""
        return self.linear(self.dropout(hidden_states.to(self.linear.weight.dtype)))


class TokenClassifier(HeadedModel):
    """A base model and a head on every token, for the Hugging Face Trainer, a plain loop, tracing and export.

    As with `SequenceClassifier`, adapters are attached to `classifier.base_model` and saved without the head.

    Args:
        base_model: a Hugging Face encoder or decoder without head; its first output must be the last hidden states
            `(batch, tokens, hidden_size)`.
        num_labels: number of classes.
        dropout: see `TokenClassificationHead`.
        hidden_size: width of the hidden states; None reads `base_model.config.hidden_size`.

    Raises:
        ConfigError: a value breaks its rule, or the base model does not tell its hidden size.
    """

    def __init__(
        self, base_model: nn.Module, num_labels: int, *, dropout: float = 0.0, hidden_size: int | None = None
    ) -> None:
        super().__init__(base_model, hidden_size)
        self.head = TokenClassificationHead(self.hidden_size, num_labels, dropout=dropout)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `{"logits": (batch, tokens, num_labels)}`, with `"loss"` first when labels are given.

        Args:
            input_ids: token ids `(batch, tokens)`, int64.
            attention_mask: `(batch, tokens)`, 1 for a token and 0 for padding; None when nothing is padded.
            token_type_ids: `(batch, tokens)`; left out for base models that have none, such as DistilBERT.
            labels: class ids `(batch, tokens)`, int64; -100 is left out: padding, and pieces of a word but its first.
                The loss is the mean cross entropy of the others, and 0 where there are none.

        Raises:
            DataError: the labels are no class ids of the tokens.
        """
        logits = self.head(self.hidden_states(input_ids, attention_mask, token_type_ids))
        if labels is None:
            return {"logits": logits}
        check_token_labels(labels, logits)
        total = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.long().flatten(), reduction="sum")
        return {"loss": total / (labels != IGNORED).sum().clamp(min=1), "logits": logits}


def check_token_labels(labels: Tensor, logits: Tensor) -> None:
    """Refuse labels that cross entropy would take for something else, or that no device reports in words.

    Args:
        labels: what should be class ids `(batch, tokens)`.
        logits: `(batch, tokens, num_labels)`.

    Raises:
        DataError: shape, dtype or range is wrong.
    """
    wanted, num_labels = tuple(logits.shape[:2]), logits.shape[2]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.shape != wanted:
        raise DataError(
            f"TokenClassifier: labels must be class ids of shape (batch, tokens), {wanted}, int64, got "
            f"{tuple(labels.shape)}, {str(labels.dtype).removeprefix('torch.')}"
        )
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or labels.is_meta:
        return  # the values are not known
    wrong = ((labels < 0) & (labels != IGNORED)) | (labels >= num_labels)
    if bool(wrong.any()):
        found = sorted(set(labels[wrong].tolist()))
        raise DataError(
            f"TokenClassifier: labels must lie from 0 to {num_labels - 1}, or be {IGNORED} to be left out, got "
            f"{', '.join(map(str, found[:8]))}"
        )
