"""`adapterx convert` from and to PEFT: tensors get other names, and no base model is loaded."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapterx.checkpoint import format_of
from adapterx.checkpoint.document import read_json
from adapterx.checkpoint.formats import ADAPTERHUB, OWN, PEFT
from adapterx.errors import CheckpointError, ConfigError, speaker
from adapterx.integrations.peft_files import from_peft, read_document, to_peft

_DOCUMENT, _HEAD = "adapter_config.json", "head_config.json"
Convert = Callable[..., dict[str, Any]]


def convert_peft(
    source: Path, target: Path, *, to: str | None, base: str | None, name: str | None, others: Convert
) -> dict[str, Any]:
    """Write an adapter as PEFT saves it, or one of PEFT as another library does.

    Args:
        source: a folder with the adapter of any library; PEFT's is a `BottleneckConfig`.
        target: made if it is not there.
        to: the library to write for; None takes adapterx.
        base: the base model, where AdapterHub is one of both; else None.
        name: of the adapter in the new folder; None where that is PEFT's.
        others: converts between the other libraries, called with source, target and `to`, `base`, `name`.

    Returns:
        What was converted, for a table.

    Raises:
        CheckpointError: the folder holds no such adapter, or what PEFT has no place for.
        ConfigError: both are the same library, or an argument is of no use.
    """
    library, to = format_of(source), to or OWN
    _check(source, library, to, base, name)
    with tempfile.TemporaryDirectory() as between:
        if to != PEFT:
            first = target if to == OWN else Path(between)
            from_peft(source, first, name or "default")
            if to != OWN:
                return others(first, target, to=to, base=base, name=name)
        else:
            if library != OWN:
                others(source, Path(between), to=OWN, base=base, name=None)
                source = Path(between)
                _check_alone(source)
            to_peft(source, target)
    modules = read_json(target / _DOCUMENT)["adapted_modules" if to == PEFT else "modules"]
    return {"adapter": name or "default", "modules": len(modules), "written for": to, "folder": str(target)}


def _check(source: Path, library: str | None, to: str, base: str | None, name: str | None) -> None:
    if library is None:
        raise CheckpointError(f"{speaker()}: source must hold an adapter, {source} has none; PEFT has no fusions")
    if library == to:
        raise ConfigError(f"{speaker()}: to must be another library than that of {source}, which is {library}")
    if library == PEFT:
        read_document(source)  # of another method it is refused, whatever the arguments are
    if base is not None and ADAPTERHUB not in (library, to):
        raise ConfigError(
            f"{speaker()}: base must not be given, no model is needed from {library} to {to}; got {base!r}"
        )
    if to == PEFT:
        if name is not None:
            raise ConfigError(f"{speaker()}: name must not be given, PEFT's files hold none; got {name!r}")
        if library == OWN:
            _check_alone(source)


def _check_alone(source: Path) -> None:
    if (source / _HEAD).exists():
        raise CheckpointError(
            f"{speaker()}: source must hold an adapter alone, PEFT has no place for the head in {_HEAD}; save the "
            "adapter with its head as one of modules_to_save, or convert it without that file"
        )
