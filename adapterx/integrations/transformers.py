"""The Hugging Face Trainer for models whose base is frozen: it saves, resumes and selects what is trained, only."""

__all__ = ["AdapterSeq2SeqTrainer", "AdapterTrainer"]

import re
import shutil
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.adapters import adapter_names
from adapterx.checkpoint.document import read_json
from adapterx.checkpoint.folder import (
    checkpoint_folders,
    discard,
    newest_complete,
    seal,
    verify_seal,
)
from adapterx.checkpoint.lock import locked
from adapterx.checkpoint.trained import restore_trained, save_trained
from adapterx.errors import CheckpointError, ExtensionError, TrainingError, speaker, speaking_as
from adapterx.heads import SequenceClassifier, check_labels
from adapterx.heads.labels import SINGLE_LABEL
from adapterx.training import check_finite_loss, check_finite_parameters, parameter_groups

try:
    from transformers import Seq2SeqTrainer, TrainerState
    from transformers.utils import logging

    from adapterx.integrations.sharded import ShardedTrainer
    from adapterx.integrations.unused import UnusedAdapters
except ImportError as error:
    raise ExtensionError(
        f"adapterx.integrations.transformers: transformers and accelerate must be installed ({error}): "
        "pip install 'adapterx[train]'"
    ) from error

logger = logging.get_logger(__name__)
STATE = "trainer_state.json"


