"""All options of one training run, checked."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from pathlib import Path
from typing import Any

from adapterx.cli.data.classes import label_map
from adapterx.cli.data.sources import Sources
from adapterx.cli.options.adapter import adapter_config
from adapterx.cli.options.data import DataOptions
from adapterx.cli.options.output import OutputOptions
from adapterx.cli.options.training import TrainingOptions
from adapterx.cli.recipes import EVAL_FRACTION
from adapterx.cli.tasks import NAMES, TASKS
from adapterx.config import AdapterConfig
from adapterx.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainingOptions, OutputOptions, DataOptions):  # the fields of the last base come first
    """The options of one training run, checked, with the defaults of the method filled in.

    Args:
        adapter_values: fields of AdapterConfig; what is left out takes the defaults of `adapterx.cli.recipes`.

    Raises:
        ConfigError: a value breaks its rule, or two options exclude each other.
    """

    adapter_values: InitVar[Mapping[str, Any] | None] = None
    words: Mapping[str, Any] = field(default_factory=dict)  # what was typed, for `--resume RUN`
    adapter: AdapterConfig | None = field(init=False)  # None for the methods that attach none

    def __post_init__(self, adapter_values: Mapping[str, Any] | None) -> None:
        for name in ("data", "eval_data"):
            given = getattr(self, name)
            if given is not None:
                self._set(name, Sources([given] if isinstance(given, str) else given))
        if isinstance(self.label_map, Sequence):
            self._set("label_map", label_map(self.label_map))
        for declared in OPTIONS:
            value, (rule, holds) = getattr(self, declared.name), declared.metadata["must"]
            if value is not None and not holds(value):
                raise ConfigError(f"train: {declared.name} must {rule}, got {value!r}")
        self._set("task", NAMES[self.task])
        self.check_task(TASKS[self.task])
        self._set("adapter", adapter_config(self.method, adapter_values or {}))
        self.check_output()
        self.check_data()
        if self.early_stopping is not None:
            self._set("keep_best", True)
        if self.keep_best and self.eval_fraction == 0.0:
            needs = "keep_best" if self.early_stopping is None else "early_stopping"
            raise ConfigError(f"train: {needs} needs examples to choose by: give eval_data or eval_fraction above 0")
        self.check_training()
        by_default = TASKS[self.task].recipes[self.method] | {
            "eval_fraction": 0.0 if self.eval_data is not None else EVAL_FRACTION
        }
        if self.max_steps is not None:
            del by_default["epochs"]
        for name, value in by_default.items():
            if getattr(self, name) is None:
                self._set(name, value)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen for everyone else

    def replaced(self, **values: Any) -> "TrainOptions":
        """Return the same options but for these values, which are not checked again."""
        other = copy.copy(self)
        for name, value in values.items():
            other._set(name, value)
        return other

    @property
    def spool(self) -> Path | None:
        """The folder on whose disk data lie that are larger than memory; None where they are kept in memory."""
        above = self.output.absolute()
        return next(folder for folder in (above, *above.parents) if folder.is_dir()) if self.streaming else None

    def record(self) -> dict[str, Any]:
        """Return every value that the result depends on, as JSON can hold it; a resumed run must have the same."""
        kept = {declared.name: getattr(self, declared.name) for declared in OPTIONS if not declared.metadata["free"]}
        return kept | {"adapter": self.adapter.to_dict() if self.adapter else None}


OPTIONS = tuple(declared for declared in fields(TrainOptions) if declared.metadata)
