"""Turn rows into labelled examples: find the columns, check every value, give the labels a fixed order."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from adapterx.cli.data.labels import NoClass, label_text
from adapterx.cli.data.rows import RowStream
from adapterx.cli.data.sources import Sources
from adapterx.cli.data.spool import chosen
from adapterx.cli.data.tables import Rows, listed, read_rows
from adapterx.errors import DataError, speaker

USUAL_COLUMNS = {  # in the order in which they are looked for
    "text": ("text", "sentence", "review", "content", "document", "utterance", "question", "comment", "body", "title"),
    "label": ("label", "labels", "category", "class", "intent", "sentiment", "target", "topic", "y"),
}


@dataclass(frozen=True)
class Examples:
    """Texts, their labels (empty when none were asked for), and the columns they came from.

    A task decides what a text and a label is: words and their tags, for example.
    """

    texts: Sequence[Any]
    labels: list[Any]
    text_column: str
    label_column: str | None

    def take(self, positions: list[int]) -> "Examples":
        """Return the examples at these positions."""
        labels = [self.labels[i] for i in positions] if self.labels else []
        return Examples(chosen(self.texts, positions), labels, self.text_column, self.label_column)

    def digest(self) -> str:
        """Return a fingerprint of texts and labels, to notice that a file was changed between two runs."""
        digest = hashlib.sha256()  # of `json.dumps([texts, labels])`, which may not fit memory
        for opening, values in (("[[", self.texts), ("], [", self.labels)):
            digest.update(opening.encode())
            for i, value in enumerate(values):
                digest.update(((", " if i else "") + json.dumps(value)).encode())
        digest.update(b"]]")
        return digest.hexdigest()[:16]


def load_examples(
    source: str | Sources,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    recorded: tuple[str | None, str | None] = (None, None),
    default_split: str = "train",
) -> Examples:
    """Read labelled examples and check every one of them.

    Args:
        source: a file, a pattern, or a dataset as `name:configuration@split`.
        text_column: None takes the recorded one; if none was recorded, a usual name is looked for.
        label_column: likewise.
        recorded: the columns of texts and labels that the training read.
        default_split: split of a named dataset that names none.

    Raises:
        DataError: a column is missing or cannot be guessed, or a text or label is missing or of a wrong kind.
    """
    rows = read_rows(source, default_split=default_split)
    text_column = find_column(rows, text_column, recorded[0], "text")
    label_column = find_column(rows, label_column, recorded[1], "label")
    require_columns(str(source), text_column, label_column)
    texts, labels = texts_of(rows, text_column), checked(rows, label_column, label_value)
    return Examples(texts, labels, text_column, label_column)


def require_columns(source: str, text_column: str, label_column: str) -> None:
    """Refuse one column for both, and names that cannot be recorded.

    Raises:
        DataError: it is one, or a name holds half a character.
    """
    if label_column == text_column:
        raise DataError(f"{speaker()}: {source}: text column and label column must differ, both are {text_column!r}")
    for column in (text_column, label_column):
        require_encodable(column, f"{source}: the name of a column")


def find_column(
    rows: Rows | RowStream, asked: str | None, recorded: str | None, kind: str, usual_names: Sequence[str] | None = None
) -> str:
    """Return the name of the column that holds the texts (`kind` is `"text"`) or the labels (`"label"`).

    What was recorded is not guessed anew: another column may look like texts, and would be answered for in its place.

    Raises:
        DataError: there is no such column, or none that looks like it.
    """
    names = listed(rows.columns)
    if asked is not None:
        if asked not in rows.columns:
            raise DataError(f"{speaker()}: {rows.source} has no column {asked!r}; its columns are {names}")
        return asked
    if recorded in rows.columns:
        return recorded
    lowered = {name.lower(): name for name in reversed(rows.columns)}
    usual = next((lowered[name] for name in usual_names or USUAL_COLUMNS[kind] if name in lowered), None)
    if recorded is not None and (usual is None or len(rows.columns) > 1):
        raise DataError(
            f"{speaker()}: {rows.source} has no column {recorded!r}, from which the training took its {kind}s; "
            f"name the one to take with --{kind}-column, one of {names}"
        )
    if usual is None:
        raise DataError(
            f"{speaker()}: {rows.source} has no column that looks like a {kind}; "
            f"name it with --{kind}-column, one of {names}"
        )
    return usual


def texts_of(rows: Rows, column: str) -> list[str]:
    """Return the texts of a column.

    Raises:
        DataError: one is missing, or no text.
    """
    return checked(rows, column, text_value)


def checked(rows: Rows, column: str, convert: Callable[[object, str], Any]) -> list[Any]:
    """Return the values of a column as `convert` gives them, which is told where each stands.

    Raises:
        DataError: one is missing: `convert` gives None for it.
    """
    converted, missing = [], []
    for value, place in zip(rows.values, rows.places, strict=True):
        found = convert(value.get(column), f"{rows.source}: {place}: column {column!r}")
        if found is None:
            missing.append(place)
        else:
            converted.append(found)
    require_present(rows, column, missing)
    return converted


def require_present(rows: Rows | RowStream, column: str, missing: Sequence[str]) -> None:
    """Refuse a column without a value in the rows at some places.

    Raises:
        DataError: there are such places.
    """
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise DataError(f"{speaker()}: {rows.source}: column {column!r} has no value in {shown}; fill or delete them")


def text_value(value: object, where: str) -> str | None:
    """Return the text of a cell; None if it is missing or blank.

    Raises:
        DataError: it holds something else.
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN differs from itself
        return None
    if not isinstance(value, str):
        raise DataError(f"{speaker()}: {where} must hold text, got {shown_value(value)}")
    require_encodable(value, where)
    return value


