"""Tables of every format, and one line that says where a file is wrong."""

import json

import pytest
import tiny_training
from command_line import QUICK, ROWS, invoke, refused, tensors, train


def test_every_table_format_gives_the_same_adapter(model, tmp_path):
    import pyarrow
    import pyarrow.parquet

    as_dicts = [{"sentence": text, "category": label} for text, label in ROWS]
    header = ("sentence", "category")
    tiny_training.write_csv(tmp_path / "a.csv", ROWS, header)
    (tmp_path / "b.tsv").write_text("\n".join("\t".join(row) for row in [header, *ROWS]), encoding="utf-8-sig")
    (tmp_path / "c.jsonl").write_text("\r\n".join(json.dumps(row) for row in as_dicts), encoding="utf-8")
    (tmp_path / "d.json").write_text(json.dumps(as_dicts), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(as_dicts), tmp_path / "e.parquet")
    from adapterx.cli.data.examples import load_examples

    files = sorted(path for path in tmp_path.iterdir() if path.is_file())
    assert len({load_examples(str(path)).digest() for path in files}) == 1


def test_unknown_column_lists_the_columns(model, data, tmp_path):
    line = refused("train", "--model", model, "--data", data, "--output", tmp_path / "o", "--label-column", "klass")
    assert "no column 'klass'" in line
    assert "'text', 'label'" in line
    assert not (tmp_path / "o").exists()


def test_column_that_cannot_be_guessed(model, tmp_path):
    data = tiny_training.write_csv(tmp_path / "t.csv", ROWS, ("a", "b"))
    line = refused("train", "--model", model, "--data", data, "--output", tmp_path / "o")
    assert "--text-column" in line
    assert "'a', 'b'" in line


BAD_FILES = {
    "one_class.csv": (b"text,label\nx,a\ny,a\n", "at least two classes, it has only 'a'"),
    "empty.csv": (b"", "is empty"),
    "blank.csv": (b"\n \n", "is empty"),
    "header.csv": (b"text,label\n", "it has no rows"),
    "latin1.csv": ("text,label\ngood,a\ncaf\xe9,b\n".encode("latin1"), "line 3, byte 21 of the file is 0xe9"),
    "missing_label.csv": (b"text,label\nx,a\ny,\nz,b\n", "column 'label' has no value in line 3"),
    "missing_text.jsonl": (b'{"text": "x", "label": 1}\n{"label": 2}\n', "column 'text' has no value in line 2"),
    "nan.jsonl": (b'{"text": "x", "label": NaN}\n', "column 'label' has no value in line 1"),
    "twice.csv": (b"text,label,text\nx,a,y\n", "the column 'text' twice"),
    "twice.jsonl": (b'{"text": "x", "text": "y", "label": 1}\n', "the column 'text' twice"),
    "ragged.csv": (b"text,label\nx,a\ny,b,c\n", "line 3 has 3 fields, the header has 2"),
    "open_quote.csv": (b'text,label\nx,a\n"y,b\nz,c\n', "begins in line 3"),
    "broken.jsonl": (b'{"text": "x", "label": 1}\n\n{"text": \n', "line 3 is not JSON"),
    "list.jsonl": (b"[1, 2]\n", "must be an object"),
    "number_text.jsonl": (b'{"text": 5, "label": 1}\n', "must hold text, got 5"),
    "regression.jsonl": (b'{"text": "x", "label": 0.5}\n', "for numbers take --task regression"),
    "broken.parquet": (b"PAR1 and then nothing", "cannot be read as Parquet"),
    "table.xlsx": (b"PK", "is an Excel workbook; save the sheet as CSV"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(model, tmp_path, name):
    content, expected = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    line = refused("train", "--model", model, "--data", tmp_path / name, "--output", tmp_path / "o")
    assert expected in line
    assert name in line
    assert not (tmp_path / "o").exists()


def test_file_that_does_not_exist(model, tmp_path):
    line = refused("train", "--model", model, "--data", tmp_path / "no.csv", "--output", tmp_path / "o")
    assert "no.csv does not exist" in line
    assert "is a folder" in refused("train", "--model", model, "--data", tmp_path, "--output", tmp_path / "o")


def test_dataset_that_does_not_exist(model, tmp_path):
    line = refused("train", "--model", model, "--data", "no-such-dataset", "--output", tmp_path / "o")
    assert "no dataset of that name" in line


def test_label_that_training_has_not_seen(model, data, trained, tmp_path):
    other = tiny_training.write_csv(tmp_path / "other.csv", [*ROWS, ("word1", "neutral")])
    for command in ("train", "--model", model, "--data", data, "--eval-data", other, "--output", tmp_path / "o"), (
        "evaluate", trained, "--data", other):  # fmt: skip
        line = refused(*command)
        assert "'neutral'" in line
        assert "'negative', 'positive'" in line


def test_data_given_in_several_parts_trains_the_same_adapter(model, data, tmp_path):
    for name, rows in (("a.csv", ROWS[:20]), ("b.csv", ROWS[20:])):
        tiny_training.write_csv(tmp_path / name, rows)
    train(model, data, tmp_path / "whole")
    train(model, tmp_path / "a.csv", tmp_path / "parts", "--data", tmp_path / "b.csv")
    assert tensors(tmp_path / "parts") == tensors(tmp_path / "whole")
    named = ("--data", tmp_path / "a.csv", "--eval-data", tmp_path / "b.csv", "--eval-data", data)
    invoke("train", "--model", model, "--output", tmp_path / "three", *named, *QUICK)
    assert json.loads((tmp_path / "three/metrics.json").read_text())["eval_examples"] == 40 + 60
