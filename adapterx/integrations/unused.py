"""Watch a training of the Hugging Face Trainer for adapters that no gradient reaches."""

import warnings
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adapterx.adapters import check_whole
from adapterx.errors import TrainingError, speaking_as
from adapterx.host import AdapterSet, switchable_modules
from adapterx.training import unused_adapters

_SHOWN = 4


class UnusedAdapters(TrainerCallback):
    """Refuse to train a model whose adapters were lost or all get no gradient, and name single ones that get none.

    Once after the first step, and once at the end for those that never got one: experts and dropped layers may have
    their turn in between.
    """

    def __init__(self) -> None:
        self.never: set[tuple[str, str]] | None = None  # adapter and module without a gradient so far; None: not asked

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        """Check that what `attach` has hung on the model is there."""
        self.never = None
        with speaking_as("AdapterTrainer"):
            check_whole(model)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        """Look at the gradients, as long as some are missing."""
        if self.never == set():
            return
        unused = {(name, path) for name, paths in unused_adapters(model).items() for path in paths}
        if self.never is not None:
            self.never &= unused
            return
        self.never = unused
        adapters = [each for each in switchable_modules(model) if isinstance(each, AdapterSet)]
        trained = [parameter for each in adapters for parameter in each.parameters() if parameter.requires_grad]
        if trained and all(parameter.grad is None for parameter in trained):
            raise TrainingError(
                f"AdapterTrainer: model must let gradients reach its adapters, none reached {_listed(unused)}; with "
                'gradient checkpointing pass gradient_checkpointing_kwargs={"use_reentrant": False}'
            )
        if unused:
            warnings.warn(
                f"AdapterTrainer: no gradient reached {_listed(unused)} in the first step: what never runs learns "
                "nothing (a router or LayerDrop may still choose it)",
                UserWarning,
                stacklevel=2,
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Name what has learned nothing."""
        if self.never and state.global_step > 1:
            warnings.warn(
                f"AdapterTrainer: no gradient reached {_listed(self.never)} in any step: it has learned nothing, leave "
                "it out by target_modules, positions or layers",
                UserWarning,
                stacklevel=2,
            )


def _listed(unused: set[tuple[str, str]]) -> str:
    names = [f"{name!r} on {path}" for name, path in sorted(unused)]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
