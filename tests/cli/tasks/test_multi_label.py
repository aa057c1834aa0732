"""`--task multi-label-classification`: the ways to write several labels, what is learnt, and what is refused."""

import csv
import json
import random

import pytest
import tiny_training
from command_line import invoke, refused
from tiny_training import write_jsonl

from adapterx.cli.tasks.multi_label import MultiLabelClassification
from adapterx.cli.tasks.task import Asked
from adapterx.errors import DataError

TASK = ("--task", "multi-label-classification")
SIGNS = {"kind": "good", "big": "great", "sad": "awful"}


def examples(count=160):
    """Texts in which a word stands for each of their labels; a quarter has none."""
    draw, rows = random.Random(0), []
    for i in range(count):
        labels = [] if i % 4 == 0 else draw.sample(sorted(SIGNS), k=draw.randint(1, 3))
        words = draw.choices(tiny_training.WORDS, k=4) + [SIGNS[label] for label in labels]
        draw.shuffle(words)
        rows.append({"id": i, "text": " ".join(words), "labels": labels})
    return rows


ROWS = examples()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi")
    data = write_jsonl(folder / "train.jsonl", ROWS)
    shape = ("--bottleneck-dim", "16", "--batch-size", "8", "--epochs", "8", "--learning-rate", "0.005")
    invoke("train", "--model", model, "--data", data, "--output", folder / "run", *TASK, *shape, "--threshold", "0.4")
    return folder / "run"


def test_it_learns_and_remembers_its_threshold(run):
    metrics, record = (json.loads((run / name).read_text()) for name in ("metrics.json", "run.json"))
    assert metrics["micro_f1"] > 0.75
    assert metrics["subset_accuracy"] > metrics["majority_baseline"] + 0.15
    assert record["labels"] == ["big", "kind", "sad"]
    assert record["options"]["threshold"] == 0.4
    assert json.loads((run / "head_config.json").read_text())["problem_type"] == "multi_label_classification"
    assert "subset accuracy" in invoke("info", run).stdout


def test_predict_and_evaluate_hold_to_the_threshold(run, tmp_path):
    data = write_jsonl(tmp_path / "new.jsonl", ROWS[:40])
    answers = [json.loads(line) for line in invoke("predict", run, "--file", data).stdout.splitlines()]
    for row, answer in zip(ROWS, answers, strict=False):
        assert answer["id"] == row["id"]
        assert answer["given_labels"] == row["labels"]
        assert answer["labels"] == [name for name, p in answer["probabilities"].items() if p >= 0.4]
    scores = json.loads(invoke("evaluate", run, "--data", data, "--json").stdout)
    right = sum(set(answer["labels"]) == set(answer["given_labels"]) for answer in answers)
    assert scores["subset_accuracy"] == pytest.approx(right / 40)
    assert scores["threshold"] == 0.4
    assert set(scores["classes"]) == set(SIGNS)
    assert "classes" in invoke("evaluate", run, "--data", data).stdout
    table = list(csv.DictReader(invoke("predict", run, "--file", data, "--format", "csv").stdout.splitlines()))
    assert [json.loads(row["labels"]) for row in table] == [answer["labels"] for answer in answers]
    assert invoke("predict", run, "good word1", "--format", "text").stdout.startswith("kind")


def test_every_way_to_write_labels_gives_the_same_examples(tmp_path):
    rows = [row for row in ROWS[:20] if row["labels"]]
    names = sorted(SIGNS)
    files = {
        "lists.jsonl": (rows, None, {}),
        "texts.jsonl": ([row | {"labels": ", ".join(row["labels"])} for row in rows], None, {}),
        "bars.jsonl": ([row | {"labels": "|".join(row["labels"])} for row in rows], None, {"label_separator": "|"}),
        "reprs.jsonl": ([row | {"labels": repr(row["labels"])} for row in rows], None, {}),
        "columns.jsonl": (
            [{"text": row["text"]} | {name: int(name in row["labels"]) for name in names} for row in rows],
            "big,kind,sad",
            {},
        ),
    }
    for name, (written, columns, settings) in files.items():
        data = write_jsonl(tmp_path / name, written)
        task = MultiLabelClassification()
        found = task.read(str(data), Asked(None, columns, (None, None), settings), default_split="train")
        assert list(map(set, found.labels)) == [set(row["labels"]) for row in rows], name
        known = task.learn(found, settings, name)
        assert known == {"labels": names}
        assert task.targets(found, known, name)[0] == [float(label in rows[0]["labels"]) for label in names]
        again = task.read(str(data), Asked(None, None, ("text", found.label_column), settings), default_split="test")
        assert again == found


