"""What a training was started with, and whether a resumed one goes on as it was."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from adapterx.cli import records, runs
from adapterx.cli.options import COMMAND, OPTIONS, TrainOptions
from adapterx.cli.records import CHECKPOINTS, CONTENTS, STARTED_WITH, Json, to_document, to_json
from adapterx.cli.reporting import say
from adapterx.config import AdapterConfig
from adapterx.errors import ConfigError

_OF_VERSION_1 = {option.name for option in OPTIONS} | {"adapter", *CONTENTS}
_OF_A_STEP = ("batch_size", "gradient_accumulation", "processes")  # together they make the batch of a step
_NOT_COMPARED = {"format_version", "document_sha256", COMMAND, *records.MACHINE}


def machine(options: TrainOptions) -> Json:
    """Return what of this machine the last digits of a result depend on."""
    device = "cuda" if options.uses_gpu else "cpu"
    return {"threads": torch.get_num_threads(), "device": device, "versions": records.versions()}


def processes() -> int:
    """Return how many processes train together, as torchrun says; a batch is as many times larger."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def started_with(output: Path) -> Json:
    """Return what an interrupted run was started with; options that its version did not know stand at their defaults.

    Raises:
        CheckpointError: the document is damaged, or of a later format.
    """
    before = records.read_started_with(output, _OF_VERSION_1)
    filled = {option.name: option.default for option in OPTIONS if not option.metadata["free"]} | before
    if isinstance(filled.get("adapter"), dict):
        with suppress(ConfigError):  # what is no configuration differs from all
            filled["adapter"] = AdapterConfig.from_dict(filled["adapter"]).to_dict()
    return json.loads(to_json(filled))


def as_before(options: TrainOptions, before: Json) -> TrainOptions:
    """Return the options with the recorded threads, and the recorded CPU, where the command line names none."""
    adopted = {"threads": before.get("threads")} if options.threads is None else {}
    if options.device == "auto" and before.get("device") == "cpu":
        adopted["device"] = "cpu"
    return options.replaced(**adopted)


def begin(output: Path, options: TrainOptions, found: Json) -> None:
    """Clear the folder and note what the run is started with.

    Args:
        output: the run folder.
        options: of the run.
        found: what the data and the model brought.
    """
    runs.clear_folder(output)
    noted = options.record() | found | machine(options) | {COMMAND: dict(options.words)}
    runs.write(output / CHECKPOINTS / STARTED_WITH, to_document(noted))


def go_on(options: TrainOptions, found: Json, before: Json) -> None:
    """Refuse to resume with other options, data or base model than before; say where the machine is another.

    The batch of a step must be as large as before, whatever the number of processes that share it.

    Raises:
        ConfigError: something differs; the text says what.
    """
    now = json.loads(to_json(options.record() | found))
    compared = {name: now.get(name) for name in found.keys() - set(CONTENTS)} | before  # unknown to version 1
    compared = {name: value for name, value in compared.items() if name not in _NOT_COMPARED}
    if "weights of the base model" in before:  # then it may have moved
        compared["model"] = now["model"]
    if _batch(compared) == _batch(now):  # shared out among another number of processes
        compared |= {name: now[name] for name in _OF_A_STEP if name in now}
    if differ := differences(compared, now):
        raise ConfigError(f"train: --resume needs the options of the first run, these differ: {'; '.join(differ)}")
    here = machine(options)
    if differ := differences({name: before.get(name, here[name]) for name in here}, here):
        say(
            f"another machine than before ({'; '.join(differ)}): the last digits of the result may differ from those "
            "of an undisturbed run"
        )


def _batch(values: Json) -> int:
    """Return how many examples all processes together read for a step."""
    return math.prod(int(values.get(name) or 1) for name in _OF_A_STEP)


def differences(before: Json, now: Json) -> list[str]:
    """Return `name: old -> new` for every value that differs, looking into nested ones."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new)
        elif old != new:
            found.append(f"{name}: {old} -> {new}")
    return found


@contextmanager
def telling_how_to_go_on(output: Path) -> Iterator[None]:
    """Where Ctrl-C or another signal ends the training, say how to go on; the exit code stays that of the signal."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        state = runs.state_of(output)
        if state is None:  # nothing had begun
            raise
        done = f"the run in {output} is complete"
        say(f"interrupted; {done if state == 'complete' else f'continue with: adapterx train --resume {output}'}")
        if isinstance(stop, KeyboardInterrupt):
            raise SystemExit(130) from stop
        raise
