"""Multi-label classification: each text has any number of labels, none among them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from adapterx.cli.data.classes import listed_labels, renamed
from adapterx.cli.data.examples import (
    Examples,
    checked,
    find_column,
    label_value,
    require_learnt,
    shown_value,
    texts_of,
)
from adapterx.cli.data.sources import Sources
from adapterx.cli.data.tables import Rows, read_rows
from adapterx.cli.data.wanted import Wanted
from adapterx.cli.rules import LABELS
from adapterx.cli.tasks.columns import BETWEEN, as_list, find_columns, require_different
from adapterx.cli.tasks.sequences import SequenceTask
from adapterx.cli.tasks.task import Asked, Encoded, Json, Run
from adapterx.cli.tasks.windows import labels_of_texts
from adapterx.errors import DataError, speaker
from adapterx.heads.labels import MULTI_LABEL
from adapterx.scores import multi_label_scores

SEPARATOR, THRESHOLD = ",", 0.5
OTHERS = ";|\t"  # what separates labels where no comma does
YES_OR_NO = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class MultiLabelClassification(SequenceTask):
    """Binary cross entropy of each label."""

    name = "multi-label-classification"
    aliases = ("multilabel-classification", "multi_label_classification")
    about = "any number of labels for each text"
    problem_type = MULTI_LABEL
    recipes: ClassVar = {method: recipe | {"threshold": THRESHOLD} for method, recipe in SequenceTask.recipes.items()}
    options = SequenceTask.options | {"threshold", "label_separator", "labels", "label_map"}
    figures = ("micro_f1", "macro_f1", "subset_accuracy", "majority_baseline")
    recorded: ClassVar = {"labels": LABELS}
    answer = ("text", "labels", "probabilities")
    nested = frozenset({"probabilities"})

    def read(self, source: str | Sources, asked: Asked, *, default_split: str) -> Examples:
        """Read lists of labels, texts that hold them, or a column of 0 and 1 for each label."""
        rows = read_rows(source, default_split=default_split)
        text_column = find_column(rows, asked.text_column, asked.recorded[0], "text")
        columns = find_columns(rows, asked.label_column, asked.recorded[1], "label")
        require_different(rows, [text_column], columns)
        if len(columns) > 1:
            each = [checked(rows, column, _yes_or_no) for column in columns]
            labels = [
                [column for column, has in zip(columns, row, strict=True) if has] for row in zip(*each, strict=True)
            ]
        else:
            labels = _labels_of(rows, columns[0], asked.settings.get("label_separator"))
        examples = Examples(texts_of(rows, text_column), labels, text_column, BETWEEN.join(columns))
        examples = renamed(examples, asked.settings.get("label_map"))
        return replace(examples, labels=[list(dict.fromkeys(each)) for each in examples.labels])  # two may become one

    def learn(self, examples: Examples, settings: Mapping[str, Any], source: str | Sources) -> Json:
        """Return the labels in order: of their columns, or of their names."""
        found = {label for labels in examples.labels for label in labels}
        if not found:
            raise DataError(f"{speaker()}: {source} must give some text a label, no text has one")
        if labels := listed_labels(settings, found, source):
            return {"labels": labels}
        names = (examples.label_column or "").split(BETWEEN)
        names = list(dict.fromkeys((settings.get("label_map") or {}).get(name, name) for name in names))
        return {"labels": names if found <= set(names) and len(names) > 1 else _in_order(found)}

    def targets(self, examples: Examples, known: Json, source: str | Sources) -> Sequence[list[float]]:
        """Return 1 for each label that a text has, and 0 for the others."""
        require_learnt((label for labels in examples.labels for label in labels), known["labels"], source)
        return [[float(label in labels) for label in known["labels"]] for labels in map(set, examples.labels)]

    def scores(self, logits: Tensor, truth: Tensor, known: Json) -> dict[str, float]:
        """Score at the threshold of one half; the run's own one is used by `evaluate`."""
        return multi_label_scores(logits > 0, truth > 0.5)

    def best(self, known: Json) -> tuple[str, bool]:
        """Choose by micro-F1."""
        return "micro_f1", True

    def baselines(self, training: Encoded, held_out: Encoded, known: Json) -> dict[str, float]:
        """Return the subset accuracy of always giving the labels that are most frequent together in training."""
        seen, unseen = (list(map(tuple, labels_of_texts(rows))) for rows in (training, held_out))
        sets = Counter(seen)
        most_frequent = max(sorted(sets), key=sets.__getitem__)
        return {"majority_baseline": unseen.count(most_frequent) / len(unseen)}

    def evaluate(self, run: Run, examples: Examples) -> Json:
        """Score a run at its threshold, and each of its labels."""
        truth = torch.tensor(self.targets(examples, run.record, "the data"))
        logits = self.logits(run, examples.texts)
        guesses = logits.sigmoid() >= run.record["options"]["threshold"]
        metrics: Json = multi_label_scores(guesses, truth)
        metrics["loss"] = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth).item()
        metrics["threshold"] = run.record["options"]["threshold"]
        metrics["classes"] = {}
        for i, label in enumerate(run.labels):
            hits = (guesses[:, i] & truth[:, i].bool()).sum().item()
            guessed, right = guesses[:, i].sum().item(), int(truth[:, i].sum().item())
            metrics["classes"][label] = {
                "precision": hits / guessed if guessed else None,
                "recall": hits / right if right else None,
                "examples": right,
            }
        return metrics

    def predict(self, run: Run, wanted: Wanted) -> Iterator[Json]:
        """Return for each text the labels whose probability reaches the threshold, and every probability."""
        threshold = run.record["options"]["threshold"]

        def answer(row: Tensor) -> Json:
            of_labels = dict(zip(run.labels, row.tolist(), strict=True))
            return {
                "labels": [label for label, p in of_labels.items() if p >= threshold],
                "probabilities": {label: round(p, 6) for label, p in of_labels.items()},
            }

        probabilities = self.logits(run, wanted.texts).sigmoid()
        found = zip(wanted.columns, wanted.texts, probabilities, strict=True)
        return (columns | {"text": text} | answer(row) for columns, text, row in found)

    def cells(self, prediction: Json) -> tuple[str, ...]:
        """Return the labels and the text."""
        return ", ".join(prediction["labels"]) or "-", prediction["text"]


