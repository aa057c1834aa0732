"""The head of sequence classifiers: pool the hidden states, drop out, one linear layer."""

import torch
from torch import Tensor, nn

from adapterx.errors import ConfigError
from adapterx.heads.labels import PROBLEM_TYPES, SINGLE_LABEL

POOLINGS = ("mean", "cls", "last")


class ClassificationHead(nn.Module):
    """Turn hidden states into logits: `linear(dropout(pool(hidden_states)))`, or with one layer more before it.

    Args:
        hidden_size: width of the hidden states, in elements.
        num_labels: number of classes, or of the numbers of a regression.
        pooling: `"mean"` averages the tokens that are not padding, in float32; `"cls"` takes the first such token,
            `"last"` the last one.
        dropout: probability of dropping an element of the pooled vector in training.
        dense: whether `tanh(dense(dropout(pooled)))` takes the pooled vector's place first, as in RoBERTa's head, in
            AdapterHub's, and with BERT's pooler.
        problem_type: what the logits say, in the words of `transformers`: `"single_label_classification"`,
            `"multi_label_classification"` or `"regression"`. It decides about the loss of `SequenceClassifier`.

    Raises:
        ConfigError: a value breaks its rule.
    """

    def __init__(
        self,
        hidden_size: int,
        num_labels: int,
        *,
        pooling: str = "mean",
        dropout: float = 0.0,
        dense: bool = False,
        problem_type: str = SINGLE_LABEL,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"ClassificationHead: pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        if num_labels < 1:
            raise ConfigError(f"ClassificationHead: num_labels must be at least 1, got {num_labels}")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"ClassificationHead: dropout must be in [0, 1), got {dropout}")
        if not isinstance(dense, bool):
            raise ConfigError(f"ClassificationHead: dense must be True or False, got {dense!r}")
        if problem_type not in PROBLEM_TYPES:
            raise ConfigError(
                f"ClassificationHead: problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}"
            )
        self.hidden_size, self.num_labels, self.pooling = hidden_size, num_labels, pooling
        self.problem_type = problem_type
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden_size, hidden_size) if dense else None
        self.linear = nn.Linear(hidden_size, num_labels)

    def to_dict(self) -> dict[str, object]:
        """Return what `ClassificationHead(**...)` needs to build this head again."""
        values: dict[str, object] = {
            "hidden_size": self.hidden_size,
            "num_labels": self.num_labels,
            "pooling": self.pooling,
            "dropout": self.dropout.p,
        }
        values |= {} if self.dense is None else {"dense": True}
        return values if self.problem_type == SINGLE_LABEL else values | {"problem_type": self.problem_type}

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the logits.

        Args:
            hidden_states: `(batch, tokens, hidden_size)`, any floating dtype.
            attention_mask: `(batch, tokens)`, 1 for a token and 0 for padding; None when nothing is padded.

        Returns:
            Logits `(batch, num_labels)`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(hidden_states[..., 0])
        pooled = pool(hidden_states, attention_mask, self.pooling).to(self.linear.weight.dtype)
        if self.dense is not None:
            pooled = torch.tanh(self.dense(self.dropout(pooled)))
        return self.linear(self.dropout(pooled))


def pool(hidden_states: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Reduce the hidden states of each sequence to one vector, reading only tokens whose mask is not 0.

    Args:
        hidden_states: `(batch, tokens, hidden_size)`, any floating dtype.
        attention_mask: `(batch, tokens)`, 1 for a token and 0 for padding.
        pooling: `"mean"`, `"cls"` or `"last"`, see `ClassificationHead`.

    Returns:
        `(batch, hidden_size)`; a mean is float32.
    """
    mask = attention_mask.to(torch.float32)
    if pooling == "mean":
        # In float32: a sum over hundreds of tokens loses digits in half precision.
        total = (hidden_states.float() * mask.unsqueeze(-1)).sum(dim=1)
        return total / mask.sum(dim=1, keepdim=True).clamp(min=1.0)
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=torch.float32)
    # The mask decides, not the index 0 or -1, so that left padding and right padding give the same answer.
    wanted = (mask * positions).argmax(dim=1) if pooling == "last" else mask.argmax(dim=1)
    index = wanted.view(-1, 1, 1).expand(-1, 1, hidden_states.shape[-1])
    return hidden_states.gather(1, index).squeeze(1)
