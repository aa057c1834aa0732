"""`adapterx export`: models, tokenizer and labels in one folder are always those of one run."""

import dataclasses
import json

import pytest
from command_line import invoke, refused

from adapterx import ExportError
from adapterx.cli.exporting import export_run
from adapterx.cli.runs import load_run
from adapterx.export import to_torchscript


@pytest.fixture
def quick(monkeypatch):
    """Leave the validation out, which is tested elsewhere."""
    monkeypatch.setattr(
        "adapterx.cli.exporting.to_torchscript",
        lambda *args, **options: to_torchscript(*args, **options, validate=False),
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def export(run, folder, *, overwrite=False):
    export_run(run, folder, "torchscript", opset=20, freeze=False, overwrite=overwrite)


def test_labels_of_another_run_never_come_beside_a_model(trained, tmp_path, quick):
    run, folder = load_run(trained), tmp_path / "export"
    other = dataclasses.replace(run, record={**run.record, "labels": ["bad", "good"]})
    export(run, folder)
    before = contents(folder)
    with pytest.raises(ExportError, match=r"beside which labels\.json is another; choose another folder, or --over"):
        export(other, folder)
    assert contents(folder) == before
    export(run, folder)
    assert set(contents(folder)) == set(before)
    export(other, folder, overwrite=True)
    assert json.loads(contents(folder)["labels.json"]) == ["bad", "good"]
    assert set(contents(folder)) == set(before)


def test_the_command_refuses_in_one_line_and_obeys(trained, tmp_path, quick):
    folder = tmp_path / "export"
    invoke("export", trained, "--format", "torchscript", "--output", folder)
    (folder / "labels.json").write_text("[]")
    arguments = ("export", trained, "--format", "torchscript", "--output", folder)
    assert "export: output must hold no model of another run, got model.pt" in refused(*arguments)
    assert json.loads((folder / "labels.json").read_text()) == []
    assert "labels.json, model.pt" in invoke(*arguments, "--overwrite").stdout
    assert json.loads((folder / "labels.json").read_text()) == ["negative", "positive"]
    (tmp_path / "file").write_text("")
    assert "output must be a folder" in refused(*arguments[:-1], tmp_path / "file")


def test_a_full_disk_as_the_tokenizer_tells_of_it(trained, tmp_path, quick):
    class Full:
        def save_pretrained(self, folder):
            raise Exception("No space left on device (os error 28)")  # as the library tokenizers does

    with pytest.raises(ExportError, match=r"cannot write the tokenizer to .*: No space left on device"):
        export(dataclasses.replace(load_run(trained), tokenizer=Full()), tmp_path / "export")
    assert not list((tmp_path / "export").iterdir())
