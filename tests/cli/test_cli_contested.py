"""Run folders that another process is writing to, and what a killed one left in them."""

import json
import shutil

import pytest
import run_folders
from command_line import QUICK, invoke, refused, tensors, train

from adapterx.checkpoint.document import hashed
from adapterx.cli.progress import ProgressLine


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run that a test may spoil."""
    return shutil.copytree(trained, tmp_path / "run")


def stopped(model, data, output, monkeypatch, stop, *, step=11):
    """Leave what a training leaves that a signal ends after that step; return what it said."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise stop

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "on_step_end", on_step_end)
        return train(model, data, output, code=130 if stop is KeyboardInterrupt else 143)


# -- two at once


@pytest.mark.parametrize("more", [(), ("--resume",), ("--overwrite",)])
def test_second_training_into_a_folder_is_refused_and_changes_nothing(model, data, tmp_path, monkeypatch, more):
    output = tmp_path / "o"
    stopped(model, data, output, monkeypatch, KeyboardInterrupt)
    before = run_folders.content_of(output)
    with run_folders.held_elsewhere(output):
        line = refused("train", "--model", model, "--data", data, "--output", output, *QUICK, *more)
    assert f"another process is training into {output}" in line
    assert run_folders.content_of(output) == before
    train(model, data, output, "--resume")


def test_folder_is_kept_until_the_record_stands_and_no_longer(model, data, tmp_path, monkeypatch):
    from adapterx.checkpoint.lock import is_locked
    from adapterx.cli import train as module

    held, write_run = [], module.write_run

    def noting(output, *rest):
        write_run(output, *rest)
        held.append(is_locked(output))

    monkeypatch.setattr(module, "write_run", noting)
    train(model, data, tmp_path / "o")
    assert held == [True]
    assert not is_locked(tmp_path / "o")
    assert not [path.name for path in (tmp_path / "o").iterdir() if path.name.startswith(".")]


# -- what the killed leave


def leave_over(run, *, kept=False):
    """Put back what a training that was killed in its last moments leaves beside a complete run."""
    (run / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (run / "checkpoints" / "checkpoint-3" / "optimizer.pt").write_bytes(b"x")
    (run / "checkpoints" / "options.json").write_text("{}")
    (run / ".partial-abc").mkdir()
    (run / ".partial-abc" / "run.json").write_text("{}")
    if kept:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(hashed(record | {"keep_checkpoints": True})))


@pytest.mark.parametrize("command", ["info", "predict", "evaluate", "export", "train", "resume"])
def test_the_next_command_tidies_what_a_killed_training_left(run, data, model, tmp_path, command):
    before = run_folders.content_of(run)
    leave_over(run)
    training = ("train", "--model", model, "--data", data, "--output", run)
    {
        "info": lambda: invoke("info", run),
        "predict": lambda: invoke("predict", run, "good"),
        "evaluate": lambda: invoke("evaluate", run, "--data", data),
        "export": lambda: invoke("export", run, "--format", "torchscript", "--output", tmp_path / "out"),
        "train": lambda: refused(*training),
        "resume": lambda: refused(*training, "--resume"),
    }[command]()
    assert run_folders.content_of(run) == before
    assert not (run / "checkpoints").exists()
    assert not list(run.glob(".*"))


def test_checkpoints_that_are_to_stay_or_are_in_use_stay(run):
    leave_over(run)
    with run_folders.held_elsewhere(run):
        invoke("info", run)
        assert (run / "checkpoints" / "options.json").exists()
    shutil.rmtree(run / ".partial-abc")
    shutil.rmtree(run / "checkpoints")
    leave_over(run, kept=True)
    invoke("info", run)
    assert (run / "checkpoints" / "options.json").exists()
    assert not (run / ".partial-abc").exists()


def test_folder_that_cannot_be_tidied_is_used_all_the_same(run, monkeypatch):
    leave_over(run)

    def read_only(*args, **kwargs):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("adapterx.cli.runs.discard_checkpoints", read_only)
    assert "positive" in invoke("predict", run, "good", "--format", "text").stdout


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit(143)], ids=["SIGINT", "SIGTERM"])
def test_signal_in_training_says_how_to_go_on(model, data, tmp_path, monkeypatch, stop):
    said = stopped(model, data, tmp_path / "o", monkeypatch, stop).output
    assert "interrupted; continue with: adapterx train --resume" in said


@pytest.mark.parametrize("where", ["draw_learning_curve", "discard_checkpoints"])
def test_signal_in_the_last_moments(model, data, tmp_path, monkeypatch, where):
    train(model, data, tmp_path / "straight")

    def stop(*args):
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        room = "train" if where == "draw_learning_curve" else "runs"
        patch.setattr(f"adapterx.cli.{room}.{where}", stop)
        said = train(model, data, tmp_path / "o", code=143).output
    if where == "draw_learning_curve":
        assert "--resume" in said
        train(model, data, tmp_path / "o", "--resume")
    else:
        assert "is complete" in said
        invoke("info", tmp_path / "o")
    assert tensors(tmp_path / "o") == tensors(tmp_path / "straight")
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == sorted(
        path.name for path in (tmp_path / "straight").iterdir()
    )
