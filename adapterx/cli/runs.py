"""The folder of a run: who may write to it, when it is complete, and how a trained classifier is read back."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from adapterx.checkpoint import load_adapter
from adapterx.checkpoint.folder import discard, move_into_place, staging, sync_folder, write_atomically
from adapterx.checkpoint.folder import tidy as tidy_staging
from adapterx.checkpoint.lock import locked
from adapterx.cli import records
from adapterx.cli.bases import check_base, describe_base
from adapterx.cli.loading import quiet_transformers
from adapterx.cli.records import CHECKPOINTS, CURVE, METRICS, RECORD, STARTED_WITH
from adapterx.cli.tasks import task_of
from adapterx.cli.tasks.task import Run
from adapterx.errors import AdapterxError, CheckpointError, ConfigError, speaker

PARTIAL = ".partial-"
PATIENCE = 0.5  # seconds: `tidy` holds the lock of a folder for a moment, a training for long


def write(path: Path, content: bytes) -> None:
    """Write a file atomically, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def state_of(folder: Path) -> str | None:
    """Return `"complete"` or `"interrupted"`, or None for a folder without a run."""
    if os.path.lexists(folder / RECORD):
        return "complete"
    return "interrupted" if os.path.lexists(folder / CHECKPOINTS / STARTED_WITH) else None


@contextmanager
def reserved(output: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Keep the output folder for this training, which may then write to it; a second one is refused, and waits not.

    Nothing is deleted unless `overwrite` is given, but for what is of no use to anybody; a folder that was made for
    nothing is one.

    Raises:
        ConfigError: another process trains into it, it holds something and no flag is given, there is nothing to
            resume, or it is not writable.
    """
    check_resumable(output, resume=resume)
    with ExitStack() as held:
        made = not output.exists()
        try:
            output.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(output, wait=PATIENCE))
            with tempfile.TemporaryFile(dir=output):
                pass
        except OSError as error:
            raise ConfigError(f"train: the output folder {output} is not writable: {error.strerror}") from error
        except CheckpointError as error:
            raise ConfigError(
                f"train: another process is training into {output}; wait until it is done, or choose another folder"
            ) from error
        if made:
            held.callback(_remove_empty, output)
        check_resumable(output, resume=resume)  # that other process may just have ended
        _check_empty(output, resume=resume, overwrite=overwrite)
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds something, which is the rule
        folder.rmdir()


def check_resumable(output: Path, *, resume: bool) -> None:
    """Refuse what cannot be a run folder, and with `resume` one that holds nothing to go on with.

    Raises:
        ConfigError: it is one of these.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"train: the output {output} must be a folder, it is a file")
    state = state_of(output)
    if resume and state == "complete":
        tidy(output)
        raise ConfigError(f"train: nothing to resume: the run in {output} is complete")
    if resume and state is None:
        raise ConfigError(f"train: nothing to resume: {output} holds no interrupted run; start it without --resume")


def _check_empty(output: Path, *, resume: bool, overwrite: bool) -> None:
    tidy(output)
    begun = output / CHECKPOINTS
    if begun.is_dir() and all(path.name.startswith(".") for path in begun.iterdir()):
        shutil.rmtree(begun)  # killed before its options were written, so there is nothing to go on with
    names = sorted(path.name for path in output.iterdir())
    if names and not resume and not overwrite:
        if state_of(output) == "interrupted":
            raise ConfigError(
                f"train: {output} holds an interrupted run; continue it with --resume or discard it with --overwrite"
            )
        raise ConfigError(
            f"train: the output folder {output} is not empty ({', '.join(names[:4])}); choose another or --overwrite"
        )


def tidy(folder: Path) -> None:
    """Delete what a training that was killed in its last moments left: its temporary folders, and its checkpoints.

    Checkpoints go when the run is complete and does not say that they were to stay. Where somebody trains into the
    folder, or it may not be written, nothing happens.
    """
    with suppress(OSError, AdapterxError):
        if not (folder / CHECKPOINTS).is_dir() and not any(folder.glob(f"{PARTIAL}*")):
            return
        with locked(folder, wait=0.0):
            tidy_staging(folder, prefix=PARTIAL)
            if state_of(folder) == "complete" and records.read_record(folder).get("keep_checkpoints") is False:
                discard_checkpoints(folder)


def discard_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run."""
    for checkpoint in (folder / CHECKPOINTS).glob("checkpoint-*"):
        discard(checkpoint)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def clear_folder(output: Path) -> None:
    """Delete an old run's files and nothing else (`run.json` first: without it no other file counts)."""
    names = [RECORD, METRICS, CURVE, "config.json", "adapter_config.json", "head_config.json"]
    names += [path.name for path in output.glob("*.safetensors")] + [path.name for path in output.glob("tokenizer*")]
    with suppress(CheckpointError):
        names += records.read_record(output).get("files", {})
    for name in dict.fromkeys(names):
        (output / name).unlink(missing_ok=True)
        if name == RECORD:
            sync_folder(output)
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


def read_record(folder: Path) -> dict[str, Any]:
    """Read `run.json`.

    Raises:
        CheckpointError: it is missing, damaged, or of a later format.
    """
    state = state_of(folder)
    if state != "complete":
        unfinished = f"the run in {folder} is not complete; finish it with `adapterx train --resume {folder}`"
        absent = f"{folder} is no run folder: it has no {RECORD}"
        missing = f"the run folder {folder} does not exist"
        raise CheckpointError(f"{speaker()}: {unfinished if state else absent if folder.is_dir() else missing}")
    return records.read_record(folder)


def load_run(folder: Path, *, model: str | None = None, other_base: bool = False) -> Run:
    """Read a run back.

    Args:
        folder: the run folder.
        model: base model to use in place of the recorded one, for example after its folder was moved.
        other_base: whether the base model may have other weights, or another tokenizer, than at the training.

    Raises:
        CheckpointError: something is missing, damaged, does not fit, or was changed while it was read.
    """
    tidy(folder)
    record = read_record(folder)
    records.check_files(folder, record.get("files", {}))
    quiet_transformers()
    own = record["method"] == "full"  # then the whole model stands in the run folder
    source = str(folder) if own else model or record["base_model"]
    task = task_of(record)
    tokenizer, base = task.load(source)
    if "base" in record and not other_base:
        check_base(record["base"], describe_base(base, tokenizer), source)
    if record["method"] == "adapters":
        load_adapter(base, folder, check_base=not other_base)
    trained = task.restore(base, folder, record)
    # A training that overwrites a run deletes `run.json` before it changes any other file.
    if read_record(folder) != record:
        raise CheckpointError(f"{speaker()}: the run in {folder} was replaced while it was read; try again")
    return Run(folder, record, task, trained.eval(), tokenizer)
