"""What the Hugging Face Trainer does otherwise where FSDP2 has sharded the model: checkpoints are those of one process.

The Trainer would write the shards, or all of the frozen base, in a format that only as many processes read again.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from adapterx.errors import TrainingError
from adapterx.sharding import gathered_optimizer, load_optimizer

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"  # as the Trainer calls them


class ShardedTrainer(Trainer):
    """A Trainer whose checkpoints under FSDP2 any number of processes continue; `_save` is called in all of them."""

    def _check_devices(self) -> None:
        """Refuse ways of sharding whose parameters cannot be gathered here.

        Raises:
            TrainingError: DeepSpeed, or FSDP in another version than 2, is asked for.
        """
        if self.is_deepspeed_enabled:
            raise TrainingError(
                "AdapterTrainer: deepspeed must not be asked for, got a DeepSpeed configuration; use FSDP2 "
                "(fsdp_config={'version': 2}), which shards as ZeRO-3 does, or DistributedDataParallel (torchrun)"
            )
        version = getattr(getattr(self.accelerator.state, "fsdp_plugin", None), "fsdp_version", 2)
        if self.is_fsdp_xla_enabled or version != 2:
            raise TrainingError(
                f"AdapterTrainer: fsdp must be version 2, got {'XLA' if self.is_fsdp_xla_enabled else version}; pass "
                "fsdp_config={'version': 2}, or `accelerate launch --use_fsdp --fsdp_version 2`"
            )

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        if not self.args.auto_find_batch_size:
            # Transformers 4 takes that of the checkpoint, which is another one where there were more processes.
            batch_size = self.args.train_batch_size
        return super()._inner_training_loop(batch_size, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what is trained; under FSDP2 all processes call this, and the first one writes."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        self._save(output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gathered_optimizer(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        folder = None if checkpoint is None else Path(checkpoint)
        if not self.is_fsdp_enabled or folder is None or not (folder / OPTIMIZER).exists():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(self.optimizer, torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))
