"""The options of `adapterx train`, each declared once, by the panels of `--help`."""

from adapterx.cli.options.adapter import ADAPTER_OPTIONS, adapter_values
from adapterx.cli.options.command import COMMAND, HERE, parameters, takes_train_options
from adapterx.cli.options.run import OPTIONS, TrainOptions

__all__ = [
    "ADAPTER_OPTIONS",
    "COMMAND",
    "HERE",
    "OPTIONS",
    "TrainOptions",
    "adapter_values",
    "parameters",
    "takes_train_options",
]
