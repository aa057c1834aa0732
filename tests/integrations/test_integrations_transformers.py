import errno
import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import tiny_training
from quick_arguments import quick_arguments
from transformers import AutoModelForSequenceClassification, BertModel, TrainerCallback

from adapterx import AdapterConfig, attach, load_adapter
from adapterx.checkpoint import folder as files
from adapterx.checkpoint import restore_trained, save_trained, trainable_state
from adapterx.errors import CheckpointError, TrainingError
from adapterx.heads import SequenceClassifier
from adapterx.integrations.transformers import AdapterTrainer

CONFIG = AdapterConfig(bottleneck_dim=4, dropout=0.1)  # dropout, so that a lost generator state would show


class Rows(torch.utils.data.Dataset):
    def __init__(self, count=24, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(4, 30, (count, 7), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {
            "input_ids": self.ids[i],
            "attention_mask": torch.ones(7, dtype=torch.int64),
            "labels": int(self.ids[i, 1] > 16),
        }


def make_model(method="adapters"):
    torch.manual_seed(1)
    model = SequenceClassifier(BertModel(tiny_training.tiny_config(), add_pooling_layer=False), 2, dropout=0.1)
    if method == "adapters":
        attach(model.base_model, CONFIG, seed=0)
    elif method == "head":
        model.base_model.requires_grad_(False)
    return model


def make_trainer(folder, model, *, callbacks=None, head_learning_rate=1e-2, **settings):
    settings = {
        "learning_rate": 1e-3,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "save_strategy": "epoch",
        "logging_steps": 1,
    } | settings
    return AdapterTrainer(
        model=model,
        args=quick_arguments(folder, **settings),
        train_dataset=Rows(),
        eval_dataset=Rows(12, seed=1),
        callbacks=callbacks,
        head_learning_rate=head_learning_rate,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["adapters", "head", "full"])
def test_checkpoint_holds_what_is_trained_and_resume_ends_equal(tmp_path, method):
    straight = make_model(method)
    before = state_of(straight)
    make_trainer(tmp_path / "straight", straight).train()
    changed = {name for name, tensor in straight.state_dict().items() if not torch.equal(tensor, before[name])}
    trained = set(trainable_state(straight))
    assert changed <= trained  # a frozen base is bitwise what it was
    assert len(changed) >= len(trained) - 2  # key biases get no gradient through a softmax

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", make_model(method), callbacks=[StopAt(5)]).train()
    resumed = make_model(method)
    make_trainer(tmp_path / "cut", resumed).train(resume_from_checkpoint=True)
    assert same(state_of(straight), state_of(resumed))


def test_adapter_checkpoint_is_small_and_loads_as_an_adapter(tmp_path):
    model = make_model()
    make_trainer(tmp_path, model, max_steps=3).train()
    folder = tmp_path / "checkpoint-3"
    names = {path.name for path in folder.iterdir()}
    assert "adapter_model.safetensors" in names
    assert not {name for name in names if name.startswith(("model.", "pytorch_model", "training_args"))}
    fresh = make_model("bare").base_model
    load_adapter(fresh, folder)
    trained = {name: tensor for name, tensor in state_of(model.base_model).items() if "adapterx" in name}
    assert trained
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in trained.items())


def test_adapters_and_head_learn_at_their_own_rates(tmp_path):
    trainer = make_trainer(tmp_path, make_model(), max_steps=1, save_strategy="no")
    rates = {group["name"]: group["lr"] for group in trainer.create_optimizer().param_groups}
    assert rates == {"adapters": 1e-3, "adapters, not decayed": 1e-3, "head": 1e-2, "head, not decayed": 1e-2}


def test_best_model_is_loaded_at_the_end(tmp_path):
    seen = {}

    class Remember(TrainerCallback):
        def on_evaluate(self, args, state, control, model, metrics, **kwargs):
            seen[state.global_step] = state_of(model)

    settings = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "score"}
    model = make_model()
    trainer = make_trainer(tmp_path, model, callbacks=[Remember()], save_total_limit=1, num_train_epochs=4, **settings)
    scores = iter([0.1, 0.9, 0.2, 0.3])  # made up, so that the second epoch is the best for certain
    trainer.compute_metrics = lambda prediction: {"score": next(scores)}
    trainer.train()
    assert same(seen[6], state_of(model))
    assert not same(seen[12], state_of(model))


