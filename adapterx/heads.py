"""A classification head on any Hugging Face encoder or decoder: pool the hidden states, drop out, one linear layer."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.errors import ConfigError, DataError

POOLINGS = ("mean", "cls", "last")
IGNORED = -100  # the label of an example that the loss leaves out


class ClassificationHead(nn.Module):
    """Turn hidden states into logits: `linear(dropout(pool(hidden_states)))`, or with one layer more before it.

    Args:
        hidden_size: width of the hidden states, in elements.
        num_labels: number of classes.
        pooling: `"mean"` averages the tokens that are not padding, in float32; `"cls"` takes the first such token,
            `"last"` the last one.
        dropout: probability of dropping an element of the pooled vector in training.
        dense: whether `tanh(dense(dropout(pooled)))` takes the pooled vector's place first, as in RoBERTa's head, in
            AdapterHub's, and with BERT's pooler.

    Raises:
        ConfigError: a value breaks its rule.
    """

    def __init__(
        self, hidden_size: int, num_labels: int, *, pooling: str = "mean", dropout: float = 0.0, dense: bool = False
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
        self.hidden_size, self.num_labels, self.pooling = hidden_size, num_labels, pooling
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
        return values if self.dense is None else values | {"dense": True}

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

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the base model can give up activations and compute them again in the backward pass."""
        return bool(getattr(self.base_model, "supports_gradient_checkpointing", False))

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether it does so now."""
        base = self.base_model
        newer = hasattr(type(base), "is_activation_checkpointing")
        return bool(getattr(base, "is_activation_checkpointing" if newer else "is_gradient_checkpointing", False))

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The same, under its older name."""
        return self.is_activation_checkpointing

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, object] | None = None, **options: Any
    ) -> None:
        """Let the base model compute activations again in the backward pass, which saves memory and costs time.

        Args:
            activation_checkpointing_kwargs: for `torch.utils.checkpoint`; None takes `use_reentrant=False`, since the
                reentrant kind gives no gradient to adapters behind frozen embeddings.
            **options: what the base model's method takes besides.

        Raises:
            ConfigError: the base model has no such method.
        """
        kwargs = activation_checkpointing_kwargs
        kwargs = {"use_reentrant": False} if kwargs is None else kwargs
        if kwargs.get("use_reentrant", True):
            self._of_base("enable_input_require_grads")()
        if hasattr(self.base_model, "activation_checkpointing_enable"):  # transformers 5
            self.base_model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs, **options)
        else:
            self._of_base("gradient_checkpointing_enable")(gradient_checkpointing_kwargs=kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        """Let the base model keep its activations again."""
        newer = hasattr(self.base_model, "activation_checkpointing_disable")
        self._of_base("activation_checkpointing_disable" if newer else "gradient_checkpointing_disable")()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, object] | None = None, **options: Any
    ) -> None:
        """Do what `activation_checkpointing_enable` does, under its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Do what `activation_checkpointing_disable` does, under its older name."""
        self.activation_checkpointing_disable()

    def get_input_embeddings(self) -> nn.Module:
        """Return the base model's token embeddings; NEFTune adds noise there."""
        return self._of_base("get_input_embeddings")()

    def _of_base(self, method: str) -> Callable[..., Any]:
        found = getattr(self.base_model, method, None)
        if found is None:
            raise ConfigError(
                f"SequenceClassifier: base_model must have {method}, {type(self.base_model).__name__} has none"
            )
        return found

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

        Raises:
            DataError: the labels are no class ids; multi-label targets and regression need a loss of the caller's.
        """
        extra = dict(self._fixed)
        if self._takes_token_types and token_type_ids is not None:
            extra["token_type_ids"] = token_type_ids
        hidden_states = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **extra)[0]
        logits = self.head(hidden_states, attention_mask)
        if labels is None:
            return {"logits": logits}
        check_labels(labels, *logits.shape)
        return {"loss": nn.functional.cross_entropy(logits.float(), labels.long()), "logits": logits}


def check_labels(labels: Tensor, batch: int, num_labels: int) -> None:
    """Refuse labels that cross entropy would take for something else, or that no device reports in words.

    Args:
        labels: what should be class ids `(batch,)`.
        batch: number of texts.
        num_labels: number of classes.

    Raises:
        DataError: shape, dtype or range is wrong, or there is one class only, of which the loss is always 0.
    """
    own = "; for multi-label targets or regression leave labels out and compute the loss from the logits"
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
