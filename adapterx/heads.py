"""A classification head on any Hugging Face encoder or decoder: pool the hidden states, drop out, one linear layer."""

import inspect

import torch
from torch import Tensor, nn

from adapterx.errors import ConfigError

POOLINGS = ("mean", "cls", "last")


class ClassificationHead(nn.Module):
    """Turn hidden states into logits: `linear(dropout(pool(hidden_states)))`.

    Args:
        hidden_size: width of the hidden states, in elements.
        num_labels: number of classes.
        pooling: `"mean"` averages the tokens that are not padding, in float32; `"cls"` takes the first such token,
            `"last"` the last one.
        dropout: probability of dropping an element of the pooled vector in training.

    Raises:
        ConfigError: a value breaks its rule.
    """

    def __init__(self, hidden_size: int, num_labels: int, *, pooling: str = "mean", dropout: float = 0.0) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"ClassificationHead: pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        if num_labels < 1:
            raise ConfigError(f"ClassificationHead: num_labels must be at least 1, got {num_labels}")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"ClassificationHead: dropout must be in [0, 1), got {dropout}")
        self.hidden_size, self.num_labels, self.pooling = hidden_size, num_labels, pooling
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, num_labels)

    def to_dict(self) -> dict[str, object]:
        """Return what `ClassificationHead(**...)` needs to build this head again."""
        return {
            "hidden_size": self.hidden_size,
            "num_labels": self.num_labels,
            "pooling": self.pooling,
            "dropout": self.dropout.p,
        }

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
        pooled = pool(hidden_states, attention_mask, self.pooling)
        return self.linear(self.dropout(pooled.to(self.linear.weight.dtype)))


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


class SequenceClassifier(nn.Module):
    """A base model and a classification head, for the Hugging Face Trainer, a plain loop, tracing and export.

    The base model keeps its class and its keys, so adapters are attached to `classifier.base_model` and saved
    without the head.

    Args:
        base_model: a Hugging Face encoder or decoder without head; its first output must be the last hidden states
            `(batch, tokens, hidden_size)`.
        num_labels: number of classes.
        pooling: see `ClassificationHead`.
        dropout: see `ClassificationHead`.
        hidden_size: width of the hidden states; None reads `base_model.config.hidden_size`.

    Raises:
        ConfigError: a value breaks its rule, or the base model does not tell its hidden size.
    """

    # The Trainer asks: the loss is a mean over the batch, whatever `num_items_in_batch` it counts.
    accepts_loss_kwargs = False

    def __init__(
        self,
        base_model: nn.Module,
        num_labels: int,
        *,
        pooling: str = "mean",
        dropout: float = 0.0,
        hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        if hidden_size is None:
            hidden_size = getattr(getattr(base_model, "config", None), "hidden_size", None)
        if hidden_size is None:
            raise ConfigError(
                f"SequenceClassifier: hidden_size must be given, {type(base_model).__name__} has no config.hidden_size"
            )
        self.base_model = base_model
        self.head = ClassificationHead(hidden_size, num_labels, pooling=pooling, dropout=dropout)
        known = inspect.signature(base_model.forward).parameters
        self._takes_token_types = "token_type_ids" in known
        # A decoder would otherwise return its key-value cache, which costs memory and which no exporter can carry.
        self._fixed = {"use_cache": False} if "use_cache" in known else {}

    @property
    def config(self) -> object:
        """The configuration of the base model, or None if it has none."""
        return getattr(self.base_model, "config", None)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `{"logits": (batch, num_labels)}`, with `"loss"` first when labels are given.

        Args:
            input_ids: token ids `(batch, tokens)`, int64.
            attention_mask: `(batch, tokens)`, 1 for a token and 0 for padding; None when nothing is padded.
            token_type_ids: `(batch, tokens)`; left out for base models that have none, such as DistilBERT.
            labels: class ids `(batch,)`, int64; the loss is the mean cross entropy, -100 is left out.
        """
        extra = dict(self._fixed)
        if self._takes_token_types and token_type_ids is not None:
            extra["token_type_ids"] = token_type_ids
        hidden_states = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **extra)[0]
        logits = self.head(hidden_states, attention_mask)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.float(), labels), "logits": logits}
