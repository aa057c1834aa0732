"""What the tasks share whose model is a base model with a head of ours."""

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from adapterx.checkpoint.head import load_head, save_head
from adapterx.cli.models import load_text_model
from adapterx.cli.tasks.task import Json, Run, Task
from adapterx.heads.wrapper import HeadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HeadedTask(Task):
    """A task of a `HeadedModel`, whose head is trained and saved beside the adapters.

    Attributes:
        classifier: the class of the model.
    """

    classifier: ClassVar[type[HeadedModel]]

    def load(self, model: str) -> "tuple[PreTrainedTokenizerBase, nn.Module]":
        """Load the base model without head."""
        return load_text_model(model)

    @abstractmethod
    def check_head(self, head: nn.Module, folder: Path, record: Json) -> None:
        """Refuse a head that is not of the run.

        Args:
            head: as it was saved.
            folder: of the run, for the message.
            record: of the run.

        Raises:
            CheckpointError: it is of another kind, or has other outputs.
        """

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the head."""
        save_head(model, folder)

    def restore(self, base: nn.Module, folder: Path, record: Json) -> nn.Module:
        """Put the saved head on the base model."""
        head = load_head(folder)
        self.check_head(head, folder, record)
        model = self.classifier(base, head.num_labels)
        model.head = head
        return model

    def beside_export(self, run: Run) -> dict[str, Any]:
        """Return the names of the outputs."""
        return {"labels.json": run.labels}