def require_encodable(text: str, where: str) -> None:
    r"""Refuse a text with half a surrogate pair: bytes of an argument that are no UTF-8, or `\ud800` in JSON.

    Raises:
        DataError: it has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{speaker()}: {where} must be text that UTF-8 can hold, got {text[error.start]!r}") from None


def label_value(value: object, where: str) -> str | None:
    """Return the text of a label; None if it is missing.

    Raises:
        DataError: the cell holds something else.
    """
    try:
        text = label_text(value)
    except NoClass as error:
        raise DataError(
            f"{speaker()}: {where} must hold class names or whole numbers, got {shown_value(value)} ({error})"
        ) from None
    if text is not None:
        require_encodable(text, where)
    return text


def shown_value(value: object) -> str:
    """Return a value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def ordered_labels(labels: list[str], source: str | Sources) -> list[str]:
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


def require_learnt(found: Iterable[str], known: list[str], source: str | Sources, what: str = "label") -> None:
    """Refuse labels that the training has not met.

    Args:
        found: the labels of examples.
        known: those of the training.
        source: where the examples come from, for the message.
        what: they are called there.

    Raises:
        DataError: there is one.
    """
    if strange := sorted(set(found) - set(known)):
        raise DataError(
            f"{speaker()}: {source} has {len(strange)} {what}(s) that do not occur in training: {listed(strange[:5])}; "
            f"known are {listed(known)}"
        )


def label_ids(examples: Examples, known: list[str], source: str | Sources) -> list[int]:
    """Return the class id of every example.

    Raises:
        DataError: a label does not occur in training.
    """
    # Runs of 0.1 recorded labels as their file wrote them, such as `True` and `1.0`.
    ids = {_as_read_now(label): i for i, label in enumerate(known)} | {label: i for i, label in enumerate(known)}
    require_learnt(set(examples.labels) - ids.keys(), known, source)
    return [ids[label] for label in examples.labels]


def _as_read_now(label: str) -> str:
    try:
        return label_text(label) or label
    except NoClass:
        return label
