"""The options that say what is written, and where."""

from dataclasses import dataclass
from pathlib import Path

from adapterx.cli.options.declaring import OUTPUT, REQUIRED, option
from adapterx.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """The panel "Output"."""

    output: Path = option(OUTPUT, "Folder of the run; new or empty.", REQUIRED, free=True)  # noqa: RUF009
    resume: bool = option(OUTPUT, "Continue an interrupted run; the other options must be the same.", False, free=True)
    overwrite: bool = option(OUTPUT, "Discard an earlier run in the output folder.", False, free=True)
    keep_checkpoints: bool = option(OUTPUT, "Keep the checkpoints when the run is complete.", False, free=True)

    def check_output(self) -> None:
        """Refuse what excludes each other.

        Raises:
            ConfigError: two options do.
        """
        if self.resume and self.overwrite:
            raise ConfigError("train: --resume and --overwrite exclude each other")
