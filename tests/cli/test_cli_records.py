"""What a run folder records is believed only as it was written; what cannot be right is refused in one line."""

import json
import shutil

import pytest
import recorded
import run_folders
from command_line import invoke, refused, train
from safetensors.torch import load_file, save_file

from adapterx.checkpoint.document import hashed
from adapterx.cli import records
from adapterx.errors import CheckpointError

FIXTURE = recorded.FIXTURES / "0.1.0" / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run that a test may spoil."""
    return shutil.copytree(trained, tmp_path / "run")


def rewrite(path, **changes):
    """Change values of a document and hash it anew, as only somebody who means to would."""
    path.write_text(json.dumps(hashed(json.loads(path.read_text()) | changes)))


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
def test_no_flipped_bit_is_believed(run, name):
    read = {"run.json": records.read_record, "metrics.json": records.read_metrics}[name]
    content, before = (run / name).read_bytes(), read(run)
    for bit in range(0, 8 * len(content), 8 * len(content) // 300 | 1):  # all of them: tests/torture/torture_runs.py
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (run / name).write_bytes(damaged)
        try:
            assert read(run) == before, f"bit {bit}"
        except CheckpointError:
            continue


def test_label_with_a_flipped_bit(run):
    path = run / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"positive"', b'"posithve"'))
    assert "was changed since it was written" in refused("predict", run, "good")
    assert "was changed since it was written" in refused("info", run)


def test_record_of_0_1_0_is_read_and_may_not_hold_more(tmp_path):
    assert records.read_record(FIXTURE)["labels"] == ["negative", "positive"]
    assert records.read_metrics(FIXTURE)["method"] == "adapters"
    record = json.loads((FIXTURE / "run.json").read_text())
    for changes, reason in [
        ({"format_versioo": 2}, "has no format_versioo"),
        ({"method": "adapterq"}, "method of .* must be one of"),
        ({"labels": ["a", "a"]}, "labels of .* must be"),
        ({"labels": "negative"}, "labels of .* must be"),
        ({"labels": []}, "labels of .* must be"),
        ({"labels": ["a", "\ud800"]}, "labels of .* must be"),
        ({"max_length": 24.0}, "max_length of .* must be"),
        ({"max_length": -1}, "max_length of .* must be"),
        ({"max_length": True}, "max_length of .* must be"),
        ({"base_model": ["base"]}, "base_model of .* must be"),
        ({"options": None}, "options of .* must be"),
        ({"options": {"adapter": []}}, "options of .* must be"),
        ({"text_column": 1}, "text_column of .* must be"),
        ({"format_version": "1"}, "format_version of .* must lie"),
        ({"format_version": 3}, "newer adapterx"),
    ]:
        (tmp_path / "run.json").write_text(json.dumps(record | changes))
        with pytest.raises(CheckpointError, match=reason):
            records.read_record(tmp_path)


def test_tensors_that_are_a_dangling_link(run):
    run_folders.replace_by(run / "head_model.safetensors", "dangling")
    invoke("info", run)
    assert "head_model.safetensors" in refused("predict", run, "good")


def test_values_of_a_hashed_record_are_checked_too(run):
    rewrite(run / "run.json", method="adapterq")
    assert "method of" in refused("predict", run, "good")
    rewrite(run / "run.json", method="adapters", files={"../run.json": {"bytes": 1, "sha256": "0" * 64}})
    assert "files of" in refused("predict", run, "good")


def test_files_of_another_run_are_refused(model, data, run, tmp_path):
    """What two runs leave in one folder: each file is whole, together they are no run."""
    train(model, data, tmp_path / "other")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "other" / name, run)
    assert "adapter_config.json is damaged or belongs to another run" in refused("predict", run, "good")


def test_run_that_is_replaced_while_it_is_read(model, data, run, tmp_path, monkeypatch):
    train(model, data, tmp_path / "other", "--bottleneck-dim", "32", "--init", "xavier")
    from adapterx.cli.tasks import headed

    load_text_model = headed.load_text_model

    def meanwhile(source):
        shutil.copytree(tmp_path / "other", run, dirs_exist_ok=True)
        return load_text_model(source)

    monkeypatch.setattr(headed, "load_text_model", meanwhile)
    assert "was replaced while it was read" in refused("predict", run, "good")


@pytest.mark.parametrize("kind", run_folders.KINDS)
def test_something_else_in_place_of_a_document(run, kind):
    metrics = run / "metrics.json"
    for path, command in ((metrics, ("info", run)), (run / "run.json", ("predict", run, "good"))):
        run_folders.replace_by(path, kind)
        if (path, kind) == (metrics, "dangling"):
            continue  # as good as not there
        assert len(refused(*command)) < 600
    assert str(run / "run.json") in refused("info", run)


# -- the base model


@pytest.fixture
def other(model, tmp_path):
    """The base model with one weight that is a little different."""
    folder = shutil.copytree(model, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][3] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_base_model_with_other_weights(trained, other, data, tmp_path):
    line = refused("predict", trained, "good", "--model", other)
    assert "weights differ" in line
    assert "--other-base" in line
    assert "weights differ" in refused("evaluate", trained, "--data", data, "--model", other)
    export = ("export", trained, "--format", "torchscript", "--output", tmp_path / "out", "--model", other)
    assert "weights differ" in refused(*export)
    assert not (tmp_path / "out").exists()
    shown = invoke("predict", trained, "good", "--model", other, "--other-base", "--format", "text").stdout
    assert shown.startswith("positive")
    invoke("evaluate", trained, "--data", data, "--model", other, "--other-base")


def test_base_model_with_another_tokenizer(trained, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "base")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"good"', '"gone"'))
    assert "tokenizer differ" in refused("predict", trained, "good", "--model", folder)


def test_base_folder_that_gets_other_weights_between_training_and_use(model, other, data, tmp_path):
    base = shutil.copytree(model, tmp_path / "mine")
    train(base, data, tmp_path / "o", "--method", "head", "--epochs", "1", code=2)  # QUICK has an adapter's width
    invoke("train", "--model", base, "--data", data, "--output", tmp_path / "o", "--method", "head", "--epochs", "1")
    invoke("predict", tmp_path / "o", "good")
    shutil.copy(other / "model.safetensors", base)
    assert "weights differ" in refused("predict", tmp_path / "o", "good")
