"""What the tasks share whose model is a base model with a head of ours."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from adapterx.checkpoint.head import load_head, save_head
from adapterx.cli.models import load_text_model
from adapterx.cli.tasks.task import Json, Run, Task
from adapterx.errors import CheckpointError, speaker
from adapterx.heads.wrapper import HeadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = "a label for each word"  # where a head has no problem type


class HeadedTask(Task):
    """A task of a `HeadedModel`, whose head is trained and saved beside the adapters.

    Attributes:
        classifier: the class of the model.
        problem_type: what the logits say, see `ClassificationHead`.
    """

    classifier: ClassVar[type[HeadedModel]]
    problem_type: ClassVar[str] = WORDS

    def load(self, model: str) -> "tuple[PreTrainedTokenizerBase, nn.Module]":
        """Load the base model without head."""
        return load_text_model(model)

    def outputs(self, known: Json) -> int:
        """Return how many logits a text, or a word, has."""
        return len(known["labels"])

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the head."""
        save_head(model, folder)

    def restore(self, base: nn.Module, folder: Path, record: Json) -> nn.Module:
        """Put the saved head on the base model."""
        head = load_head(folder)
        model = self.classifier(base, self.outputs(record))
        of_run = _described(model.head, self.problem_type)
        found = _described(head, getattr(head, "problem_type", WORDS))
        if found != of_run:
            raise CheckpointError(f"{speaker()}: the head in {folder} must be {of_run} by its run.json, it is {found}")
        model.head = head
        return model

    def beside_export(self, run: Run) -> dict[str, Any]:
        """Return the names of the outputs."""
        return {"labels.json": run.labels}


def _described(head: Any, problem_type: str) -> str:
    return f"a {type(head).__name__} of {head.num_labels} outputs ({problem_type})"
