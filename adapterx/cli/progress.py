"""Progress of a training run, as a Trainer callback. Imports transformers; only `train` imports this module."""

import math
import sys
import time
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from adapterx.cli.reporting import is_silent, say

SHOW_CURSOR = "\x1b[?25h"


class ProgressLine(TrainerCallback):
    """A bar on a terminal, and a line after every epoch everywhere."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(
            *columns,
            console=console,
            transient=True,
            disable=is_silent() or not console.is_terminal,
            # Lines for a file go there, not to the terminal of the bar.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self.task, self.losses, self.start = None, [], 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.start = time.perf_counter()
        if state.is_world_process_zero:
            self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.task is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Gather losses; after an evaluation, print the line of the epoch."""
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])
        if logs and f"eval_{self.metric}" in logs:
            score = (
                ""
                if self.metric == "loss"
                else f", eval {self.metric.replace('_', ' ')} {logs[f'eval_{self.metric}']:.3f}"
            )
            self._line(state, f"{score}, eval loss {logs['eval_loss']:.4f}")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the line of the epoch when nothing is evaluated."""
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
            self._line(state, "")

    def _line(self, state: Any, scores: str) -> None:
        loss = sum(self.losses) / len(self.losses) if self.losses else float("nan")
        self.losses = []
        seconds = time.perf_counter() - self.start
        epoch = math.ceil((state.epoch or 0.0) - 1e-6)  # --max-steps may end in the middle of one
        say(f"epoch {epoch}/{math.ceil(state.num_train_epochs)}: loss {loss:.4f}{scores} ({seconds:.0f} s)")

    def close(self) -> None:
        """Give the terminal back; `run_trainer` calls it, also after an error or a signal."""
        with suppress(Exception):  # a signal in the middle of a refresh leaves the bar in no state of its own
            self.bar.stop()
        if self.task is not None and self.bar.console.is_terminal and sys.__stderr__ is not None:
            sys.__stderr__.write(SHOW_CURSOR)
            sys.__stderr__.flush()
