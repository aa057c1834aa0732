"""What a user says about classes: names, order, weights; and what is told: confusion, every probability, ids."""

import csv
import io
import json

import pytest
import tiny_training
import torch
from command_line import QUICK, ROWS, invoke, refused, tensors
from torch import nn

from adapterx.cli.data.classes import class_weights, given_labels, label_map
from adapterx.cli.data.examples import Examples
from adapterx.errors import ConfigError, DataError
from adapterx.heads import SequenceClassifier


def train(model, data, output, *more):
    invoke("train", "--model", model, "--data", data, "--output", output, *QUICK, *more)
    return json.loads((output / "run.json").read_text())


# -- weights


class Base(nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return (torch.nn.functional.one_hot(input_ids, 8).float(),)


def test_weights_are_those_of_cross_entropy_and_only_in_training():
    torch.manual_seed(0)
    weights = torch.tensor([1.0, 3.0, 0.2])
    classifier = SequenceClassifier(Base(), 3, hidden_size=8, class_weights=weights)
    ids, labels = torch.randint(0, 8, (6, 4)), torch.tensor([0, 1, 2, 2, 1, -100])
    found = classifier.train()(ids, labels=labels)
    expected = nn.CrossEntropyLoss(weight=weights)(found["logits"], labels)
    torch.testing.assert_close(found["loss"], expected)
    plain = nn.CrossEntropyLoss()(found["logits"], labels)
    torch.testing.assert_close(classifier.eval()(ids, labels=labels)["loss"], plain)
    assert "class_weights" not in classifier.state_dict()


def test_balanced_weights_are_those_of_scikit_learn():
    numpy, sklearn = pytest.importorskip("numpy"), pytest.importorskip("sklearn.utils.class_weight")
    labels = ["b"] * 7 + ["a"] * 2 + ["c"] * 5
    expected = sklearn.compute_class_weight("balanced", classes=numpy.array(["a", "b", "c"]), y=labels)
    examples = Examples(["x"] * len(labels), labels, "text", "label")
    assert class_weights(["balanced"], ["a", "b", "c"], examples) == pytest.approx(expected.tolist())
    assert class_weights(["balanced"], ["a", "b", "c", "d"], examples)[3] == 1.0
    assert class_weights(["a=2,c=0.5"], ["a", "b", "c"], examples) == [2.0, 1.0, 0.5]
    assert class_weights(["x,y=2", "z=3"], ["x,y", "z"], examples) == [2.0, 3.0]


@pytest.mark.parametrize("words", ["d=1", "a", "a=x", "a=0", "a=-1", "a=nan", "a=inf", "balanced,a=2", ""])
def test_weights_that_are_none(words):
    with pytest.raises(ConfigError, match="class_weights must be"):
        class_weights([words], ["a", "b"], Examples(["x"], ["a"], "text", "label"))


def test_training_with_weights(model, tmp_path):
    rows = ROWS[::2][:10] + ROWS[1::2]  # 10 of one class, 30 of the other
    data = tiny_training.write_csv(tmp_path / "uneven.csv", rows)
    record = train(model, data, tmp_path / "o", "--eval-fraction", "0", "--class-weights", "balanced")
    assert record["options"]["class_weights"] == ["balanced"]
    minority, majority = rows[0][1], rows[-1][1]
    same = ("--class-weights", f"{minority}=2,{majority}=0.6666666666666666")
    train(model, data, tmp_path / "same", "--eval-fraction", "0", *same)
    assert tensors(tmp_path / "same") == tensors(tmp_path / "o")
    unknown = ("--output", tmp_path / "p", *QUICK, "--class-weights", "x=2")
    line = refused("train", "--model", model, "--data", data, *unknown)
    assert "class_weights must be balanced, or label=weight for some of 'negative', 'positive', got 'x=2'" in line
    assert not (tmp_path / "p").exists() or not list((tmp_path / "p").iterdir())


# -- names


def test_labels_that_are_given(model, data, tmp_path):
    record = train(model, data, tmp_path / "o", "--labels", "positive,neutral,negative")
    assert record["labels"] == ["positive", "neutral", "negative"]
    found = json.loads(invoke("evaluate", tmp_path / "o", "--data", data, "--json").stdout)
    assert found["classes"]["neutral"]["examples"] == 0
    line = refused("train", "--model", model, "--data", data, "--output", tmp_path / "p", "--labels", "positive,other")
    assert "1 label(s) that --labels does not list: 'negative'" in line
    assert given_labels(["a,b", "c"]) == ["a,b", "c"]
    assert given_labels(["1.0,0"]) == ["1", "0"]
    for wrong in (["a"], ["a,a"], ["1,1.0"], ["a,"]):
        with pytest.raises(ConfigError, match="at least two different names"):
            given_labels(wrong)


def test_labels_by_another_name(model, data, tmp_path):
    record = train(model, data, tmp_path / "o", "--label-map", "negative=bad,positive=good")
    assert record["labels"] == ["bad", "good"]
    assert record["options"]["label_map"] == {"negative": "bad", "positive": "good"}
    plain = train(model, data, tmp_path / "plain")
    assert tensors(tmp_path / "plain") == tensors(tmp_path / "o")
    found = json.loads(invoke("evaluate", tmp_path / "o", "--data", data, "--json").stdout)  # the old names, mapped
    expected = json.loads(invoke("evaluate", tmp_path / "plain", "--data", data, "--json").stdout)
    assert found["accuracy"] == expected["accuracy"]
    assert list(found["classes"]) == ["bad", "good"]
    assert plain["labels"] == ["negative", "positive"]


def test_a_map_from_a_file(tmp_path):
    (tmp_path / "map.json").write_text('{"0": "bad", "1.0": "good"}')
    (tmp_path / "map.csv").write_text('old,new\n0,bad\n1,"so, so"\n')
    assert label_map([str(tmp_path / "map.json")]) == {"0": "bad", "1": "good"}
    assert label_map([str(tmp_path / "map.csv"), "2=x=y"]) == {"0": "bad", "1": "so, so", "2": "x=y"}
    for words, said in {"a": "must be old=new", "a=": "an old and a new", "a=b,a=c": "each label one name"}.items():
        with pytest.raises(ConfigError, match=said):
            label_map([words])
    for name, content in {"no.json": None, "list.json": "[]", "one.csv": "old\na\n"}.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=name):
            label_map([str(tmp_path / name)])


