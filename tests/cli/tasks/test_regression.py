"""`--task regression`: numbers of any size are learnt, and everything that is read later is in their units."""

import json
import random

import pytest
import tiny_training
import torch
from command_line import invoke, refused, tensors
from tiny_training import write_jsonl

from adapterx.cli.tasks.regression import Regression
from adapterx.cli.tasks.task import Asked
from adapterx.errors import DataError

TASK = ("--task", "regression")
SHAPE = ("--bottleneck-dim", "16", "--batch-size", "8", "--epochs", "8", "--learning-rate", "0.005")


def examples(count=160):
    """Texts in which every `good` is worth 1000, and every `bad` costs as much, beside 50 000."""
    draw, rows = random.Random(0), []
    for _ in range(count):
        good, bad = draw.randint(0, 3), draw.randint(0, 3)
        words = draw.choices(tiny_training.WORDS, k=3) + ["good"] * good + ["bad"] * bad
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "score": 50_000.0 + 1000 * (good - bad), "words": len(words)})
    return rows


ROWS = examples()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression")
    data = write_jsonl(folder / "train.jsonl", ROWS)
    more = (*TASK, *SHAPE, "--keep-best", "--label-column", "score,words")
    invoke("train", "--model", model, "--data", data, "--output", folder / "run", *more)
    return folder / "run"


def test_it_learns_numbers_in_their_own_units(run, tmp_path):
    metrics, record = (json.loads((run / name).read_text()) for name in ("metrics.json", "run.json"))
    assert metrics["pearson"] > 0.8
    assert metrics["spearman"] > 0.8
    assert metrics["mse"] < metrics["mean_baseline_mse"] / 2
    assert record["labels"] == ["score", "words"]
    assert record["target_means"][0] == pytest.approx(sum(row["score"] for row in ROWS) / len(ROWS))
    best = min(entry["eval_mse"] for entry in metrics["history"] if "eval_mse" in entry)
    assert metrics["mse"] == pytest.approx(best, rel=1e-3)  # less is better
    data = write_jsonl(tmp_path / "new.jsonl", ROWS[:40])
    scores = json.loads(invoke("evaluate", run, "--data", data, "--json").stdout)
    answers = [json.loads(line)["values"] for line in invoke("predict", run, "--file", data).stdout.splitlines()]
    errors = [answer["score"] - row["score"] for answer, row in zip(answers, ROWS, strict=False)]
    assert scores["numbers"]["score"]["mae"] == pytest.approx(sum(map(abs, errors)) / 40, rel=1e-3)
    assert 40_000 < answers[0]["score"] < 60_000
    assert "numbers" in invoke("evaluate", run, "--data", data).stdout


def test_an_exported_model_answers_in_these_units_too(run, tmp_path):
    invoke("export", run, "--format", "torchscript", "--output", tmp_path / "out")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer("good word1", return_tensors="pt")
    program = torch.jit.load(tmp_path / "out/model.pt")
    logits = program(batch["input_ids"], batch["attention_mask"], torch.zeros_like(batch["input_ids"]))[0]
    answer = json.loads(invoke("predict", run, "good word1").stdout)["values"]
    assert logits.flatten().tolist() == pytest.approx(list(answer.values()), rel=1e-4)


def test_a_run_that_could_not_be_written_is_resumed_in_the_same_units(model, tmp_path, monkeypatch):
    """The last layer takes the units on when it is saved, and not once more."""

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    data = write_jsonl(tmp_path / "train.jsonl", ROWS[:40])
    for name in ("straight", "o"):
        arguments = ("train", "--model", model, "--data", data, "--output", tmp_path / name, *TASK, *SHAPE[:2])
        with monkeypatch.context() as patch:
            if name == "o":
                patch.setattr("adapterx.cli.train.draw_learning_curve", full)
            invoke(*arguments, "--epochs", "1", code=2 if name == "o" else 0)
    invoke(*arguments, "--epochs", "1", "--resume")
    assert tensors(tmp_path / "o") == tensors(tmp_path / "straight")


def test_one_number_is_called_value(model, tmp_path):
    data = write_jsonl(tmp_path / "train.jsonl", ROWS[:40])
    invoke("train", "--model", model, "--data", data, "--output", tmp_path / "o", *TASK, *SHAPE[:2], "--epochs", "1")
    answer = json.loads(invoke("predict", tmp_path / "o", "good").stdout)
    assert set(answer) == {"text", "value"}
    assert invoke("predict", tmp_path / "o", "good", "--format", "text").stdout.endswith("  good\n")


def read(tmp_path, rows, column=None):
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    return Regression().read(str(data), Asked(None, column, (None, None), {}), default_split="train")


def test_numbers_are_read_from_every_kind_of_cell(tmp_path):
    rows = [{"text": "a", "score": 1}, {"text": "b", "score": "-2.5e1"}, {"text": "c", "score": [0.5]}]
    assert read(tmp_path, rows).labels == [[1.0], [-25.0], [0.5]]
    lists = [{"text": "a", "label": [1, 2]}, {"text": "b", "label": "[3, 4.5]"}]
    found = read(tmp_path, lists)
    assert found.labels == [[1.0, 2.0], [3.0, 4.5]]
    known = Regression().learn(found, {}, "a")
    assert known["labels"] == ["label_0", "label_1"]
    targets = torch.tensor(Regression().targets(found, known, "a"))
    torch.testing.assert_close(targets, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"text": "a", "score": "many"}], "must hold a finite number, got 'many'"),
        ([{"text": "a", "score": True}], "must hold a finite number, got True"),
        ([{"text": "a", "score": "inf"}], "must hold a finite number"),
        ([{"text": "a", "score": None}, {"text": "b", "score": 1}], "has no value in line 1"),
        (
            [{"text": "a", "score": [1, 2]}, {"text": "b", "score": [1]}],
            "as many numbers as the first, 2, line 2 has 1",
        ),
    ],
)
def test_what_is_refused(tmp_path, rows, match):
    with pytest.raises(DataError, match=match):
        read(tmp_path, rows)


def test_refusals_of_the_command(run, model, tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "score": 2}, {"text": "b", "score": 2}])
    arguments = ("train", "--model", model, "--data", data, "--output", tmp_path / "o")
    assert "the numbers of score must differ" in refused(*arguments, *TASK)
    assert "has no column 'words'" in refused("evaluate", run, "--data", data)
    data.write_text('{"text": "a", "label": 0.5}\n{"text": "b", "label": 1}\n')
    assert "for numbers take --task regression" in refused(*arguments)
