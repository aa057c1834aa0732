"""When a training saves and ends: steps, accumulation, early stopping, and each of them across an interruption."""

import json
import shutil

import pytest
import torch
from command_line import invoke, refused, tensors
from safetensors.torch import load_file

from adapterx.cli.pacing import StopEarly

SMALL = ("--bottleneck-dim", "4", "--eval-fraction", "0.2")


def train(model, data, output, *more, **settings):
    return invoke("train", "--model", model, "--data", data, "--output", output, *SMALL, *more, **settings)


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def interrupted(monkeypatch, step, *arguments):
    """Run what Ctrl-C ends after that step."""
    from adapterx.cli.progress import ProgressLine

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "on_step_end", stop)
        return train(*arguments, code=130)


# -- steps


def test_max_steps_ends_in_the_middle_of_an_epoch(model, data, tmp_path):
    result = train(model, data, tmp_path / "o", "--max-steps", "8", "--batch-size", "8")  # 48 examples: 6 an epoch
    assert metrics(tmp_path / "o")["steps"] == 8
    assert "epoch 2/2" in result.stdout
    assert json.loads((tmp_path / "o/run.json").read_text())["options"]["epochs"] is None


def test_accumulated_gradients_make_the_step_of_the_larger_batch(model, data, tmp_path):
    model = shutil.copytree(model, tmp_path / "still")
    config = json.loads((model / "config.json").read_text())
    still = config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(still))
    exact = ("--epochs", "2", "--head-dropout", "0")
    train(model, data, tmp_path / "whole", "--batch-size", "8", *exact)
    train(model, data, tmp_path / "parts", "--batch-size", "2", "--gradient-accumulation", "4", *exact)
    assert metrics(tmp_path / "whole")["steps"] == metrics(tmp_path / "parts")["steps"] == 12
    for name in ("adapter_model.safetensors", "head_model.safetensors"):
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        for key, value in whole.items():
            torch.testing.assert_close(parts[key], value, atol=1e-5, rtol=1e-4)


STEPS = ("--batch-size", "4", "--gradient-accumulation", "2", "--dropout", "0.1", "--max-steps", "14")


def test_a_checkpoint_within_an_epoch_goes_on_as_an_undisturbed_run(model, data, tmp_path, monkeypatch):
    saving = (*STEPS, "--save-steps", "4", "--keep-best")  # 48 examples: an epoch ends at steps 6, 12
    train(model, data, tmp_path / "straight", *saving)
    interrupted(monkeypatch, 9, model, data, tmp_path / "cut", *saving)
    result = invoke("train", "--resume", tmp_path / "cut")
    assert "resuming from checkpoint-8" in result.stdout
    assert tensors(tmp_path / "cut") == tensors(tmp_path / "straight")
    assert metrics(tmp_path / "cut")["history"] == metrics(tmp_path / "straight")["history"]
    train(model, data, tmp_path / "without", *STEPS, "--keep-best")  # when it is saved changes nothing
    assert tensors(tmp_path / "without") == tensors(tmp_path / "straight")


# -- early stopping


def entry(value):
    return {"eval_accuracy": value, "eval_loss": 1.0}


@pytest.mark.parametrize(
    ("scores", "patience", "threshold", "stops"),
    [
        ([0.5], 1, 0.0, False),
        ([0.5, 0.5], 1, 0.0, True),
        ([0.5, 0.6], 1, 0.0, False),
        ([0.5, 0.6], 1, 0.2, True),
        ([0.5, 0.4, 0.6, 0.5], 2, 0.0, False),
        ([0.5, 0.4, 0.5], 2, 0.0, True),
        ([0.5, 0.6, 0.7], 2, 0.15, True),  # each gains too little over the best before it
        ([float("nan"), float("nan")], 2, 0.0, True),
    ],
)
def test_when_patience_is_at_its_end(scores, patience, threshold, stops):
    history = [{"loss": 1.0}, *map(entry, scores)]
    assert StopEarly(patience, "accuracy", True, threshold).has_stopped(history) is stops
    turned = [{"eval_accuracy": -score} for score in scores]
    assert StopEarly(patience, "accuracy", False, threshold).has_stopped(turned) is stops


@pytest.fixture
def falling(monkeypatch):
    """Let every evaluation be worse than the one before, but for the second, which is the best."""
    from adapterx.cli.tasks import single_label

    def prepare(before=0):
        left = iter([0.5, 0.9, *(0.4 - i / 100 for i in range(30))][before:])
        monkeypatch.setattr(single_label, "classification_scores", lambda *_: {"accuracy": next(left), "macro_f1": 0.5})

    return prepare


