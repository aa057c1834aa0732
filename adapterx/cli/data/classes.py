"""What a user says about classes: their names and order, other names for them, and what each weighs."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterx.checkpoint.document import read_json
from adapterx.cli.data.examples import Examples
from adapterx.cli.data.labels import NoClass, label_text
from adapterx.cli.data.rows import listed
from adapterx.cli.data.tables import read_rows
from adapterx.errors import CheckpointError, ConfigError, DataError, speaker

BALANCED = "balanced"


def given_labels(words: Sequence[str]) -> list[str]:
    """Return the classes in the order given: names with commas between them, or one name in each of several words.

    Raises:
        ConfigError: there are fewer than two, or one stands twice.
    """
    names = [_as_label(name) for name in (words[0].split(",") if len(words) == 1 else words)]
    if len(names) < 2 or len(set(names)) < len(names) or "" in names:
        raise ConfigError(f"train: labels must be at least two different names, got {', '.join(words)}")
    return names


def label_map(words: Sequence[str]) -> dict[str, str]:
    """Return other names for labels, from `old=new` (with commas between several) and from files.

    A file is a JSON object, or a table whose first two columns hold the old and the new names.

    Raises:
        ConfigError: a word is neither, or a label is given two new names.
        DataError: a file cannot be read.
    """
    pairs: list[tuple[str, str]] = []
    for word in words:
        if Path(word).suffix.lower() in (".json", ".csv", ".tsv") and "=" not in Path(word).name:
            pairs += _pairs_of_file(word)
            continue
        for part in word.split(","):
            old, is_pair, new = part.partition("=")
            if not is_pair:
                raise ConfigError(f"train: label_map must be old=new, or a .json, .csv or .tsv file, got {part!r}")
            pairs.append((old, new))
    found: dict[str, str] = {}
    for old, new in ((_as_label(old), _as_label(new)) for old, new in pairs):
        if not old or not new:
            raise ConfigError(f"train: label_map must name an old and a new label, got {f'{old}={new}'!r}")
        if found.setdefault(old, new) != new:
            raise ConfigError(f"train: label_map must give each label one name, {old!r} has {found[old]!r} and {new!r}")
    return found


def _pairs_of_file(name: str) -> list[tuple[str, str]]:
    path = Path(name).expanduser()
    if path.suffix.lower() == ".json":
        try:
            content = read_json(path)
        except CheckpointError as error:
            raise DataError(f"train: label_map: {str(error).partition(': ')[2]}") from None
        return [(str(old), str(new)) for old, new in content.items()]
    rows = read_rows(name)
    if len(rows.columns) < 2:
        raise DataError(f"train: label_map: {name} must have two columns, the old and the new names")
    old, new = rows.columns[:2]
    return [(str(value[old]), str(value[new])) for value in rows.values]


def _as_label(name: str) -> str:
    """Return a name as it is read from data, where `1.0` is `1`."""
    try:
        return label_text(name) or ""
    except NoClass:
        return name.strip()


def renamed(examples: Examples, names: Mapping[str, str] | None) -> Examples:
    """Return the examples with other names for their labels, or for those of their words; others keep their own."""
    if not names:
        return examples
    labels = [
        [names.get(each, each) for each in label] if isinstance(label, list) else names.get(label, label)
        for label in examples.labels
    ]
    return replace(examples, labels=labels)


def listed_labels(settings: Mapping[str, Any], found: Iterable[str], source: object) -> list[str] | None:
    """Return the classes that `--labels` lists, in order; None if it was not given.

    Args:
        settings: the options of the training, by their names.
        found: the labels of examples, all of which it must list.
        source: where the examples come from, for the message.

    Raises:
        ConfigError: as in `given_labels`.
        DataError: a label is not listed.
    """
    if settings.get("labels") is None:
        return None
    labels = given_labels(settings["labels"])
    if strange := sorted(set(found) - set(labels)):
        raise DataError(
            f"{speaker()}: {source} has {len(strange)} label(s) that --labels does not list: {listed(strange[:5])}"
        )
    return labels


def class_weights(words: Sequence[str], labels: Sequence[str], examples: Examples) -> list[float]:
    """Return the weight of each class.

    `balanced` gives `examples / (classes * examples of the class)`, over the classes that occur, as scikit-learn does;
    a class that does not occur weighs 1. `label=weight` names some weights, the others are 1.

    Args:
        words: as they were typed.
        labels: the classes in order.
        examples: to train on.

    Raises:
        ConfigError: a word names no class, or no weight above 0.
    """
    if list(words) == [BALANCED]:
        counts = Counter(examples.labels)
        return [len(examples.labels) / (len(counts) * counts[each]) if counts[each] else 1.0 for each in labels]
    weights = dict.fromkeys(labels, 1.0)
    for word in words:
        whole = word.rpartition("=")[0] in weights  # a name may hold a comma
        for part in [word] if whole else word.split(","):
            name, _, number = part.rpartition("=")
            if name not in weights:
                raise ConfigError(
                    f"train: class_weights must be {BALANCED}, or label=weight for some of "
                    f"{listed(labels)}, got {part!r}"
                )
            weights[name] = _weight(number, part)
    return list(weights.values())


def _weight(number: str, part: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0.0 < weight < math.inf:
        raise ConfigError(f"train: class_weights must be numbers above 0, got {part!r}")
    return weight
