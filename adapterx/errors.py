"""Exceptions that name what is wrong. Each is also a builtin, so `except ValueError` keeps working."""


class AdapterxError(Exception):
    """Root of the errors that adapterx defines itself."""


class ConfigError(AdapterxError, ValueError):
    """A configuration value breaks a rule."""


class TargetError(AdapterxError, ValueError):
    """No module, or an unsuitable one, matches what should be adapted."""


class UnknownAdapterError(AdapterxError, KeyError):
    """No adapter of that name is attached."""

    def __str__(self) -> str:  # KeyError would print the message in quotes
        return Exception.__str__(self)


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
