"""What `adapterx train` is asked to do: one plain record, checked once, and comparable with that of an earlier run."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from adapterx.cli.recipes import BOTTLENECK_DIM, EVAL_FRACTION, INIT, RECIPES, Recipe
from adapterx.config import AdapterConfig
from adapterx.errors import ConfigError
from adapterx.heads import POOLINGS

PRECISIONS = ("fp32", "bf16", "fp16")
# What may differ between a run and its resumption: it changes where and how fast, not what comes out.
_FREE_ON_RESUME = {"output", "resume", "overwrite", "threads", "device", "keep_checkpoints", "data", "eval_data"}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of one training run; None stands for the default of the method (`adapterx.cli.recipes`)."""

    model: str
    data: str
    output: str
    eval_data: str | None = None
    eval_fraction: float | None = None
    text_column: str | None = None
    label_column: str | None = None
    method: str = "adapters"
    adapter: dict[str, Any] = field(default_factory=dict)
    pooling: str = "mean"
    epochs: int | None = None
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    batch_size: int | None = None
    warmup_ratio: float | None = None
    weight_decay: float | None = None
    head_dropout: float | None = None
    max_length: int | None = None
    precision: str = "fp32"
    examples_per_class: int | None = None
    keep_best: bool = False
    keep_checkpoints: bool = False
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False

    def recipe(self) -> Recipe:
        """Return the method's hyperparameters with what the user set put in.

        Raises:
            ConfigError: a value breaks its rule.
        """
        _one_of("method", self.method, tuple(RECIPES))
        given = {f.name: getattr(self, f.name) for f in fields(Recipe) if getattr(self, f.name) is not None}
        recipe = replace(RECIPES[self.method], **given)
        _at_least_one("epochs", recipe.epochs)
        _at_least_one("batch_size", recipe.batch_size)
        for name in ("learning_rate", "head_learning_rate"):
            value = getattr(recipe, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a number above 0, got {value}")
        for name in ("warmup_ratio", "head_dropout"):
            if not 0.0 <= getattr(recipe, name) < 1.0:
                raise ConfigError(f"{name} must be in [0, 1), got {getattr(recipe, name)}")
        if not (math.isfinite(recipe.weight_decay) and recipe.weight_decay >= 0):
            raise ConfigError(f"weight_decay must be a number from 0 up, got {recipe.weight_decay}")
        return recipe

    def adapter_config(self) -> AdapterConfig | None:
        """Return the adapter to attach; None for the methods that attach none.

        Raises:
            ConfigError: a value breaks its rule, or adapter options are given to another method.
        """
        if self.method != "adapters":
            if self.adapter:
                named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(self.adapter))
                raise ConfigError(f"{named} can only be used with --method adapters, got --method {self.method}")
            return None
        given = {"init": INIT} | self.adapter
        if given.get("bottleneck_dim") is None and given.get("reduction_factor") is None:
            given["bottleneck_dim"] = BOTTLENECK_DIM
        return AdapterConfig(**given)

    def share_held_out(self) -> float:
        """Return which share of the data is held out for evaluation (0 with data of its own, or when unwanted)."""
        if self.eval_data is not None:
            return 0.0
        return EVAL_FRACTION if self.eval_fraction is None else self.eval_fraction

    def check(self) -> None:
        """Check what needs neither model nor data.

        Raises:
            ConfigError: a value breaks its rule, or two options exclude each other.
        """
        self.recipe()
        self.adapter_config()
        _one_of("pooling", self.pooling, POOLINGS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("device", self.device, ("auto", "cpu"))
        if self.eval_data is not None and self.eval_fraction is not None:
            raise ConfigError("eval_data and eval_fraction exclude each other; give one of them")
        if self.eval_fraction is not None and not 0.0 <= self.eval_fraction < 1.0:
            raise ConfigError(f"eval_fraction must be in [0, 1), got {self.eval_fraction}")
        if self.keep_best and self.eval_fraction == 0.0:
            raise ConfigError("keep_best needs examples to choose by: give eval_data or an eval_fraction above 0")
        if self.precision == "fp16" and not uses_gpu(self):
            raise ConfigError("precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
        for name in ("threads", "examples_per_class"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must lie between 0 and 2^32 - 1, got {self.seed}")

    def resolved(self) -> dict[str, Any]:
        """Return every value that a result depends on, defaults filled in, as JSON can hold it."""
        config = self.adapter_config()
        filled = asdict(self) | asdict(self.recipe()) | {"adapter": config.to_dict() if config else None}
        filled["eval_fraction"] = self.share_held_out()
        return {name: value for name, value in filled.items() if name not in _FREE_ON_RESUME}


def uses_gpu(options: TrainOptions) -> bool:
    """Return whether the run goes to a GPU."""
    return options.device != "cpu" and torch.cuda.is_available()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return `name: old -> new` for every value that differs, looking into nested ones."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new)
        elif old != new:
            found.append(f"{name}: {old} -> {new}")
    return found


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
