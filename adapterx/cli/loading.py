"""What every loading from the Hugging Face layout shares: where from, in silence, errors as one line."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from adapterx.cli.base_folder import check_base_folder, unreadable_json
from adapterx.cli.hub import reachable
from adapterx.errors import CheckpointError, speaker

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LONGEST_REASON = 300  # characters of what a library says


def quiet_transformers() -> None:
    """Leave only errors: this program draws its own progress bars and reports what matters itself."""
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)  # its errors reach the user in one line, through `loading`
    logging.disable_progress_bar()


def source_of(model: str) -> tuple[str, bool]:
    """Return where to load from, and whether only from here: a folder, or the cache when the hub is out of reach."""
    source = os.path.expanduser(model)
    return source, check_base_folder(source) or not reachable()


@contextlib.contextmanager
def loading(what: str, source: str, local: bool) -> Iterator[None]:
    """Turn whatever a library raises over a strange file into a CheckpointError.

    Args:
        what: is loaded, for the message.
        source: where from, as `source_of` returns it.
        local: likewise.

    Raises:
        CheckpointError: something was raised; the text says why.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, CheckpointError):
        raise
    except BaseException as error:
        # A panic in a library written in Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        here = os.path.isdir(source)
        if local and not here:
            raise CheckpointError(
                f"{speaker()}: cannot load {what}: no such folder is here, it is not in the cache, and the hub cannot "
                "be reached"
            ) from error
        if here and (name := unreadable_json(Path(source))):
            raise CheckpointError(f"{speaker()}: cannot load {what}: {name} is not valid JSON") from error
        if "trust_remote_code" in str(error):
            raise CheckpointError(f"{speaker()}: {what} must not need code of its own, which is never run") from error
        kind = "" if isinstance(error, (OSError, ValueError, ImportError)) else f"{type(error).__name__}: "
        said = reason_of(error)
        raise CheckpointError(f"{speaker()}: cannot load {what}: {kind}{said}") from error


def load_config(model: str) -> "PretrainedConfig":
    """Read the configuration of a model; errors as in `loading`."""
    from transformers import AutoConfig

    source, local = source_of(model)
    with loading(f"the model {model}", source, local):
        return AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)


def reason_of(error: BaseException) -> str:
    """Return what a library says, in one line that is not too long."""
    said = " ".join(str(error).split()) or "no reason given"
    return said if len(said) <= LONGEST_REASON else f"{said[:LONGEST_REASON]} ..."
