"""A folder of exports: whenever a process died, the models in it and what stands beside them are from one run."""

import hashlib
import json
import os
import threading
import time

import pytest
import recorded
from crash_points import moments

from adapterx import ExportError
from adapterx.checkpoint.lock import locked
from adapterx.export import read_metadata
from adapterx.export.metadata import staging
from adapterx.export.publishing import FILES, TORCHSCRIPT_FILE, check_beside, publish

MODELS = (TORCHSCRIPT_FILE, *FILES.values())
BESIDE = ("labels.json", "tokenizer.json")


def export(folder, run, name="model.onnx", *, version=1, beside=BESIDE, overwrite=False):
    """Publish files whose content says which run they are of; the model of version 2 is another one."""
    content = f"{run}{version}"
    with staging(folder) as staged:
        for other in beside:
            (staged / other).write_text(run)
        data = f"{name}.{hashlib.sha256(content.encode()).hexdigest()[:16]}.data"
        if name != TORCHSCRIPT_FILE:
            (staged / data).write_text(content)
        (staged / name).write_text(json.dumps([content, data]))
        publish(staged, folder, name, {"content": content}, beside=beside, overwrite=overwrite)


def contents(folder):
    """Return what the models in the folder are, after checking that they and all beside them fit together."""
    found = {}
    for name in MODELS:
        if (folder / name).exists():
            found[name], data = json.loads((folder / name).read_text())
            assert name == TORCHSCRIPT_FILE or (folder / data).read_text() == found[name]
            for other in BESIDE:
                assert (folder / other).read_text() == found[name][0]
    if (folder / "adapterx_export.json").exists():
        for name, document in read_metadata(folder)["files"].items():
            assert document["content"] == found[name]
    return found


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["model.onnx", TORCHSCRIPT_FILE])
def test_every_moment_of_a_first_export_and_of_the_next(name, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    with moments(folder, tmp_path / "first") as seen:
        export(folder, "A", name)
    assert not seen.faults
    assert [contents(copy) for copy in seen.copies][-1] == {name: "A1"}
    assert all(contents(copy) in ({}, {name: "A1"}) for copy in seen.copies)
    with moments(folder, tmp_path / "next") as seen:
        export(folder, "A", name, version=2)
    assert not seen.faults
    answers = [contents(copy)[name] for copy in seen.copies]
    assert answers == sorted(answers)
    assert set(answers) == {"A1", "A2"}
    assert len(names(folder)) == (5 if name == "model.onnx" else 3)


@pytest.mark.parametrize("name", ["model.onnx", TORCHSCRIPT_FILE])
def test_models_of_another_run_are_kept_unless_they_may_go(name, tmp_path):
    folder = tmp_path / "export"
    export(folder, "A", "model.onnx")
    before = names(folder)
    with pytest.raises(ExportError, match=r"no model of another run, got model.onnx in .*, beside which labels.json"):
        export(folder, "B", name)
    assert names(folder) == before
    assert contents(folder) == {"model.onnx": "A1"}
    for stale in ("added_tokens.json", "vocab.txt"):
        (folder / stale).write_text("A")
    (folder / "notes.txt").write_text("of the user")
    with moments(folder, tmp_path / "copies") as seen:
        export(folder, "B", name, overwrite=True)
    assert not seen.faults
    answers = [contents(copy) for copy in seen.copies]
    assert [answer for i, answer in enumerate(answers) if answers.index(answer) == i] == [
        {"model.onnx": "A1"},
        {},
        {name: "B1"},
    ]
    assert not {"added_tokens.json", "vocab.txt"} & set(names(folder))
    assert "notes.txt" in names(folder)


def test_another_kind_of_file_of_the_same_run_comes_beside(tmp_path):
    for name in MODELS:
        export(tmp_path, "A", name)
    assert contents(tmp_path) == dict.fromkeys(MODELS, "A1")
    assert set(read_metadata(tmp_path)["files"]) == set(FILES.values())


def test_a_model_that_came_without_its_tokenizer_gets_none_of_another(tmp_path):
    export(tmp_path, "A", beside=())
    with pytest.raises(ExportError, match=r"labels\.json is another"):
        export(tmp_path, "B", TORCHSCRIPT_FILE)
    (tmp_path / "labels.json").mkdir()  # nor is a folder the same
    with pytest.raises(ExportError, match=r"labels\.json is another"):
        export(tmp_path, "A", TORCHSCRIPT_FILE)


def test_what_a_killed_export_left_goes_with_the_next(tmp_path):
    export(tmp_path, "A")
    orphan = tmp_path / "model.onnx.0123456789abcdef.data"
    orphan.write_text("its model never came")
    (tmp_path / ".adapterx_export.dead").mkdir()
    export(tmp_path, "A", version=2)
    assert not orphan.exists()
    assert len(names(tmp_path)) == 5


def test_a_folder_that_adapterx_0_1_0_wrote(tmp_path):
    for path in (recorded.FIXTURES / "0.1.0" / "export").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    old = read_metadata(tmp_path)["files"]
    with staging(tmp_path) as staged:
        (staged / "model.onnx").write_text("new")
        publish(staged, tmp_path, "model.onnx", {"content": "new"})
    index = read_metadata(tmp_path)
    assert index["files"] == {**old, "model.onnx": {"content": "new"}}
    assert index["format_version"] == 2


def test_who_comes_second_waits_for_the_lock(tmp_path):
    export(tmp_path, "A")
    second = threading.Thread(target=export, args=(tmp_path, "A"), kwargs={"version": 2})
    with locked(tmp_path):
        second.start()
        time.sleep(0.2)
        assert contents(tmp_path) == {"model.onnx": "A1"}
    second.join()
    assert contents(tmp_path) == {"model.onnx": "A2"}


def test_the_check_before_the_work_is_that_of_the_end(tmp_path):
    export(tmp_path / "out", "A")
    (tmp_path / "labels.json").write_text("B")
    with pytest.raises(ExportError, match="choose another folder, or --overwrite"):
        check_beside(tmp_path, tmp_path / "out", ["labels.json"], overwrite=False)
    check_beside(tmp_path, tmp_path / "out", ["labels.json"], overwrite=True)


def test_two_processes_at_once(tmp_path):
    children = []
    for run in "xy":
        children.append(os.fork())
        if children[-1] == 0:
            try:
                for number in range(10):
                    export(tmp_path, "A", "model.onnx", version=f"{run}{number}")
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert contents(tmp_path)["model.onnx"] in ("Ax9", "Ay9")
    assert len(names(tmp_path)) == 5
