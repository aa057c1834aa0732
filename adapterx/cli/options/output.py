"""The options that say what is written, and where."""

from dataclasses import dataclass
from pathlib import Path

from adapterx.cli.options.declaring import COUNT, OUTPUT, REQUIRED, option
from adapterx.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """The panel "Output"."""

    output: Path = option(OUTPUT, "Folder of the run (required); new or empty.", REQUIRED, free=True)  # noqa: RUF009
    resume: bool = option(
        OUTPUT,
        "Continue an interrupted run, with its own options; without RUN that of --output, whose options are repeated.",
        False,
        free=True,
        typed=str,
        metavar="[RUN]",
    )
    overwrite: bool = option(OUTPUT, "Discard an earlier run in the output folder.", False, free=True)
    save_steps: int | None = option(
        OUTPUT, "Save a checkpoint every N steps, besides that of each epoch.", must=COUNT, free=True
    )
    keep_checkpoints: bool = option(OUTPUT, "Keep the checkpoints when the run is complete.", False, free=True)

    def check_output(self) -> None:
        """Refuse what excludes each other.

        Raises:
            ConfigError: two options do.
        """
        if self.resume and self.overwrite:
            raise ConfigError("train: --resume and --overwrite exclude each other")
