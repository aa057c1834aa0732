"""The options as typer takes them: parameters of the command `train`."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from adapterx.cli.options.adapter import ADAPTER_OPTIONS, adapter_values
from adapterx.cli.options.declaring import ADAPTER, REQUIRED
from adapterx.cli.options.run import OPTIONS, TrainOptions
from adapterx.cli.paths import as_path
from adapterx.cli.words import READ_FROM_A_WORD
from adapterx.config import AdapterConfig


def _typed(name: str, kind: Any) -> Any:
    """Return the type of a field as it is typed: a tuple by repeating the option."""
    if name in READ_FROM_A_WORD:
        return str | None
    repeated = any(get_origin(each) is tuple for each in (kind, *get_args(kind)))
    return (list[str] if repeated else kind) | None


def parameters() -> list[inspect.Parameter]:
    """Return what the command takes, for typer, in the order of `--help`."""

    def parameter(name: str, kind: Any, panel: str, text: str | None, default: Any = None) -> inspect.Parameter:
        path = {"parser": as_path, "metavar": "PATH"} if kind is Path else {}
        shown = Annotated[kind, typer.Option(help=text, rich_help_panel=panel, show_default=False, **path)]
        default = inspect.Parameter.empty if default is REQUIRED else default
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=shown, default=default)

    own = [parameter(o.name, _own(o.type), o.metadata["panel"], o.metadata["text"], o.default) for o in OPTIONS]
    kinds = get_type_hints(AdapterConfig)
    names = dict.fromkeys([*ADAPTER_OPTIONS, *kinds])
    return own + [parameter(n, _typed(n, kinds.get(n, str)), ADAPTER, ADAPTER_OPTIONS.get(n)) for n in names]


def _own(kind: Any) -> Any:
    repeated = any(get_origin(each) is tuple for each in (kind, *get_args(kind)))
    return list[str] | None if repeated and type(None) in get_args(kind) else list[str] if repeated else kind


def takes_train_options(command: Callable[[TrainOptions], None]) -> Callable[..., None]:
    """Let typer see every option as a parameter of the command; the command itself gets them as a whole."""

    @functools.wraps(command)
    def typed(**given: Any) -> None:
        own = {declared.name: given.pop(declared.name) for declared in OPTIONS}
        command(TrainOptions(**own, adapter_values=adapter_values(given)))

    typed.__signature__ = inspect.Signature(parameters())
    return typed
