"""The options as typer takes them: parameters of the command `train`, which `--resume RUN` reads from the run."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from adapterx.cli import records, runs
from adapterx.cli.options.adapter import ADAPTER_OPTIONS, adapter_values
from adapterx.cli.options.declaring import ADAPTER, REQUIRED
from adapterx.cli.options.run import OPTIONS, TrainOptions
from adapterx.cli.paths import as_path
from adapterx.cli.words import READ_FROM_A_WORD
from adapterx.config import AdapterConfig
from adapterx.errors import ConfigError

HERE = "\0"  # what `--resume` without a run is given: the run is that of --output
COMMAND = "command"  # in options.json: what was typed


def _typed(name: str, kind: Any) -> Any:
    """Return the type of a field as it is typed: a tuple by repeating the option."""
    if name in READ_FROM_A_WORD:
        return str | None
    repeated = any(get_origin(each) is tuple for each in (kind, *get_args(kind)))
    return (list[str] if repeated else kind) | None


def parameters() -> list[inspect.Parameter]:
    """Return what the command takes, for typer, in the order of `--help`; None is what was not typed."""

    def parameter(name: str, kind: Any, panel: str, text: str | None, metavar: str | None) -> inspect.Parameter:
        path = {"parser": as_path, "metavar": "PATH"} if Path in (kind, *get_args(kind)) else {}
        path |= {"metavar": metavar} if metavar else {}
        shown = Annotated[kind, typer.Option(help=text, rich_help_panel=panel, show_default=False, **path)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=shown, default=None)

    shown = ("panel", "text", "metavar")
    own = [
        parameter(o.name, _typed(o.name, o.metadata["typed"] or o.type), *map(o.metadata.get, shown)) for o in OPTIONS
    ]
    kinds = get_type_hints(AdapterConfig)
    names = dict.fromkeys([*ADAPTER_OPTIONS, *kinds])
    return own + [parameter(n, _typed(n, kinds.get(n, str)), ADAPTER, ADAPTER_OPTIONS.get(n), None) for n in names]


def takes_train_options(command: Callable[[TrainOptions], None]) -> Callable[..., None]:
    """Let typer see every option as a parameter of the command; the command itself gets them as a whole."""

    @functools.wraps(command)
    def typed(**given: Any) -> None:
        words = {name: value for name, value in given.items() if value is not None and value != []}
        command(from_words(words))

    typed.__signature__ = inspect.Signature(parameters())
    return typed


def from_words(words: Mapping[str, Any]) -> TrainOptions:
    """Return the options that were typed, together with those of the run that `--resume RUN` names.

    Raises:
        ConfigError: one is missing, breaks its rule, or contradicts the run.
    """
    words = dict(words)
    run = words.pop("resume", None)
    if run not in (None, HERE):
        words = _of_run(Path(os.path.expanduser(run)), words)
    for declared in OPTIONS:
        if declared.default is REQUIRED and declared.name not in words:
            raise ConfigError(f"train: missing option '--{declared.name}'; see `adapterx train --help`")
    own = {declared.name: words[declared.name] for declared in OPTIONS if declared.name in words}
    adapter = {name: value for name, value in words.items() if name not in own}
    return TrainOptions(**own, resume=run is not None, adapter_values=adapter_values(adapter), words=_lasting(words))


def _of_run(run: Path, typed: dict[str, Any]) -> dict[str, Any]:
    """Return what was typed for a run, and what is typed now; where both are there, `go_on` compares what they mean."""
    if "output" in typed and typed["output"].absolute() != run.absolute():
        raise ConfigError(f"train: --resume {run} and --output {typed['output']} must name the same folder")
    runs.check_resumable(run, resume=True)
    known = {declared.name for declared in OPTIONS} | {"adapter", *records.CONTENTS}
    recorded = records.read_started_with(run, known).get(COMMAND)
    kinds = {each.name: each.annotation.__origin__ for each in parameters()}
    if isinstance(recorded, dict) and not all(n in kinds and _is_a(kinds[n], value) for n, value in recorded.items()):
        raise ConfigError(f"train: the run in {run} is damaged: its {COMMAND} holds what cannot have been typed")
    if not isinstance(recorded, dict) or not recorded:
        raise ConfigError(
            f"train: {run} does not tell how it was started, as an earlier version did not note it; repeat its options "
            f"with --output {run} --resume"
        )
    return recorded | typed | {"output": run}


def _is_a(kind: Any, value: object) -> bool:
    """Return whether a value that was read from JSON is what an option of this type is given."""
    if isinstance(value, list):
        return list[str] in get_args(kind) and all(isinstance(each, str) for each in value)
    kinds = {str if each is Path else each for each in get_args(kind)}
    return type(value) in kinds or (type(value) is int and float in kinds)


def _lasting(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was typed as JSON can hold it; files and folders by paths that hold in other folders too."""
    kept = {name: value for name, value in words.items() if name not in ("output", "overwrite")}
    for name in ("model", "data", "eval_data", "label_map"):
        if isinstance(kept.get(name), str):
            kept[name] = _absolute(kept[name])
        elif name in kept:
            kept[name] = [_absolute(each) for each in kept[name]]
    return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}


def _absolute(source: str) -> str:
    """Return a source whose folder exists by an absolute path; names of the hub as they are."""
    path = os.path.expanduser(source)
    there = os.path.exists(path) or os.path.exists(path.rpartition("@")[0]) or "*" in path or "?" in path
    return os.path.abspath(path) if there and source != "-" else source
