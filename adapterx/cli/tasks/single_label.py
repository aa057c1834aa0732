"""Sequence classification: each text has one label."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapterx.cli.data.classes import class_weights, listed_labels, renamed
from adapterx.cli.data.examples import Examples, label_ids, ordered_labels
from adapterx.cli.data.sources import Sources
from adapterx.cli.data.wanted import ANSWER, Wanted
from adapterx.cli.reporting import say
from adapterx.cli.rules import LABELS
from adapterx.cli.tasks.sequences import SequenceTask
from adapterx.cli.tasks.task import Asked, Encoded, Json, Run
from adapterx.cli.tasks.windows import labels_of_texts
from adapterx.heads.labels import SINGLE_LABEL
from adapterx.training import classification_scores


class SequenceClassification(SequenceTask):
    """The task of runs whose record names none."""

    name = "sequence-classification"
    aliases = ("text-classification", "sentiment-analysis", "single-label-classification")
    about = "one label for each text"
    problem_type = SINGLE_LABEL
    options = SequenceTask.options | {"examples_per_class", "labels", "label_map", "class_weights", "streaming"}
    figures = ("accuracy", "macro_f1", "majority_baseline")
    recorded: ClassVar = {"labels": LABELS}
    answer = ANSWER
    nested = frozenset({"probabilities"})

    def read(self, source: str | Sources, asked: Asked, *, default_split: str) -> Examples:
        """Read labelled texts, with the names that `--label-map` gives the labels."""
        return renamed(super().read(source, asked, default_split=default_split), asked.settings.get("label_map"))

    def learn(self, examples: Examples, settings: Mapping[str, Any], source: str | Sources) -> Json:
        """Return the classes in order."""
        return {"labels": listed_labels(settings, examples.labels, source) or ordered_labels(examples.labels, source)}

    def prepare(self, model: nn.Module, training: Examples, known: Json, settings: Mapping[str, Any]) -> None:
        """Tell the model what each class weighs."""
        if settings.get("class_weights") is not None:
            weights = class_weights(settings["class_weights"], known["labels"], training)
            told = (f"{label} {weight:.4g}" for label, weight in zip(known["labels"][:20], weights, strict=False))
            say(f"class weights: {', '.join(told)}")
            model.class_weights = torch.tensor(weights)

    def targets(self, examples: Examples, known: Json, source: str | Sources) -> Sequence[int]:
        """Return class ids."""
        return label_ids(examples, known["labels"], source)

    def strata(self, examples: Examples) -> Sequence[Hashable]:
        """Hold out the same share of each class."""
        return examples.labels

    def scores(self, logits: Tensor, truth: Tensor, known: Json) -> dict[str, float]:
        """Return accuracy and macro-F1."""
        return classification_scores(logits.argmax(dim=-1).tolist(), truth.tolist())

    def best(self, known: Json) -> tuple[str, bool]:
        """Choose by accuracy."""
        return "accuracy", True

    def baselines(self, training: Encoded, held_out: Encoded, known: Json) -> dict[str, float]:
        """Return the accuracy of always saying the label that is most frequent in training."""
        ids, held_out_ids = (list(labels_of_texts(rows)) for rows in (training, held_out))
        most_frequent = max(sorted(set(ids)), key=ids.count)
        return {"majority_baseline": held_out_ids.count(most_frequent) / len(held_out_ids)}

    def evaluate(self, run: Run, examples: Examples) -> Json:
        """Score a run, and each of its classes."""
        truth = torch.tensor(self.targets(examples, run.record, "the data"))
        logits = self.logits(run, examples.texts)
        guesses = logits.argmax(dim=1)
        counts = truth.bincount(minlength=len(run.labels))
        metrics: Json = classification_scores(guesses.tolist(), truth.tolist())
        metrics["loss"] = torch.nn.functional.cross_entropy(logits, truth).item()
        metrics["majority_baseline"] = counts.max().item() / len(truth)
        metrics["confusion_matrix"] = confusion_matrix(guesses.tolist(), truth.tolist(), run.labels)
        metrics["classes"] = {}
        for i, label in enumerate(run.labels):
            hits = ((guesses == i) & (truth == i)).sum().item()
            guessed = (guesses == i).sum().item()
            metrics["classes"][label] = {
                "precision": hits / guessed if guessed else None,
                "recall": hits / counts[i].item() if counts[i] else None,
                "examples": counts[i].item(),
            }
        return metrics

    def predict(self, run: Run, wanted: Wanted) -> Iterator[Json]:
        """Return for each text its likeliest label, and the probability of every label."""
        probabilities = self.logits(run, wanted.texts).softmax(dim=1)
        best = probabilities.argmax(dim=1)
        return (
            {
                **columns,
                "text": text,
                "label": run.labels[i],
                "probability": round(row[i].item(), 6),
                "probabilities": {label: round(p, 6) for label, p in zip(run.labels, row.tolist(), strict=True)},
            }
            for columns, text, i, row in zip(wanted.columns, wanted.texts, best, probabilities, strict=True)
        )

    def cells(self, prediction: Json) -> tuple[str, ...]:
        """Return label, probability and text."""
        return prediction["label"], f"{prediction['probability']:.3f}", prediction["text"]


def confusion_matrix(guesses: Sequence[int], truth: Sequence[int], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return for each class how many of its examples were taken for each class; what is 0 is left out."""
    counts = Counter(zip(truth, guesses, strict=True))
    return {
        label: {guess: counts[i, j] for j, guess in enumerate(labels) if counts[i, j]} for i, label in enumerate(labels)
    }