# -- what is told


def test_confusion_matrix(trained, data, tmp_path):
    sklearn = pytest.importorskip("sklearn.metrics")
    matrix = tmp_path / "matrix.csv"
    shown = invoke("evaluate", trained, "--data", data, "--confusion-matrix", matrix).stdout
    found = json.loads(invoke("evaluate", trained, "--data", data, "--json").stdout)["confusion_matrix"]
    answers = invoke("predict", trained, "--file", data, "--format", "jsonl").stdout.splitlines()
    guesses = [json.loads(line)["label"] for line in answers]
    labels = ["negative", "positive"]
    expected = sklearn.confusion_matrix([label for _, label in ROWS], guesses, labels=labels).tolist()
    assert [[found[true].get(guess, 0) for guess in labels] for true in labels] == expected
    table = list(csv.reader(io.StringIO(matrix.read_text())))
    assert table == [["true", *labels], *([t, *map(str, row)] for t, row in zip(labels, expected, strict=True))]
    assert "(rows: true, columns: predicted)" in " ".join(shown.split())


def test_every_probability_in_csv(trained, data, tmp_path):
    printed = invoke("predict", trained, "--file", data, "--format", "csv", "--all-probabilities").stdout
    table = list(csv.DictReader(io.StringIO(printed)))
    lines = invoke("predict", trained, "--file", data, "--format", "jsonl").stdout.splitlines()
    for row, answer in zip(table, map(json.loads, lines), strict=True):
        for label, probability in answer["probabilities"].items():
            assert float(row[f"probabilities.{label}"]) == probability
    assert "needs --format csv" in refused("predict", trained, "x", "--format", "text", "--all-probabilities")
    (tmp_path / "a.csv").write_text("text,probabilities.positive\nx,1\n")
    line = refused("predict", trained, "--file", tmp_path / "a.csv", "--format", "csv", "--all-probabilities")
    assert "a column 'probabilities.positive' already" in line


def test_ids_come_first_and_tell_the_texts_apart(trained, tmp_path):
    (tmp_path / "a.csv").write_text("text,more,key\ngood,x,7\nbad,y,8\n")
    printed = invoke("predict", trained, "--file", tmp_path / "a.csv", "--format", "csv", "--id-column", "key").stdout
    assert [line.split(",")[:2] for line in printed.splitlines()] == [["key", "more"], ["7", "x"], ["8", "y"]]
    refusals = {
        "text,key\na,7\nb, 7\n": "texts 1 and 2 both have '7'",
        "text,key\na,7\nb,\n": "text 2 has none",
        "text,id\na,7\n": "must name a column beside the texts, one of 'id', got 'key'",
    }
    for content, words in refusals.items():
        (tmp_path / "a.csv").write_text(content)
        assert words in refused("predict", trained, "--file", tmp_path / "a.csv", "--id-column", "key")
    assert "must name a column" in refused("predict", trained, "good", "--id-column", "key")


def test_info_for_a_program(trained, model):
    assert json.loads(invoke("info", "--json").stdout)["operator library"]
    assert json.loads(invoke("info", trained, "--json").stdout)["method"] == "adapters"
    assert any("adapter" in line for line in json.loads(invoke("info", model, "--json").stdout)["report"])


def test_evaluate_reads_several_parts(trained, data, tmp_path):
    tiny_training.write_csv(tmp_path / "a.csv", ROWS[:11])
    tiny_training.write_csv(tmp_path / "b.csv", ROWS[11:])
    parts = ("--data", tmp_path / "a.csv", "--data", tmp_path / "b.csv")
    found = json.loads(invoke("evaluate", trained, *parts, "--json").stdout)
    expected = json.loads(invoke("evaluate", trained, "--data", data, "--json").stdout)
    assert found == expected | {"data": f"{tmp_path}/a.csv, {tmp_path}/b.csv"}
