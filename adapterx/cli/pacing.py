"""When a training saves and when it ends: callbacks of the Trainer. Only `trainer` imports this module."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from adapterx.checkpoint.document import read_json
from adapterx.cli.reporting import say

STATE = "trainer_state.json"


class SaveEvery(TrainerCallback):
    """Save a checkpoint every so many steps, besides those of the epochs.

    The losses are logged before each checkpoint, so that a resumed training logs what an undisturbed one does.
    """

    def __init__(self, steps: int | None) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint."""
        if self.steps is not None and state.global_step % self.steps == 0:
            control.should_log = control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for the losses, where there are any since the last time."""
        control.should_log = True


class StopEarly(TrainerCallback):
    """End the training after so many evaluations in a row without a gain.

    What was gained is read off the Trainer's log, so that a resumed training knows it.

    Args:
        patience: evaluations.
        metric: that should get better, as the task calls it.
        greater_is_better: which way.
        threshold: by more than this it must get better than ever before.
    """

    def __init__(self, patience: int, metric: str, greater_is_better: bool, threshold: float) -> None:
        self.patience, self.metric, self.threshold = patience, f"eval_{metric}", threshold
        self.sign = 1.0 if greater_is_better else -1.0

    def has_stopped(self, history: list[dict[str, float]]) -> bool:
        """Return whether the last evaluations in a log gained nothing, as many as there is patience for."""
        best, without = -float("inf"), 0
        for entry in history:
            if self.metric in entry:
                value = self.sign * entry[self.metric]
                without = 0 if value > best and value - best > self.threshold else without + 1
                best = max(best, value) if value == value else best
        return without >= self.patience

    def had_stopped(self, checkpoint: Path) -> int | None:
        """Return the step of a checkpoint at which the training had already ended; None if it goes on from there."""
        state = read_json(checkpoint / STATE)
        return state["global_step"] if self.has_stopped(state["log_history"]) else None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look whether it is time."""
        if self.has_stopped(state.log_history) and not control.should_training_stop:
            control.should_training_stop = True
            word = self.metric.removeprefix("eval_").replace("_", " ")
            say(f"stopped early: the held-out {word} has not got better for {self.patience} epochs")
