"""Exceptions that name what is wrong, and the function that says so. Each is also a builtin.

Every message reads `<function>: <argument> must <rule>, got <value>`, where the function is the public one that the
user called: helpers that several of them share ask `speaker()` for its name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SPEAKER: ContextVar[str | None] = ContextVar("adapterx_speaker", default=None)


@contextmanager
def speaking_as(function: str) -> Iterator[None]:
    """Let messages raised inside name this public function; of nested ones the outermost speaks.

    Works as a decorator too. Never leave such a block open while the user's own code runs.
    """
    token = _SPEAKER.set(_SPEAKER.get() or function)
    try:
        yield
    finally:
        _SPEAKER.reset(token)


@contextmanager
def unspoken() -> Iterator[None]:
    """Let nobody speak inside: around a call of the user's own code, such as a model's forward, in a longer block."""
    token = _SPEAKER.set(None)
    try:
        yield
    finally:
        _SPEAKER.reset(token)


def speaker() -> str:
    """Return the name of the public function that was called, for the head of a message."""
    return _SPEAKER.get() or "adapterx"


_LONGEST = 2000  # characters of a message


class AdapterxError(Exception):
    """Root of the errors that adapterx defines itself.

    A message may quote what a stranger's file holds, so its middle is left out where it would fill the screen.
    """

    def __str__(self) -> str:
        return _shortened(super().__str__())


def _shortened(message: str) -> str:
    if len(message) <= _LONGEST:
        return message
    end = _LONGEST // 4
    left_out = len(message) - _LONGEST
    return f"{message[: _LONGEST - end]} [... {left_out:,} characters ...] {message[-end:]}"


class ConfigError(AdapterxError, ValueError):
    """A configuration value breaks a rule."""


class TargetError(AdapterxError, ValueError):
    """No module, or an unsuitable one, matches what should be adapted."""


class UnknownAdapterError(AdapterxError, KeyError):
    """No adapter of that name is attached."""

    def __str__(self) -> str:  # KeyError would print the message in quotes
        return _shortened(Exception.__str__(self))


class CheckpointError(AdapterxError, ValueError):
    """A checkpoint is damaged, hostile, or does not fit the model."""


class ExtensionError(AdapterxError, ImportError):
    """The compiled operator library is missing or cannot be loaded."""


class DataError(AdapterxError, ValueError):
    """A data file cannot be used as it is."""


class TrainingError(AdapterxError, RuntimeError):
    """Training cannot go on, for example because the loss is not finite."""


class ExportError(AdapterxError, RuntimeError):
    """A model cannot be exported, or the exported file does not agree with it."""
