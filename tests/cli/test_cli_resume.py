"""Output folders, and runs that were stopped by whatever and go on: nothing is lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import run_folders
import tiny_training
import torch
from command_line import QUICK, ROWS, invoke, refused, tensors, train
from safetensors.torch import load_file, save_file

from adapterx.cli import resuming
from adapterx.errors import ConfigError


def test_output_folder_with_something_in_it(model, data, tmp_path):
    output = tmp_path / "o"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    assert "not empty (thesis.txt)" in refused("train", "--model", model, "--data", data, "--output", output)
    train(model, data, output, "--overwrite")
    first = tensors(output)
    assert "not empty" in refused("train", "--model", model, "--data", data, "--output", output)
    assert "is complete" in refused("train", "--model", model, "--data", data, "--output", output, "--resume")
    train(model, data, output, "--overwrite", "--seed", "9")
    assert tensors(output) != first
    assert (output / "thesis.txt").read_text() == "precious"


def test_output_that_cannot_be_a_folder(model, data, tmp_path):
    assert "must be a folder" in refused("train", "--model", model, "--data", data, "--output", data)
    line = refused("train", "--model", model, "--data", data, "--output", data / "below")
    assert "not writable" in line


def test_loss_that_explodes(model, data, tmp_path):
    line = refused(
        "train", "--model", model, "--data", data, "--output", tmp_path / "o", *QUICK, "--learning-rate", "1e30"
    )
    assert "learning rate" in line
    assert "step" in line
    train(model, data, tmp_path / "o")  # nothing is left behind that would be in the way


@pytest.mark.parametrize("function", ["save_adapter", "draw_learning_curve"])
def test_full_disk_at_the_end_loses_nothing(model, data, tmp_path, monkeypatch, function):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    train(model, data, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(f"adapterx.cli.train.{function}", full)
        result = train(model, data, tmp_path / "o", code=2)
    assert "No space left on device" in result.stderr
    assert "--resume" in result.stderr
    assert "not complete" in refused("predict", tmp_path / "o", "good")
    train(model, data, tmp_path / "o", "--resume")
    assert tensors(tmp_path / "o") == tensors(tmp_path / "straight")


def interrupted(model, data, output, monkeypatch, step, *more):
    """Leave what Ctrl-C after that step leaves."""
    from adapterx.cli.progress import ProgressLine

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "on_step_end", stop)
        return train(model, data, output, *more, code=130)


@pytest.mark.parametrize("step", [2, 11])
def test_interrupt_and_resume_end_as_an_undisturbed_run(model, data, tmp_path, monkeypatch, step):
    train(model, data, tmp_path / "straight", "--dropout", "0.1")
    result = interrupted(model, data, tmp_path / "cut", monkeypatch, step, "--dropout", "0.1")
    assert "--resume" in result.output
    assert "finish it with" in refused("evaluate", tmp_path / "cut", "--data", data)
    assert "continue it with --resume" in refused(
        "train", "--model", model, "--data", data, "--output", tmp_path / "cut"
    )
    assert "interrupted" in invoke("info", tmp_path / "cut").stdout
    train(model, data, tmp_path / "cut", "--dropout", "0.1", "--resume")
    assert tensors(tmp_path / "cut") == tensors(tmp_path / "straight")
    histories = [json.loads((tmp_path / run / "metrics.json").read_text())["history"] for run in ("cut", "straight")]
    assert histories[0] == histories[1]


def test_resume_with_other_options_says_which(model, data, tmp_path, monkeypatch):
    interrupted(model, data, tmp_path / "o", monkeypatch, 11)
    before = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}
    with monkeypatch.context():
        result = train(model, data, tmp_path / "o", "--resume", "--seed", "5", "--activation", "relu", code=2)
    assert "seed: 0 -> 5" in result.stderr
    assert "activation: gelu -> relu" in result.stderr
    tiny_training.write_csv(data, ROWS[::-1])
    assert "content of the data" in train(model, data, tmp_path / "o", "--resume", code=2).stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}


def test_options_that_an_earlier_version_did_not_know_stand_at_their_defaults(model, data, tmp_path, monkeypatch):
    interrupted(model, data, tmp_path / "o", monkeypatch, 11)
    path = tmp_path / "o" / "checkpoints" / "options.json"
    record = json.loads(path.read_text())
    own = ("format_version", "document_sha256", "threads", "device", "versions", "processes", "command")
    for name in (*own, "weights of the base model", "tokenizer of the base model"):
        del record[name]  # as 0.1.0 wrote it
    del record["keep_best"], record["adapter"]["up_bias"], record["adapter"]["layers"]
    path.write_text(json.dumps(record))
    assert "up_bias: True -> False" in train(model, data, tmp_path / "o", "--resume", "--no-up-bias", code=2).stderr
    train(model, data, tmp_path / "o", "--resume")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_moment_and_resumed(model, data, tmp_path):
    runner = Path(__file__).parents[1] / "support" / "crash_runner.py"
    arguments = [sys.executable, "-W", "ignore", str(runner), str(model), str(data), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    expected = report["straight"] | {"code": 0}
    assert sum(cut["killed"] for cut in report["cut"].values()) >= 6
    for name, cut in report["cut"].items():
        wrong = {key for key in expected if cut.get(key) != expected[key]}
        assert not wrong, (name, cut, done.stderr)


# -- the best epoch, after the folder was moved


@pytest.fixture
def unfinished(model, data, tmp_path, monkeypatch):
    """A run that kept its first epoch as the best and could not be written; beside it, the undisturbed one."""
    from adapterx.cli.tasks import single_label

    def scores(guesses, truth):
        calls.append(len(guesses))
        return {"accuracy": 0.9 if len(calls) == 1 else 0.1, "macro_f1": 0.5}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("straight", "o"):
        calls = []
        with monkeypatch.context() as patch:
            patch.setattr(single_label, "classification_scores", scores)
            if name == "o":
                patch.setattr("adapterx.cli.train.draw_learning_curve", full)
            train(model, data, tmp_path / name, "--keep-best", code=2 if name == "o" else 0)
    return tmp_path / "o"


@pytest.mark.parametrize("how", ["stays", "moved", "copied"])
def test_best_epoch_is_kept_wherever_the_folder_stands(model, data, unfinished, tmp_path, how):
    elsewhere = unfinished if how == "stays" else tmp_path / "elsewhere" / "deep"
    if how == "moved":
        elsewhere.parent.mkdir()
        unfinished.rename(elsewhere)
    elif how == "copied":
        shutil.copytree(unfinished, elsewhere)
        first = min((unfinished / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
        (first / "trainable_model.safetensors").write_bytes(b"the old place is nobody's concern")
    train(model, data, elsewhere, "--keep-best", "--resume")
    assert tensors(elsewhere) == tensors(tmp_path / "straight")


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_best_epoch_that_is_lost_is_never_replaced_by_the_last(model, data, unfinished, how):
    first = min((unfinished / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    if how == "missing":
        shutil.rmtree(first)
    else:
        (first / "optimizer.pt").write_bytes(b"")
    before = run_folders.content_of(unfinished)
    line = train(model, data, unfinished, "--keep-best", "--resume", code=2).stderr
    assert first.name in line
    assert "it is the best checkpoint so far" in line
    assert run_folders.content_of(unfinished) == before


# -- the machine


@pytest.fixture
def threads():
    """Give the process its number of threads back."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_resume_takes_the_threads_of_the_first_run_or_says_that_others_count(
    model, data, tmp_path, monkeypatch, threads
):
    interrupted(model, data, tmp_path / "o", monkeypatch, 11, "--threads", "1")
    shutil.copytree(tmp_path / "o", tmp_path / "other")
    torch.set_num_threads(2)
    assert "another machine" not in train(model, data, tmp_path / "o", "--resume").output
    assert json.loads((tmp_path / "o" / "run.json").read_text())["threads"] == 1
    said = train(model, data, tmp_path / "other", "--resume", "--threads", "2").output
    assert "threads: 1 -> 2" in said
    assert "last digits" in said