def _in_order(labels: set[str]) -> list[str]:
    try:
        return sorted(labels, key=lambda label: (int(label), label))
    except ValueError:
        return sorted(labels)


def _yes_or_no(value: object, where: str) -> bool | None:
    if value is None or value != value or value == "":  # NaN differs from itself
        return None
    found = YES_OR_NO.get(str(value).strip().lower().removesuffix(".0"))
    if found is None:
        raise DataError(f"{speaker()}: {where} must be 0 or 1, one of several label columns, got {shown_value(value)}")
    return found


def _labels_of(rows: Rows, column: str, separator: str | None) -> list[list[str]]:
    """Return the labels of each row, from lists or from texts that a separator divides."""
    separator = "\t" if separator == "\\t" else separator
    texts = [v for row in rows.values if isinstance(v := row.get(column), str) and as_list(v) is None]
    if separator is None and texts and not any(SEPARATOR in text for text in texts):
        other = next((mark for mark in OTHERS if any(mark in text for text in texts)), None)
        if other is not None:
            raise DataError(
                f"{speaker()}: {rows.source}: the labels in column {column!r} must be separated by a comma, none is "
                f"and {other!r} occurs; say which it is with --label-separator"
            )

    def labels(value: object, where: str) -> list[object] | None:
        found = as_list(value)
        if found is None and (value is None or value != value):
            return None
        if found is None:
            found = [part for part in str(value).split(separator or SEPARATOR) if part.strip()]
        return found

    found = checked(rows, column, labels)
    if _are_multi_hot(found):
        return [[str(i) for i, has in enumerate(row) if has] for row in found]
    places = [f"{rows.source}: {place}: column {column!r}" for place in rows.places]
    return [[_name(each, where) for each in _distinct(row, where)] for row, where in zip(found, places, strict=True)]


def _are_multi_hot(rows: list[list[object]]) -> bool:
    """Return whether all lists are 0 and 1 for each label; lists of the numbers of labels hold none twice."""
    width = len(rows[0])
    alike = all(len(row) == width and all(not isinstance(v, str) and v in (0, 1) for v in row) for row in rows)
    return alike and any(len(set(row)) < len(row) for row in rows)


def _distinct(labels: list[object], where: str) -> list[object]:
    if len({str(label).strip() for label in labels}) < len(labels):
        raise DataError(f"{speaker()}: {where} must hold different labels, got {shown_value(labels)}")
    return labels


def _name(value: object, where: str) -> str:
    text = label_value(value, where)
    if text is None:
        raise DataError(f"{speaker()}: {where} must hold no empty label, got {shown_value(value)}")
    return text