class AdapterTrainer(ShardedTrainer):
    """A `transformers.Trainer` for adapters, for a head on a frozen base, and for full training.

    - A checkpoint holds the trainable tensors, the optimizer, the schedule, the generators and the trainer's state; the
      frozen base is never written. It counts only when it is sealed (`adapterx.checkpoint.folder`), so a process
      killed while saving loses at most the checkpoint being written.
    - `resume_from_checkpoint=True` takes the newest sealed checkpoint; `load_best_model_at_end` works as usual.
    - Training stops with an error at the first loss that is not finite, and a state that is not finite is never saved.
    - Adapters that no gradient reaches are named after the first step and at the end (`adapterx.unused_adapters`).
    - The base may be quantised: adapters only read its activations.

    Args:
        head_learning_rate: learning rate of the head (see `adapterx.training.head_parameters`); None takes
            `TrainingArguments.learning_rate` for everything.
        *args: as for `transformers.Trainer`.
        **kwargs: as for `transformers.Trainer`.

    Raises:
        TrainingError: DeepSpeed, or FSDP in another version than 2, is asked for.
    """

    def __init__(self, *args: Any, head_learning_rate: float | None = None, **kwargs: Any) -> None:
        self.head_learning_rate = head_learning_rate
        self._resumed: Path | None = None  # the checkpoint that a training continues
        model = kwargs.get("model", args[0] if args else None)
        # The Trainer refuses a quantised model unless it believes that PEFT added something trainable to it.
        pretend = getattr(model, "is_quantized", False) and bool(adapter_names(model))
        if pretend:
            model._hf_peft_config_loaded = True
        try:
            super().__init__(*args, **kwargs)
        finally:
            if pretend:
                del model._hf_peft_config_loaded
        self.add_callback(UnusedAdapters)
        if not hasattr(self.args, "activation_checkpointing") and self.args.gradient_checkpointing_kwargs is None:
            # The default of transformers 4, reentrant, gives no gradient to what sits behind frozen modules only.
            self.args.gradient_checkpointing_kwargs = {"use_reentrant": False}
        self._check_devices()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer with one rate for the adapters and one for the head."""
        if self.optimizer is None:
            trained = self.model if model is None else model
            groups = parameter_groups(
                trained,
                learning_rate=self.args.learning_rate,
                head_learning_rate=self.head_learning_rate,
                weight_decay=self.args.weight_decay,
            )
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            if {"params", "model", "optimizer_dict"} & options.keys() or not isinstance(optimizer_class, type):
                raise TrainingError(
                    f"AdapterTrainer: optim={self.args.optim} brings its own parameter groups; choose another"
                )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` continues from the newest whole checkpoint.

        Raises:
            CheckpointError: there is no whole checkpoint, or the one that is named is not whole or does not fit;
                another process trains into `output_dir`.
        """
        with ExitStack() as held:
            with speaking_as("AdapterTrainer"):
                if self.args.should_save and _word(self.args.save_strategy) != "no":
                    Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(Path(self.args.output_dir), wait=0.0))
                if resume_from_checkpoint is True:
                    resume_from_checkpoint = str(self._newest_complete())
                self._resumed = Path(resume_from_checkpoint) if resume_from_checkpoint else None
                if self._resumed is not None:
                    _check_state(self._resumed)
            return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _newest_complete(self) -> Path:
        newest, skipped = newest_complete(Path(self.args.output_dir))
        for reason in skipped:
            logger.warning("skipped: %s", reason)
        if newest is None:
            raise CheckpointError(
                "AdapterTrainer: output_dir must hold a checkpoint to resume from, "
                f"{self.args.output_dir} holds no complete checkpoint"
            )
        return newest

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; labels that the Trainer smooths do not reach the model, so they are checked here."""
        classifier = self.accelerator.unwrap_model(model)
        smooths = self.label_smoother is not None and self.compute_loss_func is None
        if smooths and isinstance(classifier, SequenceClassifier) and "labels" in inputs:
            if classifier.problem_type != SINGLE_LABEL:
                raise TrainingError(
                    f"AdapterTrainer: label_smoothing_factor must be 0 for {classifier.problem_type}, got "
                    f"{self.args.label_smoothing_factor}"
                )
            check_labels(inputs["labels"], len(inputs["input_ids"]), classifier.head.num_labels)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run one step; stop before the optimizer sees a loss that is not finite."""
        loss = super().training_step(*args, **kwargs)
        check_finite_loss(
            loss, step=self.state.global_step + 1, epoch=self.state.epoch, learning_rate=self._get_learning_rate()
        )
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_folder = Path(self._get_output_dir(trial=trial))
        folder = run_folder / f"checkpoint-{self.state.global_step}"
        check_finite_parameters(self.model, step=self.state.global_step)
        if self.args.should_save and folder.exists():
            discard(folder)
        self.accelerator.wait_for_everyone()
        # Nothing old may go before the new checkpoint is sealed, so the Trainer must not rotate by itself.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(folder)
        except TrainingError:
            raise
        except (CheckpointError, OSError, RuntimeError) as error:  # torch.save tells of a full disk by a RuntimeError
            raise self._could_not_save(folder, error) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            self._rotate(run_folder)

    def _could_not_save(self, folder: Path, error: Exception) -> TrainingError:
        discard(folder)
        intact, _ = newest_complete(folder.parent)
        left = f"the checkpoint {intact} is intact" if intact else "no earlier checkpoint exists"
        free = shutil.disk_usage(folder.parent).free / 2**20
        return TrainingError(
            f"AdapterTrainer: the checkpoint of step {self.state.global_step} could not be written to {folder.parent} "
            f"({error}; {free:.0f} MiB free); {left}"
        )

    def _rotate(self, run_folder: Path) -> None:
        limit = self.args.save_total_limit
        if not limit or limit < 1:
            return
        best = self.state.best_model_checkpoint
        folders = checkpoint_folders(run_folder)
        kept = folders[:1] + [f for f in folders[1:] if best and f.name == Path(best).name]
        for folder in folders[1:]:
            if folder not in kept and len(kept) < limit:
                kept.append(folder)
        for folder in folders:
            if folder not in kept:
                discard(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not (self.args.should_save or self.is_fsdp_enabled):  # shards are gathered by all processes together
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_trained(self.accelerator.unwrap_model(self.model), folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target = self.accelerator.unwrap_model(self.model if model is None else model)
        with speaking_as("AdapterTrainer"):
            verify_seal(Path(resume_from_checkpoint))
            restore_trained(target, Path(resume_from_checkpoint))

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        if self._resumed is not None:  # the Trainer calls this when it has read the state of a checkpoint
            self._find_best(self._resumed)

    def _find_best(self, checkpoint: Path) -> None:
        """Look for the best checkpoint beside the one that is resumed: its recorded path is where it once stood."""
        recorded = read_json(checkpoint / STATE).get("best_model_checkpoint")
        if recorded is None:
            return
        best = checkpoint.parent / re.split(r"[/\\]", recorded)[-1]
        if self.args.load_best_model_at_end:
            self._check_best(best)
        self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def _check_best(self, best: Path) -> None:
        try:
            with speaking_as("AdapterTrainer"):
                verify_seal(best)
        except CheckpointError as error:
            _, _, reason = str(error).partition(": ")
            raise CheckpointError(
                f"AdapterTrainer: {reason}; it is the best checkpoint so far, without which load_best_model_at_end "
                "cannot keep its word: bring it back, or start the training anew"
            ) from error

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        self._check_best(best)
        self._load_from_checkpoint(str(best))


class AdapterSeq2SeqTrainer(AdapterTrainer, Seq2SeqTrainer):
    """An `AdapterTrainer` that generates where it evaluates, as `transformers.Seq2SeqTrainer` does.

    With `Seq2SeqTrainingArguments(predict_with_generate=True)` the predictions that `compute_metrics` gets are the
    token ids that were generated; `generation_max_length` and `generation_num_beams` say how.

    Args:
        head_learning_rate: as for `AdapterTrainer`.
        *args: as for `AdapterTrainer`.
        **kwargs: as for `AdapterTrainer`.

    Raises:
        TrainingError: as for `AdapterTrainer`.
    """

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; on several processes each example counts once."""
        # `Seq2SeqTrainer` gathers the repeated examples too that fill the last batch up.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)


def _word(option: Any) -> str:
    return str(getattr(option, "value", option))


def _check_state(checkpoint: Path) -> None:
    """Refuse a state of the Trainer that it could not read; what it reads without a check ends in a traceback."""
    state = read_json(checkpoint / STATE)
    known = {field.name for field in fields(TrainerState)}
    if unknown := sorted(state.keys() - known):
        raise CheckpointError(f"{speaker()}: {checkpoint / STATE} must be a state of the Trainer, it holds {unknown}")
    best, step = state.get("best_model_checkpoint"), state.get("global_step")
    if not isinstance(best, str | None) or type(step) is not int or step < 0:
        raise CheckpointError(
            f"{speaker()}: {checkpoint / STATE} must hold a path and a step, got {best!r} and {step!r}"
        )
