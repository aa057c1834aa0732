"""What several processes do together, and what one of them does alone, for `test_distributed.py`."""

import os
import shutil
from pathlib import Path

import many_processes
import tiny_training
import torch
import torch.distributed as dist
import transformers
from many_processes import mean, shard, share, whole
from quick_arguments import quick_arguments
from tiny_adapters import randomise
from torch.nn.parallel import DistributedDataParallel

from adapterx import (
    AdapterConfig,
    SequenceClassifier,
    adapter_parameters,
    attach,
    mixed,
    restore_adapter,
    save_adapter,
    set_active,
)
from adapterx.checkpoint import adapter_state, load_adapter, restore_head, save_head, save_trained
from adapterx.compose import Stack
from adapterx.errors import AdapterxError
from adapterx.fusing import add_fusion

CONFIG = AdapterConfig(bottleneck_dim=5, modules_to_save=("pooler",))  # 5 rows are no two equal shares
ROWS, LENGTH = 24, 7
TRANSFORMERS_4 = transformers.__version__.startswith("4.")


class Rows(torch.utils.data.Dataset):
    """Token ids, of which one decides the label."""

    def __init__(self, count=ROWS, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(4, 30, (count, LENGTH), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        mask = torch.ones(LENGTH, dtype=torch.int64)
        return {"input_ids": self.ids[i], "attention_mask": mask, "labels": int(self.ids[i, 1] > 16)}


def base(*, pooler=False):
    """Return a tiny BERT without dropout: masks would be others in every process."""
    from transformers import BertModel

    torch.manual_seed(1)
    config = tiny_training.tiny_config()
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return BertModel(config, add_pooling_layer=pooler)


def classifier():
    model = SequenceClassifier(base(), 2, dropout=0.0)
    attach(model.base_model, AdapterConfig(bottleneck_dim=5), seed=0)
    return model


def two_adapters():
    model = base(pooler=True)
    attach(model, CONFIG, "a", seed=1)
    attach(model, AdapterConfig(bottleneck_dim=6, scaling="learned"), "b", seed=2)
    torch.manual_seed(3)
    randomise(model)
    set_active(model, "a")
    return model


def batch():
    ids = Rows(8).ids
    target = torch.randn(8, 32, generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "target": target}


def loss_of(model, batch):
    return (model(input_ids=batch["input_ids"])[1] - batch["target"]).square().mean()


def optimizer_of(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def differences(model, alone):
    """Return the largest difference of gradients, and of parameters, from those of one process."""
    grads, values = [0.0], [0.0]
    pairs = zip(adapter_parameters(model), adapter_parameters(alone), strict=True)
    for (name, mine), (_, other) in pairs:
        assert (mine.grad is None) == (other.grad is None), name
        if other.grad is not None:
            grads.append((whole(mine.grad) - other.grad).abs().max().item())
        values.append((whole(mine) - other).detach().abs().max().item())
    return max(grads), max(values)


def train_beside(model, run, alone, *, steps=3):
    """Train a model in all processes and its twin in each alone; return the largest differences of what they had."""
    optimizers, found = [optimizer_of(model), optimizer_of(alone)], []
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss, other = loss_of(run, share(batch())), loss_of(alone, batch())
        loss.backward()
        other.backward()
        grads = differences(model, alone)[0]
        for optimizer in optimizers:
            optimizer.step()
        found.append((abs(mean(loss) - other.item()), grads, differences(model, alone)[1]))
    return [max(column) for column in zip(*found, strict=True)]


def mixed_beside(model, run, alone):
    """Compare a mixed batch; under DistributedDataParallel a process may have sequences of one adapter only."""
    model.zero_grad()
    alone.zero_grad()
    names = (
        ["a", "a", "a", None, "b", "b", None, "b"] if run is not model else ["a", "b", "a", None, "b", "b", None, "a"]
    )
    mine = names[dist.get_rank() * 4 :][:4] if dist.get_world_size() == 2 else names
    with mixed(model, mine):
        loss = loss_of(run, share(batch()))
        loss.backward()
    with mixed(alone, names):
        other = loss_of(alone, batch())
        other.backward()
    return [abs(mean(loss) - other.item()), differences(model, alone)[0]]


def mixed_with(model, names):
    with mixed(model, names):
        loss_of(model, share(batch())).backward()


def refusal(function, *args):
    """Return what a function says that must refuse."""
    try:
        function(*args)
    except AdapterxError as error:
        return str(error)
    return "it did not refuse"


def sharded(folder):
    """FSDP2: train, mix, save and restore beside one process."""
    model, alone = two_adapters(), two_adapters()
    shard(model, model.encoder.layer)
    found = {"train": train_beside(model, model, alone), "mixed": mixed_beside(model, model, alone)}
    set_active(model, "b")  # after sharding: the other adapter trains, and this one stops
    set_active(alone, "b")
    found["switched"] = train_beside(model, model, alone)
    for each in (model, alone):
        set_active(each, "a")

    # The naive way: what the first process holds of the adapter.
    shards = {name: p.detach().to_local() for name, p in adapter_parameters(model, "a")}
    state = adapter_state(model, "a")
    found["naive"] = sum(tensor.numel() for tensor in shards.values())
    found["whole"] = sum(tensor.numel() for tensor in state.values())

    save_adapter(model, folder / "sharded", "a")
    copy_state(model, alone)
    if dist.get_rank() == 0:
        save_adapter(alone, folder / "alone", "a")
    dist.barrier()

    before = adapter_state(model, "a")
    with torch.no_grad():
        for _, parameter in adapter_parameters(model, "a"):
            parameter.zero_()
        model(input_ids=batch()["input_ids"])  # leaves whole parameters in the root, copies of its shards
    restore_adapter(model, folder / "sharded", "a")
    after = adapter_state(model, "a")
    found["restored"] = all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        found["output"] = (loss_of(model, batch()) - loss_of(alone, batch())).abs().item()

    found["refusals"] = [
        refusal(attach, model, CONFIG, "c"),
        refusal(load_adapter, model, folder / "sharded", "c"),
        refusal(add_fusion, model, ["a", "b"]),
        refusal(attach, model.encoder.layer[0], AdapterConfig(bottleneck_dim=2), "c"),
        refusal(mixed_with, model, ["ab"[dist.get_rank()]] * 4),
    ]
    (folder / "file").write_text("a file, and no folder")
    failed = refusal(save_adapter, model, folder / "file" / "adapter", "a")
    return found | {"failed": failed}


@torch.no_grad()
def copy_state(model, alone):
    for (_, mine), (_, other) in zip(adapter_parameters(model), adapter_parameters(alone), strict=True):
        other.copy_(whole(mine))


def replicated(folder):
    """DistributedDataParallel: train and mix beside one process."""
    model, alone = two_adapters(), two_adapters()
    found = {"train": train_beside(model, DistributedDataParallel(model), alone)}
    # Both must require gradients when it is made; a process whose batch lacks one of them waits for nothing.
    for each in (model, alone):
        set_active(each, Stack("a", "b"))
    run = DistributedDataParallel(model, find_unused_parameters=True)
    found["mixed"] = mixed_beside(model, run, alone)
    return found


def heads(folder):
    """FSDP2 around a classifier: its head and the trained state are whole, too."""
    model = classifier()
    wanted = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    shard(model, model.base_model.encoder.layer)
    save_head(model, folder / "head")
    save_trained(model, folder / "trained")
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
    restore_head(model, folder / "head")
    return all(torch.equal(whole(tensor), wanted[name]) for name, tensor in model.head.state_dict().items())


def train(folder, *, fsdp=False, resume=None, **settings):
    """Train by `AdapterTrainer`; a batch has eight rows, whatever the number of processes."""
    from adapterx.integrations.transformers import AdapterTrainer

    processes = dist.get_world_size() if dist.is_initialized() else 1
    if fsdp:
        os.environ["FSDP_VERSION"] = "2"  # which the arguments of transformers 4 cannot say
        settings |= {
            "fsdp": "full_shard auto_wrap" if TRANSFORMERS_4 else True,
            "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]},
        }
    settings |= dict.fromkeys(("save_strategy", "eval_strategy"), "epoch") | {"load_best_model_at_end": True}
    arguments = quick_arguments(
        folder,
        learning_rate=1e-2,
        num_train_epochs=2,
        per_device_train_batch_size=8 // processes,
        per_device_eval_batch_size=8 // processes,
        logging_steps=1,
        **settings,
    )
    model = classifier()
    trainer = AdapterTrainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows(16, 1))
    if resume is not None:
        if arguments.process_index == 0:
            shutil.copytree(resume, Path(folder) / Path(resume).name)
        if processes > 1:
            dist.barrier()
    trainer.train(resume_from_checkpoint=resume is not None)
    found = {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}
    found["evaluated"] = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(Path(folder) / "final"))
    found["sharded"] = trainer.is_fsdp_enabled and hasattr(next(model.parameters()), "full_tensor")
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION"):
        os.environ.pop(name, None)
    return found


def everything(folder):
    """Do all of this, in one group of processes."""
    many_processes.let_accelerate_shard_on_cpus()
    return {
        "sharded": sharded(folder / "sharded"),
        "replicated": replicated(folder),
        "heads": heads(folder / "heads"),
        "fsdp": train(folder / "fsdp", fsdp=True),
        "ddp": train(folder / "ddp"),
        "fsdp resumed": train(folder / "fsdp resumed", fsdp=True, resume=folder / "one" / "checkpoint-3"),
    }
