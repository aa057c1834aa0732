"""A classifier of sequences on any Hugging Face encoder or decoder: single label, several labels, or regression."""

from torch import Tensor, nn

from adapterx.heads.labels import SINGLE_LABEL, sequence_loss
from adapterx.heads.pooled import ClassificationHead
from adapterx.heads.wrapper import HeadedModel


class SequenceClassifier(HeadedModel):
    """A base model and a classification head, for the Hugging Face Trainer, a plain loop, tracing and export.

    The base model keeps its class and its keys, so adapters are attached to `classifier.base_model` and saved
    without the head.

    Args:
        base_model: a Hugging Face encoder or decoder without head; its first output must be the last hidden states
            `(batch, tokens, hidden_size)`.
        num_labels: number of classes, or of the numbers of a regression.
        pooling: see `ClassificationHead`.
        dropout: see `ClassificationHead`.
        hidden_size: width of the hidden states; None reads `base_model.config.hidden_size`.
        problem_type: `"single_label_classification"`, `"multi_label_classification"` or `"regression"`, which decides
            about the loss.
        class_weights: what the classes weigh in the loss while the model is in training mode, `(num_labels,)`, as in
            `torch.nn.CrossEntropyLoss(weight=...)`; None weighs them alike. An attribute that can be set later, and
            is not saved.

    Raises:
        ConfigError: a value breaks its rule, or the base model does not tell its hidden size.
    """

    def __init__(
        self,
        base_model: nn.Module,
        num_labels: int,
        *,
        pooling: str = "mean",
        dropout: float = 0.0,
        hidden_size: int | None = None,
        problem_type: str = SINGLE_LABEL,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__(base_model, hidden_size)
        # Not of the state: they belong to the data of a training, not to what is saved of it.
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.head = ClassificationHead(
            self.hidden_size, num_labels, pooling=pooling, dropout=dropout, problem_type=problem_type
        )

    @property
    def problem_type(self) -> str:
        """What the logits say, see `ClassificationHead`; it is saved and loaded with the head."""
        return self.head.problem_type

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
            labels: class ids `(batch,)`, int64, for the mean cross entropy, which leaves -100 out; for several labels a
                text 0 or 1 for each, `(batch, num_labels)`, for the mean binary cross entropy; for regression numbers
                `(batch, num_labels)`, or `(batch,)` where there is one, for the mean squared error.

        Raises:
            DataError: the labels do not fit the problem type.
        """
        hidden_states = self.hidden_states(input_ids, attention_mask, token_type_ids)
        logits = self.head(hidden_states, attention_mask)
        if labels is None:
            return {"logits": logits}
        weights = self.class_weights if self.training else None
        return {"loss": sequence_loss(logits, labels, self.problem_type, weights), "logits": logits}