def test_resume_with_another_base_or_more_processes_is_refused(model, data, tmp_path, monkeypatch):
    interrupted(model, data, tmp_path / "o", monkeypatch, 11)
    moved = shutil.copytree(model, tmp_path / "moved")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "processes: 1 -> 2" in train(model, data, tmp_path / "o", "--resume", code=2).stderr
    monkeypatch.delenv("WORLD_SIZE")
    weights = load_file(moved / "model.safetensors")
    whole = (moved / "model.safetensors").read_bytes()
    weights["encoder.layer.1.output.dense.bias"][3] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert "weights of the base model" in train(moved, data, tmp_path / "o", "--resume", code=2).stderr
    (moved / "model.safetensors").write_bytes(whole)
    train(moved, data, tmp_path / "o", "--resume")


@pytest.mark.parametrize("kind", run_folders.KINDS)
def test_something_else_in_place_of_the_options(model, data, tmp_path, kind):
    (tmp_path / "o" / "checkpoints").mkdir(parents=True)
    run_folders.replace_by(tmp_path / "o" / "checkpoints" / "options.json", kind)
    line = refused("train", "--model", model, "--data", data, "--output", tmp_path / "o", *QUICK, "--resume")
    assert "options.json" in line


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes", "agrees"),
    [(8, 1, 1, True), (4, 1, 2, True), (2, 4, 1, True), (2, 2, 2, True), (8, 1, 2, False), (4, 1, 1, False)],
)
def test_processes_may_share_the_batch_in_another_way(batch_size, accumulation, processes, agrees):
    record = {"batch_size": batch_size, "gradient_accumulation": accumulation}
    options = SimpleNamespace(record=lambda: record, uses_gpu=False)
    before = {"batch_size": 4, "gradient_accumulation": 1, "processes": 2}
    if agrees:
        resuming.go_on(options, {"processes": processes}, before)
        return
    with pytest.raises(ConfigError, match="--resume needs the options of the first run, these differ: "):
        resuming.go_on(options, {"processes": processes}, before)
