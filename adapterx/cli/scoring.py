"""`adapterx evaluate` and `adapterx predict`: use a trained run on new texts."""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterx.cli.data.sources import Sources
from adapterx.cli.data.wanted import Wanted
from adapterx.cli.runs import load_run, read_record
from adapterx.cli.tasks import task_of
from adapterx.cli.tasks.generation import Generation
from adapterx.cli.tasks.task import Asked, Run, Task
from adapterx.errors import ConfigError, speaker


def evaluate(
    folder: Path,
    data: str | Sources,
    *,
    text_column: str | None,
    label_column: str | None,
    model: str | None,
    other_base: bool = False,
    streaming: bool = False,
) -> dict[str, Any]:
    """Score a run on labelled data.

    Raises:
        AdapterxError: the run or the data cannot be used.
    """
    record = read_record(folder)  # the data come before the model, which takes longer to load than they to be refused
    task = task_of(record)
    asked = Asked.again(record, text_column, label_column)
    if streaming:
        asked = streamed(asked, possible="streaming" in task.options, task=task)
    examples = task.read(data, asked, default_split="test")
    task.check(examples, record, data)
    run = load_run(folder, model=model, other_base=other_base)
    told = {"data": str(data).encode("utf-8", "backslashreplace").decode(), "examples": len(examples.texts)}
    return told | task.evaluate(run, examples)


def table_line(scores: dict[str, Any]) -> str:
    """Return the scores of one class, or of another part of the data, as `evaluate` prints them."""

    def shown(name: str, value: object) -> str:
        if isinstance(value, int):
            return f"{value} {name}"
        return f"{name} {'-' if value is None else format(value, '.3f')}"

    return ", ".join(shown(name, value) for name, value in scores.items())


def streamed(asked: Asked, *, possible: bool, task: Task) -> Asked:
    """Return how to read data that are larger than memory: with the texts where temporary files are.

    Raises:
        ConfigError: the task reads none.
    """
    if not possible:
        raise ConfigError(f"{speaker()}: --streaming is for runs of some tasks only, this one's is {task.name}")
    return replace(asked, spool=Path(tempfile.gettempdir()))


def predict(run: Run, wanted: Wanted, generation: Generation | None = None) -> Iterable[dict[str, Any]]:
    """Return for each text its other columns and the prediction; `generation` says how a task generates that does."""
    return run.task.predict(run, wanted, *([generation] if run.task.generates else []))


def generation_of(task: Task, options: dict[str, Any]) -> Generation:
    """Return how texts are generated.

    Args:
        task: of the run.
        options: of the command line, None where nothing was said.

    Raises:
        ConfigError: a value breaks its rule, or the task generates none.
    """
    generation = Generation(**options)
    if not task.generates and (given := generation.given()):
        name = next(iter(given)).replace("_", "-")
        raise ConfigError(f"{speaker()}: --{name} can only be used with runs that generate, this one is {task.name}")
    return generation
