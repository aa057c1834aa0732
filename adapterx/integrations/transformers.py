"""The Hugging Face Trainer for models whose base is frozen: it saves, resumes and selects what is trained, only."""

__all__ = ["AdapterTrainer"]

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.adapters import active_adapters, adapter_names, adapter_parameters
from adapterx.checkpoint import restore_adapter, save_adapter
from adapterx.errors import CheckpointError, ExtensionError, TrainingError
from adapterx.heads import SequenceClassifier
from adapterx.integrations.sealing import (
    checkpoint_folders,
    discard,
    newest_complete,
    seal,
    verify_seal,
)
from adapterx.storage import read_tensors, write_tensors
from adapterx.training import check_finite_loss, check_finite_parameters, parameter_groups

try:
    from transformers import Trainer
    from transformers.utils import logging
except ImportError as error:
    raise ExtensionError(
        f"adapterx.integrations.transformers needs transformers and accelerate ({error}): pip install 'adapterx[train]'"
    ) from error

logger = logging.get_logger(__name__)


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes: the trainable parameters, and the buffers of the modules that own them."""
    state = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    persistent = model.state_dict().keys()
    for prefix, module in model.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(prefix=prefix, recurse=False):
                if name in persistent:
                    state[name] = buffer.detach()
    return state


def _adapted(model: nn.Module) -> nn.Module:
    """Return the module whose names the adapter files use: the bare base model inside a classifier of ours."""
    return model.base_model if isinstance(model, SequenceClassifier) else model


def _other_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable tensors that the adapter files do not hold, such as those of a head."""
    base = _adapted(model)
    stored = {p.data_ptr() for name in active_adapters(base) for _, p in adapter_parameters(base, name)}
    return {name: tensor for name, tensor in trainable_state(model).items() if tensor.data_ptr() not in stored}


def _adapter_folders(model: nn.Module, folder: Path) -> dict[str, Path]:
    names = active_adapters(_adapted(model))
    return {name: folder if len(names) == 1 else folder / name for name in names}


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write the active adapters (as `save_adapter` does) and, as `trainable_*`, whatever else is trained.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    for name, place in _adapter_folders(model, folder).items():
        save_adapter(_adapted(model), place, name)
    write_tensors(folder, "trainable", _other_state(model), {}, function="save_trained")


def restore_trained(model: nn.Module, folder: Path) -> None:
    """Copy what `save_trained` wrote into the model.

    Raises:
        CheckpointError: a file is missing or damaged, or does not fit what the model trains.
    """
    _, saved = read_tensors(folder, "trainable", function="restore_trained")
    own = _other_state(model)
    wrong = sorted(
        name
        for name in saved.keys() | own.keys()
        if name not in saved or name not in own or saved[name].shape != own[name].shape
    )
    if wrong:
        raise CheckpointError(f"restore_trained: {folder} does not fit what the model trains: {wrong[:6]}")
    for name, place in _adapter_folders(model, folder).items():
        restore_adapter(_adapted(model), place, name)
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)


class AdapterTrainer(Trainer):
    """A `transformers.Trainer` for adapters, for a head on a frozen base, and for full training.

    - A checkpoint holds the trainable tensors, the optimizer, the schedule, the generators and the trainer's state; the
      frozen base is never written. It counts only when it is sealed (`adapterx.integrations.sealing`), so a process
      killed while saving loses at most the checkpoint being written.
    - `resume_from_checkpoint=True` takes the newest sealed checkpoint; `load_best_model_at_end` works as usual.
    - Training stops with an error at the first loss that is not finite, and a state that is not finite is never saved.
    - The base may be quantised: adapters only read its activations.

    Args:
        head_learning_rate: learning rate of the head (see `adapterx.training.head_parameters`); None takes
            `TrainingArguments.learning_rate` for everything.
        *args: as for `transformers.Trainer`.
        **kwargs: as for `transformers.Trainer`.

    Raises:
        TrainingError: FSDP or DeepSpeed is asked for; several devices are served by DistributedDataParallel.
    """

    def __init__(self, *args: Any, head_learning_rate: float | None = None, **kwargs: Any) -> None:
        self.head_learning_rate = head_learning_rate
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
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise TrainingError(
                "AdapterTrainer: FSDP and DeepSpeed are not supported; use DistributedDataParallel (torchrun)"
            )

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
            CheckpointError: there is no whole checkpoint, or the one that is named is not whole or does not fit.
        """
        if resume_from_checkpoint is True:
            newest, skipped = newest_complete(Path(self.args.output_dir))
            for reason in skipped:
                logger.warning("skipped: %s", reason)
            if newest is None:
                raise CheckpointError(f"{self.args.output_dir} holds no complete checkpoint to resume from")
            resume_from_checkpoint = str(newest)
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

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
            f"the checkpoint of step {self.state.global_step} could not be written to {folder.parent} "
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
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_trained(self.accelerator.unwrap_model(self.model), folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        verify_seal(Path(resume_from_checkpoint))
        target = self.accelerator.unwrap_model(self.model if model is None else model)
        restore_trained(target, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)
