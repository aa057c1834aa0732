"""Files and folders that a user names: read as typed, checked before the work, written as a shell's `>` would."""

import os
from collections.abc import Iterable
from pathlib import Path

import typer

from adapterx.checkpoint.output import write_output
from adapterx.errors import ConfigError, speaker


def as_path(word: str | Path) -> Path:
    """Return a path that was typed, with `~` for the home of a user.

    Raises:
        typer.BadParameter: it is empty, which would silently mean the present folder.
    """
    if not str(word):
        raise typer.BadParameter("a path must not be empty")
    return Path(os.path.expanduser(word))


def is_utf8(path: Path) -> bool:
    """Return whether a path can be handed to libraries that know no other encoding, as most do not."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def check_file(output: Path) -> None:
    """Refuse what cannot become a file, before hours are spent on what should stand in it.

    Raises:
        ConfigError: it is a folder, or lies below a file.
    """
    if output.is_dir():
        raise ConfigError(f"{speaker()}: output must be a file, {output} is a folder")
    _check_above(output)


def check_folder(output: Path) -> None:
    """Refuse what cannot become a folder of exported files.

    Raises:
        ConfigError: it is a file, or lies below one, or its path is not UTF-8, which exporters need.
    """
    if not is_utf8(output.absolute()):
        raise ConfigError(f"{speaker()}: the path of the output must be UTF-8, got {str(output)!r}")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{speaker()}: output must be a folder, {output} is a file")
    _check_above(output)


def check_empty(output: Path) -> None:
    """Refuse a folder that holds something, where what is written must stand alone.

    Raises:
        ConfigError: it does.
    """
    if output.exists() and (there := next(output.iterdir(), None)):
        raise ConfigError(f"{speaker()}: output must be empty, {output} holds {there.name}")


def _check_above(output: Path) -> None:
    nearest = next((folder for folder in output.absolute().parents if folder.exists()), None)
    if nearest is not None and not nearest.is_dir():
        raise ConfigError(f"{speaker()}: output must lie below folders, {nearest} in {output} is a file")


def deliver(output: Path, content: bytes | Iterable[bytes]) -> None:
    """Write to a file that the user named, in a folder that is made if need be.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_output(output, content)
    except OSError as error:
        error.filename = str(output)  # writing itself does not tell it
        raise
