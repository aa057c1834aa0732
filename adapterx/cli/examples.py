"""Turn rows into labelled examples: find the columns, check every value, give the labels a fixed order."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from adapterx.cli.tables import Rows, read_rows
from adapterx.errors import DataError, speaker

USUAL_COLUMNS = {  # in the order in which they are looked for
    "text": ("text", "sentence", "review", "content", "document", "utterance", "question", "comment", "body", "title"),
    "label": ("label", "labels", "category", "class", "intent", "sentiment", "target", "topic", "y"),
}


@dataclass(frozen=True)
class Examples:
    """Texts, their labels (empty when none were asked for), and the columns they came from."""

    texts: list[str]
    labels: list[str]
    text_column: str
    label_column: str | None

    def take(self, positions: list[int]) -> "Examples":
        """Return the examples at these positions."""
        labels = [self.labels[i] for i in positions] if self.labels else []
        return Examples([self.texts[i] for i in positions], labels, self.text_column, self.label_column)

    def digest(self) -> str:
        """Return a fingerprint of texts and labels, to notice that a file was changed between two runs."""
        return hashlib.sha256(json.dumps([self.texts, self.labels]).encode()).hexdigest()[:16]


def load_examples(
    source: str,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    hints: tuple[str | None, str | None] = (None, None),
    with_labels: bool = True,
    default_split: str = "train",
) -> Examples:
    """Read examples and check every one of them.

    Args:
        source: a file, or a dataset as `name:configuration@split`.
        text_column: None looks for the first hint, then for a usual name.
        label_column: likewise, with the second hint.
        hints: columns of an earlier table, taken if this one has them.
        with_labels: whether labels are read.
        default_split: split of a named dataset that names none.

    Raises:
        DataError: a column is missing or cannot be guessed, or a text or label is missing or of a wrong kind.
    """
    rows = read_rows(source, default_split=default_split)
    text_column = _column(rows, text_column, hints[0], "text")
    texts = _checked(rows, text_column, _text)
    if not with_labels:
        return Examples(texts, [], text_column, None)
    label_column = _column(rows, label_column, hints[1], "label")
    if label_column == text_column:
        raise DataError(f"{speaker()}: {source}: text column and label column must differ, both are {text_column!r}")
    return Examples(texts, _checked(rows, label_column, _label), text_column, label_column)


def _column(rows: Rows, asked: str | None, hint: str | None, kind: str) -> str:
    listed = ", ".join(repr(name) for name in rows.columns)
    if asked is not None:
        if asked not in rows.columns:
            raise DataError(f"{speaker()}: {rows.source} has no column {asked!r}; its columns are {listed}")
        return asked
    if hint in rows.columns:
        return hint
    lowered = {name.lower(): name for name in reversed(rows.columns)}
    for name in USUAL_COLUMNS[kind]:
        if name in lowered:
            return lowered[name]
    raise DataError(
        f"{speaker()}: {rows.source} has no column that looks like a {kind}; "
        f"name it with --{kind}-column, one of {listed}"
    )


def _checked(rows: Rows, column: str, convert: Callable[[object, str], str]) -> list[str]:
    converted, missing = [], []
    for value, place in zip(rows.values, rows.places, strict=True):
        cell = value.get(column)
        if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):  # NaN differs from itself
            missing.append(place)
        else:
            converted.append(convert(cell, f"{rows.source}: {place}: column {column!r}"))
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise DataError(f"{speaker()}: {rows.source}: column {column!r} has no value in {shown}; fill or delete them")
    return converted


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{speaker()}: {where} must hold text, got {value!r}")
    return value


def _label(value: object, where: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    hint = " (regression is not supported)" if isinstance(value, float) else ""
    raise DataError(f"{speaker()}: {where} must hold class names or whole numbers, got {value!r}{hint}")


def ordered_labels(labels: list[str], source: str) -> list[str]:
    """Return the distinct labels in a fixed order: by value when all are whole numbers, else by name.

    Raises:
        DataError: there are fewer than two.
    """
    distinct = set(labels)
    if len(distinct) < 2:
        raise DataError(f"{speaker()}: {source} must have at least two classes, it has only {next(iter(distinct))!r}")
    try:
        return sorted(distinct, key=lambda label: (int(label), label))
    except ValueError:
        return sorted(distinct)


def label_ids(examples: Examples, known: list[str], source: str) -> list[int]:
    """Return the class id of every example.

    Raises:
        DataError: a label does not occur in training.
    """
    ids = {label: i for i, label in enumerate(known)}
    strange = sorted(set(examples.labels) - ids.keys())
    if strange:
        shown = ", ".join(repr(label) for label in strange[:5])
        raise DataError(
            f"{speaker()}: {source} has {len(strange)} label(s) that do not occur in training: {shown}; "
            f"known are {', '.join(repr(label) for label in known[:20])}"
        )
    return [ids[label] for label in examples.labels]
