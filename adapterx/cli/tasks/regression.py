"""Regression: each text has a number, or several."""

import decimal
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapterx.cli.data.examples import Examples, checked, find_column, shown_value, texts_of
from adapterx.cli.data.sources import Sources
from adapterx.cli.data.tables import Rows, read_rows
from adapterx.cli.data.wanted import Wanted
from adapterx.cli.rules import LABELS, Rule
from adapterx.cli.tasks.columns import BETWEEN, as_list, find_columns, require_different
from adapterx.cli.tasks.sequences import SequenceTask
from adapterx.cli.tasks.task import Asked, Encoded, Json, Run
from adapterx.cli.tasks.windows import labels_of_texts
from adapterx.errors import DataError, speaker
from adapterx.heads.labels import REGRESSION
from adapterx.scores import regression_scores

USUAL = ("score", "label", "labels", "rating", "stars", "similarity", "target", "value", "y")
NUMBERS: Rule = (
    "a list of finite numbers",
    lambda value: isinstance(value, list) and all(type(n) in (int, float) and math.isfinite(n) for n in value),
)


class Regression(SequenceTask):
    """Squared error of standardised numbers; what is saved, exported and predicted is in the units of the data.

    Targets are brought to mean 0 and standard deviation 1 for the training, so that the rates fit numbers of any size.
    At its end the head's last layer takes both on, and nothing that reads the run has to know of them.
    """

    name = "regression"
    aliases = ("text-regression",)
    about = "a number, or several, for each text"
    problem_type = REGRESSION
    figures = ("mse", "mae", "pearson", "spearman", "mean_baseline_mse")
    recorded: ClassVar = {"labels": LABELS, "target_means": NUMBERS, "target_deviations": NUMBERS}
    answer = ("text", "value", "values")

    def read(self, source: str | Sources, asked: Asked, *, default_split: str) -> Examples:
        """Read a column of numbers or of lists of them, or several columns."""
        rows = read_rows(source, default_split=default_split)
        text_column = find_column(rows, asked.text_column, asked.recorded[0], "text")
        columns = find_columns(rows, asked.label_column, asked.recorded[1], "label", USUAL)
        require_different(rows, [text_column], columns)
        each = [checked(rows, column, _numbers) for column in columns]
        labels = [[number for part in row for number in part] for row in zip(*each, strict=True)]
        _require_as_many(rows, labels)
        return Examples(texts_of(rows, text_column), labels, text_column, BETWEEN.join(columns))

    def learn(self, examples: Examples, settings: Mapping[str, Any], source: str | Sources) -> Json:
        """Return names, means and standard deviations of the numbers."""
        values = torch.tensor(examples.labels, dtype=torch.float64)
        names = (examples.label_column or "").split(BETWEEN)
        if len(names) != values.shape[1]:
            names = [f"{examples.label_column}_{i}" for i in range(values.shape[1])]
        deviations = values.std(dim=0, correction=0)
        for name, deviation in zip(names, deviations.tolist(), strict=True):
            if not 0 < deviation < math.inf:
                raise DataError(
                    f"{speaker()}: {source}: the numbers of {name} must differ, all are {values[0].tolist()}"
                )
        return {
            "labels": names,
            "target_means": values.mean(dim=0).tolist(),
            "target_deviations": deviations.tolist(),
        }

    def targets(self, examples: Examples, known: Json, source: str | Sources) -> Sequence[list[float]]:
        """Return the numbers, brought to mean 0 and standard deviation 1."""
        if any(len(row) != len(known["labels"]) for row in examples.labels):
            raise DataError(
                f"{speaker()}: {source} must have as many numbers as the training, {len(known['labels'])}, got "
                f"{len(examples.labels[0])}"
            )
        mean, deviation = _units(known)
        return ((torch.tensor(examples.labels, dtype=torch.float64) - mean) / deviation).tolist()

    def scores(self, logits: Tensor, truth: Tensor, known: Json) -> dict[str, float]:
        """Score in the units of the data."""
        mean, deviation = _units(known)
        return regression_scores(*(values.double() * deviation + mean for values in (logits, truth)))

    def best(self, known: Json) -> tuple[str, bool]:
        """Choose by the mean squared error, of which less is better."""
        return "mse", False

    def baselines(self, training: Encoded, held_out: Encoded, known: Json) -> dict[str, float]:
        """Return the squared error of always saying the mean of the training examples."""
        _, deviation = _units(known)
        seen, unseen = (torch.tensor(list(labels_of_texts(rows))).double() for rows in (training, held_out))
        return {"mean_baseline_mse": ((unseen - seen.mean(dim=0)) * deviation).square().mean().item()}

    @torch.no_grad()
    def settle(self, model: nn.Module, known: Json) -> None:
        """Let the last layer answer in the units of the data."""
        linear = model.head.linear
        mean, deviation = (values.to(linear.weight.device) for values in _units(known))
        linear.weight.copy_(linear.weight.double() * deviation.unsqueeze(1))
        linear.bias.copy_(linear.bias.double() * deviation + mean)

    def evaluate(self, run: Run, examples: Examples) -> Json:
        """Score a run, and each of its numbers where there are several."""
        self.targets(examples, run.record, "the data")
        truth, guessed = torch.tensor(examples.labels), self.logits(run, examples.texts)
        metrics: Json = regression_scores(guessed, truth)
        metrics["mean_baseline_mse"] = truth.double().var(dim=0, correction=0).mean().item()
        if len(run.labels) > 1:
            metrics["numbers"] = {
                name: regression_scores(guessed[:, i : i + 1], truth[:, i : i + 1]) for i, name in enumerate(run.labels)
            }
        return {name: None if value != value else value for name, value in metrics.items()}

    def predict(self, run: Run, wanted: Wanted) -> Iterator[Json]:
        """Return for each text its number, or its numbers by name."""

        def answer(row: Tensor) -> Json:
            values = {name: round(value, 6) for name, value in zip(run.labels, row.tolist(), strict=True)}
            return {"value": values[run.labels[0]]} if len(values) == 1 else {"values": values}

        found = zip(wanted.columns, wanted.texts, self.logits(run, wanted.texts), strict=True)
        return (columns | {"text": text} | answer(row) for columns, text, row in found)

    def cells(self, prediction: Json) -> tuple[str, ...]:
        """Return the numbers and the text."""
        values = prediction["values"].values() if "values" in prediction else [prediction["value"]]
        return *(f"{value:.4g}" for value in values), prediction["text"]


def _units(known: Json) -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(known[name], dtype=torch.float64) for name in ("target_means", "target_deviations"))


def _numbers(value: object, where: str) -> list[float] | None:
    found = as_list(value)
    if found is None:
        found = [value]
    if any(each is None or each != each or (isinstance(each, str) and not each.strip()) for each in found):
        return None
    try:
        if any(isinstance(each, bool) or not isinstance(each, (str, int, float, decimal.Decimal)) for each in found):
            raise ValueError
        numbers = [float(each) for each in found]
        if not numbers or not all(map(math.isfinite, numbers)):
            raise ValueError
    except (ValueError, OverflowError):
        raise DataError(f"{speaker()}: {where} must hold a finite number, got {shown_value(value)}") from None
    return numbers


def _require_as_many(rows: Rows, labels: list[list[float]]) -> None:
    for row, place in zip(labels, rows.places, strict=True):
        if len(row) != len(labels[0]):
            raise DataError(
                f"{speaker()}: {rows.source}: each row must have as many numbers as the first, {len(labels[0])}, "
                f"{place} has {len(row)}"
            )
