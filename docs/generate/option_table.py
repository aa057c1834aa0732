"""The options of every command, as the commands declare them."""

from collections.abc import Iterator
from typing import Any

import typer.main

from adapterx.cli.app import app


def tables() -> str:
    """Return a section for each command, `train` first, with a table for each panel of its help."""
    commands = typer.main.get_command(app).commands
    ordered = sorted(commands.items(), key=lambda item: (item[0] != "train", item[0]))
    return "\n".join(line for name, command in ordered for line in _section(name, command)).rstrip()


def _section(name: str, command: Any) -> Iterator[str]:
    yield from (f"## `adapterx {name}`", "", command.help.partition("\n\n")[0])
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(parameter)
    for panel, parameters in panels.items():
        yield from ("", f"| {panel} | |", "|---|---|")
        yield from map(_row, parameters)
    yield ""


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return f"| {names} | {(parameter.help or '').replace('|', chr(92) + '|')} |"
