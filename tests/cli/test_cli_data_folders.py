"""Folders as data: what `datasets` saved, and files that are named after their split."""

import json
import sys

import data_files
import pytest
from command_line import QUICK, invoke

from adapterx.cli.data.examples import load_examples
from adapterx.errors import DataError

datasets = pytest.importorskip("datasets")


def saved(rows=data_files.TWO, **more):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    texts, labels = zip(*rows, strict=True)
    return datasets.Dataset.from_dict({"text": texts, "label": labels} | more, features=features)


def examples(source, **more):
    found = load_examples(str(source), **more)
    return list(zip(found.texts, found.labels, strict=True))


def test_a_saved_dataset_is_read_with_the_names_of_its_classes(tmp_path):
    saved().save_to_disk(tmp_path / "one")
    assert examples(tmp_path / "one") == data_files.TWO
    saved().with_format("torch").select([1, 0, 1]).save_to_disk(tmp_path / "chosen")
    assert examples(tmp_path / "chosen") == [data_files.TWO[i] for i in (1, 0, 1)]
    with pytest.raises(DataError, match="holds one dataset without splits; leave out @train"):
        examples(f"{tmp_path}/one@train")


def test_a_row_without_a_class_is_refused(tmp_path):
    datasets.Dataset.from_dict(
        {"text": ["a", "b"], "label": [0, -1]},
        features=datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])}),
    ).save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match="column 'label' has no value in row 1"):
        examples(tmp_path / "one")


def test_a_split_is_chosen_of_several(tmp_path):
    parts = {"train": saved(), "test": saved([("so", "n")])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d@2")
    assert examples(tmp_path / "d@2") == data_files.TWO
    assert examples(tmp_path / "d@2", default_split="test") == examples(f"{tmp_path}/d@2@test") == [("so", "n")]
    for wanted in ({"source": f"{tmp_path}/d@2@dev"}, {"source": tmp_path / "d@2", "default_split": "validation"}):
        with pytest.raises(DataError, match=r"has no split '(dev|validation)'; write .*@SPLIT, one of 'train', 'test'"):
            examples(**wanted)


@pytest.mark.parametrize("damage", ["dataset_dict.json", "train/state.json", "train/data-00000-of-00001.arrow"])
def test_a_damaged_folder_is_refused(damage, tmp_path):
    datasets.DatasetDict(train=saved()).save_to_disk(tmp_path / "d")
    (tmp_path / "d" / damage).write_bytes(b"{")
    with pytest.raises(DataError, match="cannot be read"):
        examples(tmp_path / "d")
    (tmp_path / "d" / damage).unlink()
    with pytest.raises(DataError):
        examples(tmp_path / "d")


def test_no_path_leads_out_of_the_folder(tmp_path):
    saved().save_to_disk(tmp_path / "one")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    with pytest.raises(DataError, match="has no split"):
        examples(f"{tmp_path}/d@..")


LAYOUTS = {  # as load_dataset finds them: the same files for each split
    "names": {"train.csv": "a", "validation.csv": "b", "test.csv": "c"},
    "other names": {"my-train-1.csv": "a", "my-train-2.csv": "A", "dev.csv": "b", "eval_2020.csv": "c", "x.txt": "x"},
    "shards": {"data/train-00000-of-00001.csv": "a", "data/test-00000-of-00001.csv": "c"},
    "folders": {"train/1.csv": "a", "train/sub/2.csv": "A", "valid/1.csv": "b", "testing/1.csv": "c"},
    "hidden": {"train.csv": "a", ".hidden/train.csv": "x", "test.csv": "c"},
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its CSV reader leaves files open
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_files_named_after_their_split_are_those_that_load_dataset_takes(layout, tmp_path):
    for name, text in layout.items():
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text,label\n{text},p\n")
    theirs = datasets.load_dataset(str(tmp_path / "d"), cache_dir=str(tmp_path / "cache"))
    for split, rows in theirs.items():
        assert examples(f"{tmp_path}/d@{split}") == [(text, "p") for text in rows["text"]]
    for split in {"train", "validation", "test"} - theirs.keys():
        with pytest.raises(DataError, match="has no split"):
            examples(tmp_path / "d", default_split=split)


def test_a_folder_that_can_be_meant_in_two_ways_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text(data_files.PLAIN)
    (tmp_path / "train.jsonl").write_text(data_files.JSONL)
    with pytest.raises(DataError, match=r"holds train as \.csv and \.jsonl"):
        examples(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "README.md").write_text("---\nlicense: mit\nconfigs:\n- config_name: default\n---\n")
    with pytest.raises(DataError, match=r"README\.md chooses the files"):
        examples(tmp_path)


def test_a_run_is_trained_and_scored_by_the_splits_of_a_folder(model, tmp_path):
    import tiny_training

    for name, seed in (("train", 0), ("validation", 1), ("test", 2)):
        tiny_training.write_csv(tmp_path / f"{name}.csv", tiny_training.sentences(24, seed))
    run = tmp_path / "run"
    invoke("train", "--model", model, "--data", tmp_path, "--eval-data", tmp_path, "--output", run, *QUICK)
    figures = json.loads(invoke("evaluate", run, "--data", tmp_path, "--json").stdout)
    expected = json.loads(invoke("evaluate", run, "--data", tmp_path / "test.csv", "--json").stdout)
    assert figures == expected | {"data": str(tmp_path)}
    answers = invoke("predict", run, "--file", tmp_path, "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["text"] for line in answers] == [text for text, _ in tiny_training.sentences(24, 2)]


# --- zstd -------------------------------------------------------------------------------------------------------------


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    for name in ("zstandard", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd\0\0\0\0")
    with pytest.raises(DataError, match=r"packed by zstd, which needs zstandard: pip install 'adapterx\[zstd\]'"):
        examples(tmp_path / "a.csv.zst")