def test_lists_of_zeros_and_ones(tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "labels": [0, 0, 1]}, {"text": "b", "labels": [1, 1, 0]}])
    found = MultiLabelClassification().read(str(data), Asked(None, None, (None, None), {}), default_split="train")
    assert found.labels == [["2"], ["0", "1"]]


@pytest.mark.parametrize(
    ("rows", "more", "match"),
    [
        ([{"text": "a", "labels": "x|y"}, {"text": "b", "labels": "y"}], {}, "separated by a comma, .*--label-sep"),
        ([{"text": "a", "labels": ["x", "x "]}], {}, "must hold different labels"),
        ([{"text": "a", "labels": None}, {"text": "b", "labels": []}], {}, "has no value in line 1"),
        ([{"text": "a", "labels": [None]}], {}, "must hold no empty label"),
        ([{"text": "a", "labels": [0.5]}], {}, "must hold class names or whole numbers"),
        ([{"text": "a", "x": 1, "y": 2}], {"label_column": "x,y"}, "column 'y' must be 0 or 1"),
        ([{"text": "a", "x": 1, "y": 0}], {"label_column": "x,z"}, "has no column 'z'"),
        ([{"text": "a", "x": 1, "y": 0}], {"label_column": "x,text"}, "must differ"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, rows, more, match):
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    asked = Asked(None, more.get("label_column"), (None, None), {})
    with pytest.raises(DataError, match=match):
        MultiLabelClassification().read(str(data), asked, default_split="train")


def test_refusals_of_the_command(run, model, tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "labels": []}, {"text": "b", "labels": []}])
    arguments = ("train", "--model", model, "--data", data, "--output", tmp_path / "o")
    assert "no text has one" in refused(*arguments, *TASK)
    data.write_text(json.dumps({"text": "a", "labels": ["new"]}))
    assert "do not occur in training: 'new'" in refused("evaluate", run, "--data", data)
    assert "--threshold can only be used with --task multi-label" in refused(*arguments, "--threshold", "0.3")
    assert "threshold must lie strictly between 0 and 1" in refused(*arguments, *TASK, "--threshold", "1")
    line = refused(*arguments, *TASK, "--examples-per-class", "3")
    assert "--examples-per-class can only be used with --task sequence-classification" in line


def test_labels_by_another_name_and_in_a_given_order(model, tmp_path):
    data = write_jsonl(tmp_path / "train.jsonl", ROWS[:40])
    given = ("train", "--model", model, "--data", data, *TASK, "--bottleneck-dim", "4", "--epochs", "1")
    names = ("--label-map", "big=size,sad=mood,kind=mood", "--labels", "rare,mood,size")
    invoke(*given, "--output", tmp_path / "run", *names)
    assert json.loads((tmp_path / "run/run.json").read_text())["labels"] == ["rare", "mood", "size"]
    scores = json.loads(invoke("evaluate", tmp_path / "run", "--data", data, "--json").stdout)
    moods = sum(bool({"sad", "kind"} & set(row["labels"])) for row in ROWS[:40])
    assert {name: each["examples"] for name, each in scores["classes"].items()} == {
        "rare": 0, "mood": moods, "size": sum("big" in row["labels"] for row in ROWS[:40])
    }  # fmt: skip
    line = refused(*given, "--output", tmp_path / "o", "--labels", "big,sad")
    assert "has 1 label(s) that --labels does not list: 'kind'" in line


def test_columns_of_labels_by_another_name(model, tmp_path):
    with open(tmp_path / "train.csv", "w") as file:
        file.write("text,a,b,c\n" + "good,1,0,0\nbad,0,1,0\n" * 8)
    columns = ("--label-column", "a,b,c", "--label-map", "c=never,b=bad")
    shape = ("--bottleneck-dim", "4", "--epochs", "1", "--eval-fraction", "0")
    data = ("--data", tmp_path / "train.csv")
    invoke("train", "--model", model, *data, "--output", tmp_path / "run", *TASK, *columns, *shape)
    assert json.loads((tmp_path / "run/run.json").read_text())["labels"] == ["a", "bad", "never"]
