"""The folder of a run: what stands in it, when it is complete, and how a trained classifier is read back."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterx.checkpoint import load_adapter, load_head
from adapterx.checkpoint.folder import move_into_place, staging, write_atomically
from adapterx.cli.models import load_text_model, quiet_transformers
from adapterx.errors import CheckpointError, ConfigError, speaker
from adapterx.heads import SequenceClassifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECORD, METRICS, CURVE, CHECKPOINTS = "run.json", "metrics.json", "learning_curve.png", "checkpoints"
STARTED_WITH = "options.json"  # in the checkpoint folder: what an interrupted run was started with
PARTIAL = ".partial-"
FORMAT_VERSION = 1


def is_main_process() -> bool:
    """Return whether this process writes files and talks (torchrun starts several)."""
    return int(os.environ.get("RANK", "0")) == 0


def to_json(value: object) -> bytes:
    """Return readable JSON that any reader accepts (no NaN)."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def write(path: Path, content: bytes) -> None:
    """Write a file atomically, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def state_of(folder: Path) -> str | None:
    """Return `"complete"` or `"interrupted"`, or None for a folder without a run."""
    if (folder / RECORD).exists():
        return "complete"
    return "interrupted" if (folder / CHECKPOINTS / STARTED_WITH).exists() else None


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {name: version(name) for name in ("adapterx", "torch", "transformers")}


def prepare_folder(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Make the output folder ready, or say why it cannot be used; nothing is deleted unless `overwrite` is given.

    Raises:
        ConfigError: it holds something and no flag is given, there is nothing to resume, or it is not writable.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"train: the output {output} must be a folder, it is a file")
    state = state_of(output)
    if resume and state == "complete":
        raise ConfigError(f"train: nothing to resume: the run in {output} is complete")
    if resume and state is None:
        raise ConfigError(f"train: nothing to resume: {output} holds no interrupted run; start it without --resume")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ConfigError(f"train: the output folder {output} is not writable: {error.strerror}") from error
    for leftover in output.glob(f"{PARTIAL}*"):  # of a process that was killed while writing
        shutil.rmtree(leftover, ignore_errors=True)
    begun = output / CHECKPOINTS
    if begun.is_dir() and all(path.name.startswith(".") for path in begun.iterdir()):
        shutil.rmtree(begun)  # killed before its options were written, so there is nothing to go on with
    names = sorted(path.name for path in output.iterdir())
    if names and not resume and not overwrite:
        if state == "interrupted":
            raise ConfigError(
                f"train: {output} holds an interrupted run; continue it with --resume or discard it with --overwrite"
            )
        raise ConfigError(
            f"train: the output folder {output} is not empty ({', '.join(names[:4])}); choose another or --overwrite"
        )


def clear_folder(output: Path) -> None:
    """Delete an old run's files and nothing else (`run.json` first: without it no other file counts)."""
    names = [RECORD, METRICS, CURVE, "config.json", "adapter_config.json", "head_config.json"]
    names += [path.name for path in output.glob("*.safetensors")] + [path.name for path in output.glob("tokenizer*")]
    for name in names:
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


@contextmanager
def staged(output: Path, *, last: str) -> Iterator[Path]:
    """Give a folder to write into; afterwards its files move to `output`, the file `last` at the very end.

    A process killed in between leaves `output` without a new `last`, hence without a complete run.
    """
    with staging(output, prefix=PARTIAL) as folder:
        yield folder
        files = sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name))
        move_into_place([(path, output / path.name) for path in files])


@dataclass(frozen=True)
class Run:
    """A trained classifier, ready to use, and the record of how it came about."""

    folder: Path
    record: dict[str, Any]
    classifier: SequenceClassifier
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def labels(self) -> list[str]:
        """Class names; the position is the class id."""
        return self.record["labels"]


def read_record(folder: Path) -> dict[str, Any]:
    """Read `run.json`.

    Raises:
        CheckpointError: it is missing, damaged, or of a later format.
    """
    path, state = folder / RECORD, state_of(folder)
    if state != "complete":
        unfinished = f"the run in {folder} is not complete; finish it with `adapterx train ... --resume`"
        absent = f"{folder} is no run folder: it has no {RECORD}"
        missing = f"the run folder {folder} does not exist"
        raise CheckpointError(f"{speaker()}: {unfinished if state else absent if folder.is_dir() else missing}")
    try:
        record = json.loads(path.read_bytes())
        found = record["format_version"]
        needed = {"method", "base_model", "labels", "max_length"} - record.keys()
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{speaker()}: {path} is damaged: {error}") from error
    if found != FORMAT_VERSION or needed:
        raise CheckpointError(
            f"{speaker()}: {path} must have format {FORMAT_VERSION} and all its keys, got {found}, lacking {needed}"
        )
    return record


def load_run(folder: Path, *, model: str | None = None) -> Run:
    """Read a run back.

    Args:
        folder: the run folder.
        model: base model to use in place of the recorded one, for example after its folder was moved.

    Raises:
        CheckpointError: something is missing, damaged, or does not fit.
    """
    record = read_record(folder)
    quiet_transformers()
    own = record["method"] == "full"  # then the whole model stands in the run folder
    source = str(folder) if own else model or record["base_model"]
    tokenizer, base = load_text_model(source)
    if record["method"] == "adapters":
        load_adapter(base, folder)
    head = load_head(folder)
    if head.num_labels != len(record["labels"]):
        raise CheckpointError(
            f"{speaker()}: the head in {folder} has {head.num_labels} classes, {RECORD} {len(record['labels'])}"
        )
    classifier = SequenceClassifier(base, head.num_labels)
    classifier.head = head
    return Run(folder, record, classifier.eval(), tokenizer)
