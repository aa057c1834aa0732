"""What the tasks share that give each text labels or numbers: a head on the pooled hidden states."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from adapterx.cli.data.examples import Examples
from adapterx.cli.data.sources import Sources
from adapterx.cli.recipes import CLASSIFICATION
from adapterx.cli.tasks.batches import batches_of, encoder_of, logits_of_batch
from adapterx.cli.tasks.headed import HeadedTask
from adapterx.cli.tasks.task import Encoded, Encoder, Json, Run
from adapterx.cli.tasks.windows import averaged, encode_texts, texts_of_rows
from adapterx.heads import SequenceClassifier
from adapterx.heads.labels import sequence_loss

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

HEAD = {"pooling": "mean", "head_dropout": 0.1}


class SequenceTask(HeadedTask):
    """A task of `SequenceClassifier`, one for each problem type."""

    classifier = SequenceClassifier
    problem_type: ClassVar[str]
    recipes: ClassVar = {method: recipe | HEAD for method, recipe in CLASSIFICATION.items()}
    options = frozenset({"pooling", "head_dropout", "head_learning_rate", "window_stride"})
    streams = True

    def build(self, base: nn.Module, settings: Mapping[str, Any], known: Json) -> nn.Module:
        """Put a new head on the base model."""
        return SequenceClassifier(
            base,
            self.outputs(known),
            pooling=settings["pooling"],
            dropout=settings["head_dropout"],
            problem_type=self.problem_type,
        )

    def targets(self, examples: Examples, known: Json, source: str | Sources) -> Sequence[Any]:
        """Return what the loss compares with, for every example; `check` is to find what is wrong.

        Raises:
            DataError: a label does not occur in training.
        """
        raise NotImplementedError

    def check(self, examples: Examples, known: Json, source: str | Sources) -> None:
        """Refuse labels that do not occur in training."""
        self.targets(examples, known, source)

    def encode(self, examples: Examples, known: Json, encoder: Encoder) -> Encoded:
        """Encode the texts, keeping their order."""
        targets = self.targets(examples, known, "the data")
        return encode_texts(encoder, examples.texts, targets)

    def unread(self, examples: Examples, rows: Encoded, max_length: int) -> str | None:
        """Return how many texts reach the limit, or how many windows they were cut into."""
        if texts_of_rows(rows) is not None:
            return f"{len(examples.texts)} texts are read in {len(rows)} windows of at most {max_length} tokens"
        full = sum(len(row["input_ids"]) >= max_length for row in rows)
        told = f"{full} of {len(rows)} texts reach {max_length} tokens; what lies beyond is not read (--max-length)"
        return told if full else None

    def collator(self, tokenizer: "PreTrainedTokenizerBase", model: nn.Module) -> Any:
        """Pad the texts of a batch."""
        import transformers

        return transformers.DataCollatorWithPadding(tokenizer)

    @abstractmethod
    def scores(self, logits: Tensor, truth: Tensor, known: Json) -> dict[str, float]:
        """Return the metrics of the training.

        Args:
            logits: of the held-out texts, `(texts, labels)`.
            truth: what the loss compares with, a row for each text.
            known: what was learnt from the training data.
        """

    def scorer(
        self, rows: Encoded, known: Json, tokenizer: "PreTrainedTokenizerBase"
    ) -> "Callable[[EvalPrediction], dict[str, float]]":
        """Score texts; those that were cut into windows as wholes, and their loss too."""
        owners = texts_of_rows(rows)

        def of_texts(p: "EvalPrediction") -> dict[str, float]:
            logits, truth = torch.as_tensor(p.predictions), torch.as_tensor(p.label_ids)
            if owners is None:
                return self.scores(logits, truth, known)
            whole = averaged(logits, owners, max(owners) + 1, self.problem_type)
            targets = truth.new_empty(len(whole), *truth.shape[1:])
            targets[torch.tensor(owners)] = truth
            loss = sequence_loss(whole, targets, self.problem_type).item()
            return self.scores(whole, targets, known) | {"loss": loss}

        return of_texts

    @torch.inference_mode()
    def logits(self, run: Run, texts: Sequence[str]) -> Tensor:
        """Return float32 logits `(texts, labels)`, in the order of the texts, on the CPU; errors as in `encode`."""
        encoder = encoder_of(run)
        rows = encode_texts(encoder, texts)
        owners = texts_of_rows(rows) or range(len(rows))
        logits = torch.empty(len(rows), self.outputs(run.record))
        for chosen, batch in batches_of(run, rows):
            logits[chosen] = logits_of_batch(run, batch, [texts[owners[i]] for i in chosen])
        return logits if isinstance(owners, range) else averaged(logits, owners, len(texts), self.problem_type)
