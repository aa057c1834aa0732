"""What a task is: everything that differs between tasks, asked by the commands, which know no task by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from adapterx.cli.data.examples import Examples, load_examples
from adapterx.cli.data.sources import Sources
from adapterx.cli.data.streamed import stream_examples, stream_texts
from adapterx.cli.data.texts import texts_to_label
from adapterx.cli.data.wanted import Wanted
from adapterx.cli.recipes import EVAL_BATCH_SIZE, MAX_LENGTH
from adapterx.cli.rules import Rule

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

Json = dict[str, Any]
Encoded = Sequence[dict[str, Any]]  # token ids, and as `labels` what the loss compares with, of every example


@dataclass(frozen=True)
class Asked:
    """How data are to be read.

    Attributes:
        text_column: of the command line; None takes the recorded one, and if none was recorded a usual name.
        label_column: likewise.
        recorded: the columns of texts and labels that the training read.
        settings: the options of the training, by their names.
        spool: a folder on whose disk the texts stay, for data larger than memory; None keeps them in memory.
        known: what the task learnt from the training data; empty before.
    """

    text_column: str | None
    label_column: str | None
    recorded: tuple[str | None, str | None]
    settings: Mapping[str, Any]
    spool: Path | None = None
    known: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def again(cls, record: Json, text_column: str | None = None, label_column: str | None = None) -> "Asked":
        """Return how to read further data for a run: as its training did."""
        columns = (record.get("text_column"), record.get("label_column"))
        return cls(text_column, label_column, columns, record["options"], known=record)


@dataclass(frozen=True)
class Encoder:
    """What makes rows of token ids: a tokenizer, and how much of a text is read.

    Attributes:
        tokenizer: of the base model.
        max_length: tokens read of each text.
        embedded: of how many tokens the base model has embeddings; None: it does not tell.
        settings: the options of the training, by their names.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    embedded: int | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A trained model, ready to use, and the record of how it came about."""

    folder: Path
    record: Json
    task: "Task"
    model: nn.Module
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def labels(self) -> list[str]:
        """Class names; the position is the class id. Empty where the task has none."""
        return self.record.get("labels", [])


class Task(ABC):
    """One task. A subclass is all that the commands need to know of it.

    Attributes:
        name: what `--task` takes and `run.json` says.
        aliases: other words for it, such as those of Hugging Face's pipelines.
        about: what it does, for `--help`.
        recipes: for each method that it can be trained by, defaults of `TrainOptions`.
        options: the fields of `TrainOptions` that it takes and some other task does not.
        max_length: tokens read of each text where the command line says nothing.
        eval_batch_size: rows that are scored at a time.
        figures: the metrics that are shown after training, and by `info`, in order.
        recorded: what it adds to `run.json`, with the rules; `learn` finds it.
        answer: what a prediction adds to the columns of a table.
        nested: of these, what CSV leaves out.
        generates: whether its predictions are texts that are generated, so that `predict` takes the options of that.
        streams: whether `predict` reads tables that are larger than memory.
        trainer: the class of `adapterx.integrations.transformers` that trains it.
        trainer_arguments: the class of `transformers` for the arguments of that.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    about: ClassVar[str]
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]]
    options: ClassVar[frozenset[str]] = frozenset()
    max_length: ClassVar[int] = MAX_LENGTH
    eval_batch_size: ClassVar[int] = EVAL_BATCH_SIZE
    figures: ClassVar[tuple[str, ...]]
    recorded: ClassVar[Mapping[str, Rule]] = {}
    answer: ClassVar[tuple[str, ...]]
    nested: ClassVar[frozenset[str]] = frozenset()
    generates: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    trainer: ClassVar[str] = "AdapterTrainer"
    trainer_arguments: ClassVar[str] = "TrainingArguments"

    # -- data

    def read(self, source: str | Sources, asked: Asked, *, default_split: str) -> Examples:
        """Read and check examples; errors as in `load_examples`."""
        columns = {"text_column": asked.text_column, "label_column": asked.label_column, "recorded": asked.recorded}
        if asked.spool is not None:
            return stream_examples(source, **columns, default_split=default_split, folder=asked.spool)
        return load_examples(source, **columns, default_split=default_split)

    @abstractmethod
    def learn(self, examples: Examples, settings: Mapping[str, Any], source: str | Sources) -> Json:
        """Return what the training examples tell, by the names of `recorded`: classes, for example.

        Raises:
            DataError: they tell that nothing can be learnt.
        """

    @abstractmethod
    def check(self, examples: Examples, known: Json, source: str | Sources) -> None:
        """Refuse examples that do not fit what was learnt.

        Args:
            examples: to evaluate on.
            known: what `learn` returned.
            source: where they come from, for the message.

        Raises:
            DataError: they do not.
        """

    def strata(self, examples: Examples) -> Sequence[Hashable]:
        """Return for each example the group of which a part is held out."""
        return [0] * len(examples.texts)

    # -- model

    @abstractmethod
    def load(self, model: str) -> "tuple[PreTrainedTokenizerBase, nn.Module]":
        """Load a tokenizer and the base model that the task needs; errors as in `load_text_model`."""

    def meet(self, known: Json, tokenizer: "PreTrainedTokenizerBase") -> Json:
        """Return what was learnt, with what depends on the tokenizer."""
        return known

    @abstractmethod
    def build(self, base: nn.Module, settings: Mapping[str, Any], known: Json) -> nn.Module:
        """Return the model that is trained: the base model, with a new head where the task has one."""

    def adapted(self, model: nn.Module) -> nn.Module:
        """Return the part of the model that adapters hang on, which is the base model."""
        return model.base_model

    def prepare(  # noqa: B027 - most tasks have nothing to tell
        self, model: nn.Module, training: Examples, known: Json, settings: Mapping[str, Any]
    ) -> None:
        """Tell the model what its loss needs of the examples that it is trained on."""

    @abstractmethod
    def encode(self, examples: Examples, known: Json, encoder: Encoder) -> Encoded:
        """Return the rows that training and evaluation take.

        Raises:
            DataError: a text cannot be read by the model.
        """

    @abstractmethod
    def unread(self, examples: Examples, rows: Encoded, max_length: int) -> str | None:
        """Return in words what of the examples is not read, for they are too long; None if nothing."""

    # -- training

    @abstractmethod
    def collator(self, tokenizer: "PreTrainedTokenizerBase", model: nn.Module) -> Callable[[Encoded], Any]:
        """Return what makes a batch of rows."""

    @abstractmethod
    def scorer(
        self, rows: Encoded, known: Json, tokenizer: "PreTrainedTokenizerBase"
    ) -> "Callable[[EvalPrediction], dict[str, float]]":
        """Return what scores the predictions for these rows, in their order."""

    def for_trainer(self) -> dict[str, Any]:
        """Return further arguments of the Trainer."""
        return {}

    def for_arguments(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return further arguments of the Trainer's arguments."""
        return {}

    @abstractmethod
    def best(self, known: Json) -> tuple[str, bool]:
        """Return the metric by which the best epoch is chosen, and whether more of it is better."""

    def baselines(self, training: Encoded, held_out: Encoded, known: Json) -> dict[str, float]:
        """Return what the held-out scores are compared with: those of a model that reads no text."""
        return {}

    def settle(self, model: nn.Module, known: Json) -> None:  # noqa: B027 - most tasks have nothing to do
        """Bring the trained model into the form in which it is saved."""

    # -- files

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what is trained besides adapters, where it is not the whole model."""

    @abstractmethod
    def restore(self, base: nn.Module, folder: Path, record: Json) -> nn.Module:
        """Return the model of a run from its base model, which has its adapters.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit.
        """

    def beside_export(self, run: Run) -> dict[str, Any]:
        """Return what stands beside an exported model, by the names of the JSON files.

        Raises:
            ExportError: the task's models cannot be exported.
        """
        return {}

    # -- use

    @abstractmethod
    def evaluate(self, run: Run, examples: Examples) -> Json:
        """Score a run on labelled examples: figures by name, or objects of them that are shown as tables."""

    def wanted(self, texts: list[str], file: str | None, asked: Asked) -> Wanted:
        """Gather what is to be predicted; errors as in `texts_to_label`."""
        how = {"recorded": asked.recorded[0], "answer": self.answer}
        if asked.spool is not None:
            return stream_texts(file, asked.text_column, **how, folder=asked.spool)
        return texts_to_label(texts, file, asked.text_column, **how)

    @abstractmethod
    def predict(self, run: Run, wanted: Wanted) -> Iterable[Json]:
        """Return for each text its other columns and the prediction.

        The model has read all texts then; what an answer tells of texts on the disk is put together when it is asked
        for.
        """

    @abstractmethod
    def cells(self, prediction: Json) -> tuple[str, ...]:
        """Return what a person is shown of a prediction, in columns."""
