"""The documents of a run: `run.json`, `metrics.json` and `options.json`, written with a hash and read strictly."""

import json
import os
import re
from collections.abc import Mapping, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapterx.checkpoint.document import (
    FORMAT_VERSION,
    PACKAGE_VERSION,
    check_hash,
    describe_content,
    has_content,
    hashed,
    open_regular,
    read_json,
)
from adapterx.cli.recipes import METHODS
from adapterx.cli.rules import Rule, is_text
from adapterx.cli.tasks import TASKS, task_of
from adapterx.errors import CheckpointError, speaker

RECORD, METRICS, CURVE, CHECKPOINTS = "run.json", "metrics.json", "learning_curve.png", "checkpoints"
STARTED_WITH = "options.json"  # in the checkpoint folder: what an interrupted run was started with

CONTENTS = ("max_length", "content of the data", "labels", "content of the evaluation data")  # of `options.json`

Json = dict[str, Any]

# What 0.1.0 wrote: a document without a hash must hold these keys and no other.
_RECORD_1 = {"format_version", "method", "base_model", "labels", "max_length", "text_column", "label_column", "seed"}
_RECORD_1 |= {"options", "versions"}
_METRICS_1 = {"method", "accuracy", "macro_f1", "loss", "majority_baseline", "train_examples", "eval_examples", "steps"}
_METRICS_1 |= {"train_seconds", "trainable_parameters", "total_parameters", "trainable_fraction", "history"}
_METRICS_1 |= {"adapter_file_bytes", "saved_bytes"}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"adapterx": PACKAGE_VERSION} | {name: version(name) for name in ("torch", "transformers")}


def to_json(value: object) -> bytes:
    """Return readable JSON that any reader accepts (no NaN)."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def to_document(values: Mapping[str, Any]) -> bytes:
    """Return a document of a run: the values, the version of the format, and the hash of both."""
    return to_json(hashed({"format_version": FORMAT_VERSION, **values}))


def read_record(folder: Path) -> Json:
    """Read `run.json` of a complete run; every value that is used later has been checked.

    Raises:
        CheckpointError: it is damaged, or of a later format.
    """
    document = _read(folder / RECORD, _RECORD_1, _REQUIRED, _RULES)
    task = task_of(document)
    _check(document, folder / RECORD, task.recorded.keys(), task.recorded)
    return document


def read_metrics(folder: Path) -> Json:
    """Read `metrics.json`; errors as in `read_record`."""
    return _read(folder / METRICS, _METRICS_1, {"method", "history"}, {})


def read_started_with(folder: Path, known: Set[str]) -> Json:
    """Read what an interrupted run was started with; errors as in `read_record`.

    Args:
        folder: of the run.
        known: the keys that a document of version 1 may hold.
    """
    return _read(folder / CHECKPOINTS / STARTED_WITH, known, {"method", *CONTENTS[:2]}, MACHINE)


def describe_file(path: Path) -> dict[str, int | str]:
    """Return size in bytes and SHA-256 of a regular file.

    Raises:
        CheckpointError: it cannot be read, or is of another kind.
    """
    with open_regular(path) as file:
        return describe_content(file)


def check_files(folder: Path, files: Mapping[str, Mapping[str, int | str]]) -> None:
    """Check that the files of a run are those that it wrote.

    Raises:
        CheckpointError: one is missing or holds other bytes.
    """
    for name, expected in files.items():
        path = folder / name
        with open_regular(path) as file:
            same = has_content(file, expected)
        if not same:
            raise CheckpointError(
                f"{speaker()}: {path} is damaged or belongs to another run: its bytes are not those that {RECORD} names"
            )


def _read(path: Path, of_version_1: Set[str], required: Set[str], rules: Mapping[str, Rule]) -> Json:
    document = read_json(path)
    found = document.get("format_version", 1)
    if type(found) is not int or not 1 <= found <= FORMAT_VERSION:
        raise CheckpointError(
            f"{speaker()}: format_version of {path} must lie between 1 and {FORMAT_VERSION}, got {found!r}; "
            "a newer adapterx may have written it"
        )
    if found > 1:
        check_hash(document, str(path))
    elif unknown := sorted(document.keys() - of_version_1):
        raise CheckpointError(f"{speaker()}: {path} is damaged: format_version 1 has no {', '.join(unknown)}")
    _check(document, path, required, rules)
    return document


def _check(document: Json, path: Path, required: Set[str], rules: Mapping[str, Rule]) -> None:
    if lacking := sorted(required - document.keys()):
        raise CheckpointError(f"{speaker()}: {path} is damaged: it lacks {', '.join(lacking)}")
    for name, (rule, holds) in rules.items():
        if name in document and not holds(document[name]):
            raise CheckpointError(f"{speaker()}: {name} of {path} must be {rule}, got {document[name]!r}")


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        os.path.basename(name) == name not in ("", ".", "..")
        and isinstance(facts, dict)
        and facts.keys() == {"bytes", "sha256"}
        and type(facts["bytes"]) is int
        and re.fullmatch("[0-9a-f]{64}", str(facts["sha256"])) is not None
        for name, facts in value.items()
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, value.values()))


_COLUMN: Rule = ("the name of a column or null", lambda value: value is None or is_text(value))
# What a machine brings to a result: the last digits depend on it.
MACHINE: dict[str, Rule] = {
    "threads": ("a number from 1 to 1024", lambda value: type(value) is int and 1 <= value <= 1024),
    "device": ("cpu or cuda", lambda value: value in ("cpu", "cuda")),
    "versions": ("an object of texts", _are_texts),
}
_RULES: dict[str, Rule] = MACHINE | {
    "task": (f"one of {', '.join(TASKS)}", lambda value: isinstance(value, str) and value in TASKS),
    "method": (f"one of {', '.join(METHODS)}", lambda value: isinstance(value, str) and value in METHODS),
    "base_model": ("a text", is_text),
    "max_length": ("a number from 1 to 10,000,000", lambda value: type(value) is int and 1 <= value <= 10_000_000),
    "text_column": _COLUMN,
    "label_column": _COLUMN,
    "seed": ("a number from 0 up", lambda value: type(value) is int and value >= 0),
    "options": (
        "an object with an adapter",
        lambda value: isinstance(value, dict) and isinstance(value.get("adapter", 0), dict | None),
    ),
    "files": ("an object of sizes and hashes", _are_files),
    "base": ("an object of texts", _are_texts),
    "keep_checkpoints": ("true or false", lambda value: isinstance(value, bool)),
}
_REQUIRED = {"format_version", "method", "base_model", "max_length", "seed", "options"}