def test_training_stops_early_and_keeps_the_best_epoch(model, data, tmp_path, falling):
    falling()
    stopping = ("--epochs", "5", "--early-stopping", "2", "--batch-size", "8")
    result = train(model, data, tmp_path / "o", *stopping)
    assert "stopped early: the held-out accuracy has not got better for 2 epochs" in result.stdout
    assert [e["epoch"] for e in metrics(tmp_path / "o")["history"] if "eval_loss" in e] == [1, 2, 3, 4]
    assert metrics(tmp_path / "o")["steps"] == 24
    falling()
    train(model, data, tmp_path / "best", "--epochs", "5", "--keep-best", "--batch-size", "8")
    assert tensors(tmp_path / "o") == tensors(tmp_path / "best")


def test_a_resumed_run_stops_where_the_undisturbed_one_does(model, data, tmp_path, falling, monkeypatch):
    stopping = ("--epochs", "5", "--early-stopping", "2", "--batch-size", "8")
    falling()
    train(model, data, tmp_path / "straight", *stopping)
    falling()
    interrupted(monkeypatch, 20, model, data, tmp_path / "cut", *stopping)
    falling()
    with monkeypatch.context() as patch:
        patch.setattr("adapterx.cli.train.final_metrics", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(model, data, tmp_path / "late", *stopping, code=130)  # it had stopped, and all but told so
    for name, evaluations in (("cut", 3), ("late", 4)):
        falling(before=evaluations)
        invoke("train", "--resume", tmp_path / name)
        assert tensors(tmp_path / name) == tensors(tmp_path / "straight")
        assert metrics(tmp_path / name)["history"] == metrics(tmp_path / "straight")["history"]


@pytest.mark.parametrize(
    ("typed", "words"),
    {
        "--max-steps 5 --epochs 2": "max_steps and epochs exclude each other",
        "--max-steps 0": "max_steps must be at least 1",
        "--save-steps 0": "save_steps must be at least 1",
        "--gradient-accumulation 0": "gradient_accumulation must be at least 1",
        "--early-stopping 0": "early_stopping must be at least 1",
        "--early-stopping 2 --eval-fraction 0": "early_stopping needs examples to choose by",
        "--early-stopping-threshold 0.1": "early_stopping_threshold needs early_stopping",
        "--early-stopping 1 --early-stopping-threshold nan": "early_stopping_threshold must be a number",
    }.items(),
)
def test_what_is_of_no_use(model, data, tmp_path, typed, words):
    given = ("train", "--model", model, "--data", data, "--output", tmp_path / "o")
    assert words in refused(*given, *typed.split(" "))


# -- a run that tells its own options


def test_resume_by_name_reads_every_option(model, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.json").write_text('{"negative": "bad"}')
    reading = ("--label-map", "names.json", "--text-column", "text", "--threads", "1")
    typed = (*STEPS, *reading, "--layers", "0-1", "--positions", "feed_forward")
    train(model, data.name, "straight", *typed)
    interrupted(monkeypatch, 9, model, data.name, "cut", *typed)
    (tmp_path / "moved").mkdir()
    (tmp_path / "cut").rename(tmp_path / "moved/run")
    monkeypatch.chdir(tmp_path / "moved")
    refusals = {
        ("--seed", "5"): "seed: 0 -> 5",
        ("--activation", "relu"): "activation: gelu -> relu",
        ("--max-steps", "15"): "max_steps: 14 -> 15",
        ("--epochs", "3"): "exclude each other",
        ("--output", "other"): "must name the same folder",
        ("--overwrite",): "exclude each other",
    }
    for more, words in refusals.items():
        assert words in invoke("train", "--resume", "run", *more, code=2).stderr
    invoke("train", "--resume", "run", "--seed", "0", "--output", "run", "--keep-checkpoints")
    assert tensors(tmp_path / "moved/run") == tensors(tmp_path / "straight")
    assert (tmp_path / "moved/run/checkpoints").is_dir()
    assert "is complete" in refused("train", "--resume", "run")


def test_resume_by_name_of_what_does_not_tell(model, data, tmp_path, monkeypatch):
    assert "holds no interrupted run" in refused("train", "--resume", tmp_path / "none")
    interrupted(monkeypatch, 9, model, data, tmp_path / "cut", *STEPS)
    path = tmp_path / "cut/checkpoints/options.json"
    from adapterx.cli.records import to_document

    noted = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("document_sha256", "format_version")}
    for command, words in {None: "does not tell how", (): "does not tell how", "x": "cannot have been typed"}.items():
        path.write_bytes(to_document(noted | {"command": {"epochs": "x"} if command == "x" else command}))
        assert words in refused("train", "--resume", tmp_path / "cut")
