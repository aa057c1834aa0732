"""What the commands share: the program, how a command is registered, and the arguments that several take."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from adapterx.checkpoint.document import PACKAGE_VERSION
from adapterx.cli import help
from adapterx.cli.options import HERE
from adapterx.cli.paths import as_path
from adapterx.cli.refusals import CommandLine, errors_in_one_line
from adapterx.cli.reporting import put, silence
from adapterx.errors import ConfigError, speaker, speaking_as

app = typer.Typer(
    name="adapterx",
    cls=CommandLine,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        put(f"adapterx {PACKAGE_VERSION}\n")
        raise typer.Exit


@app.callback(help=help.PROGRAM)
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", show_default=False, is_eager=True, callback=_tell_version
        ),
    ] = False,
) -> None:
    """Answer what concerns no command."""


class Command(TyperCommand):
    """A command; `--resume` may stand with a run behind it or alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say what `--resume` alone means, then parse."""
        if any(parameter.name == "resume" for parameter in self.params):
            behind = [*args, "-"][1:]
            alone = (word == "--resume" and after.startswith("-") for word, after in zip(args, behind, strict=True))
            args = [f"--resume={HERE}" if is_alone else word for word, is_alone in zip(args, alone, strict=True)]
        return super().parse_args(ctx, args)


QUIET = inspect.Parameter(
    "quiet",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors and what was asked for.", show_default=False)
    ],
)


def command(function: Callable[..., None], *, panel: str | None = None) -> Callable[..., None]:
    """Register a command, in a panel of the help.

    What a user can cause ends it with one line that begins with the command's name. A command called as a built-in
    function has an underscore behind its name in Python.
    """
    name = function.__name__.rstrip("_")

    @functools.wraps(function)
    def checked(quiet: bool, **given: Any) -> None:
        for name, value in given.items():
            if value == "":  # as of a variable of the shell that is not set
                raise ConfigError(f"{speaker()}: {name} must not be empty")
        with silence(quiet):
            function(**given)

    safe = errors_in_one_line(name)(speaking_as(name)(checked))
    signature = inspect.signature(function, eval_str=True)
    safe.__signature__ = signature.replace(parameters=[*signature.parameters.values(), QUIET])
    return app.command(name, cls=Command, help=help.of(function, name), rich_help_panel=panel)(safe)


def option(text: str, *names: str, **more: Any) -> Any:
    """Declare an option by its help and, where it is not called as its parameter, its name."""
    return typer.Option(*names, help=text, show_default=False, **more)


Run = Annotated[
    Path, typer.Argument(help="Folder that `adapterx train` wrote.", show_default=False, parser=as_path, metavar="RUN")
]
PATH = {"parser": as_path, "metavar": "PATH"}
BaseModel = Annotated[str | None, option("Base model, where it has moved since the training.")]
OtherBase = Annotated[bool, option("Accept another base model than that of the training.", "--other-base")]
TextColumn = Annotated[str | None, option("Column of the texts.")]


def check_choice(option: str, given: str, *known: str) -> None:
    """Refuse a word that is none of those an option takes.

    Raises:
        ConfigError: it is another.
    """
    if given not in known:
        raise ConfigError(f"{speaker()}: {option} must be one of {', '.join(known)}, got {given!r}")
