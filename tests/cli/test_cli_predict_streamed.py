"""`predict --streaming`: the same answers byte for byte, in memory that does not grow with the table."""

import datetime
import decimal
import gzip
import json
import os
import subprocess
import sys

import pytest
import tiny_training
from command_line import QUICK, ROWS, invoke, refused

from adapterx.cli import scoring
from adapterx.cli.data.streamed import stream_texts
from adapterx.cli.data.texts import texts_to_label
from adapterx.errors import AdapterxError

LINES = 'A good film\r\nquotes " and, commas\n\x0bodd\u2028\n' + "bad\n" * 40 + " \n\n"


def both(*arguments):
    """Return what stands in memory and what is streamed."""
    return [invoke("predict", *arguments, *how).stdout_bytes for how in ((), ("--streaming",))]


def table(tmp_path):
    """A Parquet file with columns of all kinds, which an answer keeps."""
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    scores = [None, float("nan"), 0.1, float("inf")]
    fixed = {"price": decimal.Decimal("1.50"), "raw": b'\x00"\\'}
    rows = [
        {"label": label, "text": text, "id": f"no. {i}", "when": datetime.datetime(2020, 1, 1 + i % 9)}
        | {"score": scores[i % 4], "tags": [{"day": datetime.date(2021, 2, 3), "n": i}]}
        | fixed
        for i, (text, label) in enumerate(ROWS)
    ]
    path = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("more", [(), ("--format", "csv", "--all-probabilities"), ("--id-column", "id")])
def test_a_table_gives_the_same_bytes(trained, tmp_path, more):
    here, there = both(trained, "--file", table(tmp_path), *more)
    assert here == there
    assert here.count(b"\n") == len(ROWS) + ("csv" in more)
    assert b"2020-01-0" in here