class Diary(TrainerCallback):
    """Writes into the checkpoint in `on_save`, as many do, and goes on writing into the older ones."""

    def on_save(self, args, state, control, **kwargs):
        for folder in Path(args.output_dir).glob("checkpoint-*"):
            with (folder / "diary.txt").open("a") as file:
                file.write(f"step {state.global_step}\n")
            (folder / ".DS_Store").write_text(f"{state.global_step}")
            (folder / "tokenizer").mkdir(exist_ok=True)
            (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")


def test_callbacks_may_write_into_checkpoints(tmp_path):
    settings = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    straight = make_model()
    make_trainer(tmp_path / "straight", straight, callbacks=[Diary()], **settings).train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", make_model(), callbacks=[Diary(), StopAt(8)], **settings).train()
    resumed = make_model()
    trainer = make_trainer(tmp_path / "cut", resumed, callbacks=[Diary()], **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-6"))
    assert same(state_of(straight), state_of(resumed))
    assert (tmp_path / "cut" / "checkpoint-3" / "diary.txt").read_text() == "step 3\nstep 6\nstep 9\n"
    for folder in (tmp_path / "cut").glob("checkpoint-*"):
        files.verify_seal(folder)


def test_only_the_newest_checkpoints_stay(tmp_path):
    make_trainer(tmp_path, make_model(), save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-9"]
    for folder in tmp_path.glob("checkpoint-*"):
        files.verify_seal(folder)


def spoil(folder: Path, how: str) -> None:
    if how == "no seal":
        (folder / files.SEAL).unlink()
    elif how == "missing file":
        (folder / "optimizer.pt").unlink()
    elif how == "cut short":
        content = (folder / "adapter_model.safetensors").read_bytes()
        (folder / "adapter_model.safetensors").write_bytes(content[: len(content) // 2])
    elif how == "one bit":
        content = bytearray((folder / "optimizer.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (folder / "optimizer.pt").write_bytes(content)
    else:
        (folder / files.SEAL).write_text("{")


@pytest.mark.parametrize("how", ["no seal", "missing file", "cut short", "one bit", "damaged seal"])
def test_resume_skips_a_checkpoint_that_is_not_whole(tmp_path, how):
    model = make_model()
    make_trainer(tmp_path, model, num_train_epochs=2).train()
    spoil(tmp_path / "checkpoint-6", how)
    newest, skipped = files.newest_complete(tmp_path)
    assert newest == tmp_path / "checkpoint-3"
    assert len(skipped) == 1
    with pytest.raises(CheckpointError, match="checkpoint-6"):
        make_trainer(tmp_path, make_model(), num_train_epochs=2).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-6")
        )
    resumed = make_model()
    make_trainer(tmp_path, resumed, num_train_epochs=2).train(resume_from_checkpoint=True)
    assert same(state_of(model), state_of(resumed))
    files.verify_seal(tmp_path / "checkpoint-6")  # written anew


def test_resume_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        make_trainer(tmp_path, make_model()).train(resume_from_checkpoint=True)


def test_pickles_in_a_checkpoint_cannot_run_programs(tmp_path):
    """Even a correctly sealed folder: optimizer, schedule and generators are read as plain tensors only."""

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    make_trainer(tmp_path, make_model(), num_train_epochs=1).train()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        folder = tmp_path / "checkpoint-3"
        original = (folder / name).read_bytes()
        torch.save(Payload(), folder / name)
        files.seal(folder)
        with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported global"):
            make_trainer(tmp_path, make_model(), num_train_epochs=2).train(resume_from_checkpoint=True)
        assert not (tmp_path / "owned").exists()
        (folder / name).write_bytes(original)


def test_loss_that_is_not_finite_stops_and_leaves_the_good_checkpoint(tmp_path):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            if state.global_step == 4:
                with torch.no_grad():
                    model.head.linear.bias.fill_(math.nan)

    with pytest.raises(TrainingError, match=r"nan at step 5 \(epoch 1.33\) with learning rate"):
        make_trainer(tmp_path, make_model(), callbacks=[Poison()]).train()
    assert files.newest_complete(tmp_path)[0] == tmp_path / "checkpoint-3"


def test_state_that_is_not_finite_is_never_saved(tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 6:  # after the last finite loss of the epoch, before the checkpoint
                with torch.no_grad():
                    model.head.linear.bias.fill_(math.inf)

    with pytest.raises(TrainingError, match=r"head\.linear\.bias"):
        make_trainer(tmp_path, make_model(), callbacks=[Poison()]).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize("place", ["torch.save", "adapterx.integrations.transformers.seal"])
def test_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, place):
    trainer = make_trainer(tmp_path, make_model(), num_train_epochs=1)
    trainer.train()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = make_trainer(tmp_path, make_model(), num_train_epochs=2)
    monkeypatch.setattr(place, full)
    with pytest.raises(TrainingError, match=r"step 6 could not be written.*No space left.*checkpoint-3 is intact"):
        trainer.train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    files.verify_seal(tmp_path / "checkpoint-3")


def test_state_of_another_model_is_refused_whole(tmp_path):
    save_trained(make_model(), tmp_path)
    other = SequenceClassifier(BertModel(tiny_training.tiny_config(), add_pooling_layer=False), 3)
    attach(other.base_model, CONFIG)
    before = state_of(other)
    with pytest.raises(CheckpointError, match=r"head\.linear"):
        restore_trained(other, tmp_path)
    assert same(before, state_of(other))


def test_model_of_transformers_with_a_trained_classifier(tmp_path):
    """No class of ours: adapters on `AutoModelForSequenceClassification`, its classifier as a trained copy."""

    def build():
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_config(tiny_training.tiny_config())
        attach(model, AdapterConfig(bottleneck_dim=4, modules_to_save=("classifier",)), seed=0)
        return model

    model = build()
    make_trainer(tmp_path, model, num_train_epochs=1).train()
    assert json.loads((tmp_path / "checkpoint-3/trainable_config.json").read_text())["tensors"] == {}
    fresh = build()
    restore_trained(fresh, tmp_path / "checkpoint-3")
    assert same(state_of(model), state_of(fresh))


def test_quantised_base_is_accepted(tmp_path):
    model = AutoModelForSequenceClassification.from_config(tiny_training.tiny_config())
    model.is_quantized = True
    model.hf_quantizer = type("Quantizer", (), {"is_trainable": True, "is_qat_trainable": False})()
    with pytest.raises(ValueError, match="quantized"):
        make_trainer(tmp_path, model)
    attach(model, AdapterConfig(bottleneck_dim=4))
    make_trainer(tmp_path, model)
    assert not model._hf_peft_config_loaded  # only pretended while the Trainer looked


def test_library_is_named_when_it_is_missing(monkeypatch):
    import importlib
    import sys

    from adapterx.errors import ExtensionError

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "adapterx.integrations.transformers")
    with pytest.raises(ExtensionError, match=r"pip install 'adapterx\[train\]'"):
        importlib.import_module("adapterx.integrations.transformers")
