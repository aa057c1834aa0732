"""The options that say how the training goes."""

from dataclasses import dataclass

import torch

from adapterx.cli.options.declaring import (
    BETWEEN,
    COUNT,
    DECAY,
    RATE,
    SEED,
    SHARE,
    SOURCES,
    THREADS,
    TRAINING,
    one_of,
    option,
)
from adapterx.cli.recipes import METHODS
from adapterx.cli.tasks import DEFAULT, NAMES, TASKS
from adapterx.cli.tasks.task import Task
from adapterx.errors import ConfigError
from adapterx.heads import POOLINGS


def defaults_of(name: str) -> str:
    """Return in words what an option is by default, for each method; and for each task where they differ."""
    told: dict[str, list[str]] = {}
    for task in TASKS.values():
        values = (f"{recipe[name]} with {method}" for method, recipe in task.recipes.items() if name in recipe)
        told.setdefault(", ".join(values), []).append(task.name)
    told.pop("", None)
    if len(told) == 1:
        return f"default: {next(iter(told))}"
    return "default: " + "; ".join(f"{values} for {', '.join(names)}" for values, names in told.items())


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The panel "Training"."""

    task: str = option(
        TRAINING,
        "What is learnt: "
        + "; ".join(f"{task.name} ({task.about})" for task in TASKS.values())
        + f". Default: {DEFAULT}.",
        DEFAULT,
        must=one_of(*NAMES),
    )
    method: str = option(
        TRAINING,
        "What is trained: adapters (default), head (on the frozen model), or full (every weight).",
        "adapters",
        must=one_of(*METHODS),
    )
    pooling: str | None = option(
        TRAINING, "How tokens become one vector: mean (default), cls, last (decoders).", must=one_of(*POOLINGS)
    )
    epochs: int | None = option(TRAINING, f"Passes over the data ({defaults_of('epochs')}).", must=COUNT)
    max_steps: int | None = option(TRAINING, "Optimizer steps, in place of --epochs.", must=COUNT)
    learning_rate: float | None = option(TRAINING, f"Peak learning rate ({defaults_of('learning_rate')}).", must=RATE)
    head_learning_rate: float | None = option(
        TRAINING,
        f"Peak learning rate of the head ({defaults_of('head_learning_rate')}, else that of the rest).",
        must=RATE,
    )
    batch_size: int = option(TRAINING, "Examples in a batch, on each device (default 16).", 16, must=COUNT)
    gradient_accumulation: int = option(
        TRAINING,
        "Batches whose gradients make up one step (default 1): the memory of one, the step of all.",
        1,
        must=COUNT,
    )
    warmup_ratio: float = option(TRAINING, "Share of the steps in which the rate rises (default 0.1).", 0.1, must=SHARE)
    weight_decay: float = option(TRAINING, "AdamW's weight decay (default 0.01).", 0.01, must=DECAY)
    head_dropout: float | None = option(TRAINING, "Dropout before the head's linear layer (default 0.1).", must=SHARE)
    threshold: float | None = option(
        TRAINING, "Probability from which a text has a label, where it may have several (default 0.5).", must=BETWEEN
    )
    num_beams: int | None = option(TRAINING, "Beams where evaluation generates (default 1: greedy).", must=COUNT)
    precision: str = option(
        TRAINING, "fp32 (default), bf16, or fp16 (GPU).", "fp32", must=one_of("fp32", "bf16", "fp16")
    )
    keep_best: bool = option(
        TRAINING, "Keep the epoch with the best held-out score, not the last; then report on other data.", False
    )
    class_weights: tuple[str, ...] | None = option(
        TRAINING, "What an error in each class weighs: balanced, or label=weight,label=weight.", must=SOURCES
    )
    early_stopping: int | None = option(
        TRAINING, "Stop after N epochs without a better held-out score; implies --keep-best.", must=COUNT
    )
    early_stopping_threshold: float | None = option(
        TRAINING, "With --early-stopping: by more than this a score must be better (default 0).", must=DECAY
    )
    seed: int = option(TRAINING, "Seed of everything that is drawn (default 0).", 0, must=SEED)
    threads: int | None = option(
        TRAINING,
        "CPU threads (default: the machine's; with --resume, as many as before: the last digits depend on it).",
        must=THREADS,
        free=True,
    )
    device: str = option(
        TRAINING, "auto (default: a GPU where there is one) or cpu.", "auto", must=one_of("auto", "cpu"), free=True
    )

    def check_task(self, task: Task) -> None:
        """Refuse what the task does not take.

        Raises:
            ConfigError: it cannot be trained by the method, or an option is of other tasks.
        """
        if self.method not in task.recipes:
            raise ConfigError(
                f"train: method must be one of {', '.join(task.recipes)} for --task {task.name}, got {self.method!r}"
            )
        for name in sorted(frozenset().union(*(other.options for other in TASKS.values())) - task.options):
            if getattr(self, name) is not None:
                served = ", ".join(other.name for other in TASKS.values() if name in other.options)
                raise ConfigError(
                    f"train: --{name.replace('_', '-')} can only be used with --task {served}, got --task {task.name}"
                )

    def check_training(self) -> None:
        """Refuse what excludes each other, and what this machine cannot do.

        Raises:
            ConfigError: two options do, one is of no use without another, or half precision is to do without a GPU.
        """
        if self.max_steps is not None and self.epochs is not None:
            raise ConfigError("train: max_steps and epochs exclude each other; give one of them")
        if self.early_stopping_threshold is not None and self.early_stopping is None:
            raise ConfigError("train: early_stopping_threshold needs early_stopping: give --early-stopping N")
        if self.precision == "fp16" and not self.uses_gpu:
            raise ConfigError("train: precision fp16 needs a GPU; use fp32 or bf16 on a CPU")

    @property
    def uses_gpu(self) -> bool:
        """Whether the run goes to a GPU."""
        return self.device != "cpu" and torch.cuda.is_available()