def test_late_columns_of_json_stand_in_every_row(trained, tmp_path):
    rows = [{"text": "good", "a": 1}, {"a": {"x": [1, None]}, "text": "bad"}]
    rows.append({"text": "great", "label": 2, "b": "\ud800"})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for form in ("jsonl", "csv"):
        here, there = both(trained, "--file", tmp_path / "t.jsonl", "--format", form)
        assert here == there
        assert b"given_label" in there.splitlines()[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lines_give_the_same_bytes(trained, tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(LINES.encode(encoding))
    (tmp_path / "b.txt").write_bytes(gzip.compress(b"one\rtwo"))
    here, there = both(trained, "--file", tmp_path / "*.txt")
    assert here == there
    assert here.count(b"\n") == 45
    assert json.loads(there.splitlines()[2])["text"] == "\x0bodd\u2028"


@pytest.mark.parametrize(
    ("name", "content"),
    {
        "blank.txt": "one\n \ntwo\n\n",
        "blanks.txt": "\n\n\n\n\ntwo",
        "empty.txt": "",
        "spaces.txt": " \n\n",
        "binary.txt": "words\n" * 20 + "a\0",
        "archive.txt": "PK\x03\x04",
        "missing.csv": "text,label\na,1\n ,1\n,2\n",
        "strange.jsonl": '{"text": "a"}\n{"text": 5}\n',
        "other.csv": "words,label\na,1\n",
        "empty.csv": "text,label\n",
    }.items(),
)  # fmt: skip
def test_the_same_is_refused_in_the_same_words(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    told = []
    for gather in (
        lambda file: texts_to_label([], file, None, recorded="text"),
        lambda file: stream_texts(file, None, recorded="text", folder=tmp_path),
    ):
        with pytest.raises(AdapterxError) as refusal:
            gather(str(tmp_path / name))
        told.append(str(refusal.value))
    assert told[0] == told[1]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_late_row_brings_no_other_texts(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"sentence": "a"}\n{"sentence": "b", "text": "c"}\n')
    with pytest.raises(AdapterxError, match=r"line 2 brings a column .* name the columns with --text-column$"):
        stream_texts(str(tmp_path / "t.jsonl"), None, recorded=None, folder=tmp_path)


def test_what_cannot_be_streamed_is_refused(trained, tmp_path):
    (tmp_path / "a.txt").write_text("good\n")
    file = ("--file", tmp_path / "a.txt")
    needs = "--streaming needs --file, and --format csv or jsonl"
    assert needs in refused("predict", trained, "good", "--streaming")
    assert needs in refused("predict", trained, "-", "--streaming")
    assert needs in refused("predict", trained, *file, "--streaming", "--format", "text")
    assert "--text-column" in refused("predict", trained, *file, "--streaming", "--text-column", "x")
    ids = ("--streaming", "--id-column", "id")
    (tmp_path / "t.csv").write_text("id,text\n1,good\n1,bad\n")
    assert "texts 1 and 2 both have '1'" in refused("predict", trained, "--file", tmp_path / "t.csv", *ids)
    assert "a column beside the texts" in refused("predict", trained, *file, *ids)


@pytest.mark.parametrize("labels", ["0.5", "a;b"])
def test_other_tasks_that_give_a_text_labels_or_numbers(model, tmp_path, labels):
    task = (
        ("--task", "regression")
        if labels == "0.5"
        else ("--task", "multi-label-classification", "--label-separator", ";")
    )
    rows = [(text, labels if i % 2 else labels[0]) for i, (text, _) in enumerate(ROWS)]
    data = tiny_training.write_csv(tmp_path / "train.csv", rows)
    invoke("train", "--model", model, "--data", data, "--output", tmp_path / "run", *QUICK, *task)
    here, there = both(tmp_path / "run", "--file", data)
    assert here == there


def test_words_are_not_streamed(model, tmp_path):
    (tmp_path / "t.conll").write_text("good B\n\nbad O\n\n" * 8)
    task = ("--task", "token-classification", "--eval-fraction", "0")
    invoke("train", "--model", model, "--data", tmp_path / "t.conll", "--output", tmp_path / "run", *QUICK, *task)
    line = refused("predict", tmp_path / "run", "--file", tmp_path / "t.conll", "--streaming")
    assert "--streaming is for runs of some tasks only, this one's is token-classification" in line


def test_nothing_is_delivered_of_what_fails_half_way(trained, tmp_path, monkeypatch):
    def broken(run, wanted, generation=None):
        yield {"text": "good", "label": "p"}
        raise MemoryError

    (tmp_path / "a.txt").write_text("good\nbad\n")
    (tmp_path / "out.csv").write_text("before")
    monkeypatch.setattr(scoring, "predict", broken)
    files = ("--file", tmp_path / "a.txt", "--output", tmp_path / "out.csv")
    for how in ((), ("--streaming",)):
        result = invoke("predict", trained, *files, *how, code=2)
        assert "memory" in result.stderr
    assert (tmp_path / "out.csv").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "out.csv"]


PROGRAM = """
import resource, sys
from pathlib import Path
from adapterx.cli.data.streamed import stream_texts
from adapterx.cli import answers
from adapterx.cli.data.wanted import with_ids_first
from adapterx.cli.tasks import TASKS

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
wanted = stream_texts(sys.argv[1], None, recorded=None, folder=Path(sys.argv[2]))
wanted = with_ids_first(wanted, "id", ("text", "label"))
told = ({**columns, "text": text, "label": "x"} for columns, text in zip(wanted.columns, wanted.texts))
size = sum(len(line) for line in answers.render(told, "jsonl", None))
print(peak() - before, size)
"""


def test_memory_stays_far_below_the_size_of_the_table(tmp_path):
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for i in range(15_000):
            file.write(json.dumps({"id": i, "text": "word " * 500, "other": "more " * 500}) + "\n")
    arguments = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(path), str(tmp_path)]
    grown, size = map(int, subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split())
    assert size > os.path.getsize(path) > 75e6
    assert grown < 15e6
