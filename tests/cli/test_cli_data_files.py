"""Every file of a stranger is read as it is meant, or refused in one line that says why, at once."""

import contextlib
import csv
import datetime
import decimal
import gzip
import json
import os
import socket
import threading
import time

import data_files
import pytest

from adapterx.cli import hub
from adapterx.cli.data import columnar, sources
from adapterx.cli.data.examples import load_examples
from adapterx.errors import DataError


def test_the_tables_are_large_enough():
    assert len(data_files.READ) + len(data_files.REFUSED) >= 150
    assert not data_files.READ.keys() & data_files.REFUSED.keys()


@pytest.mark.parametrize("name", data_files.READ)
def test_file_that_is_read(name, tmp_path):
    content, expected = data_files.READ[name]
    (tmp_path / name).write_bytes(data_files.content(content))
    found = load_examples(str(tmp_path / name))
    assert list(zip(found.texts, found.labels, strict=True)) == expected


@pytest.mark.parametrize("name", data_files.REFUSED)
def test_file_that_is_refused(name, tmp_path):
    content, words = data_files.REFUSED[name]
    (tmp_path / name).write_bytes(data_files.content(content))
    start = time.process_time()
    with pytest.raises(DataError) as refusal:
        load_examples(str(tmp_path / name))
    assert time.process_time() - start < 2
    message = str(refusal.value)
    assert words in message
    assert name in message
    assert "\n" not in message
    assert len(message) < 2100


# --- one table, every format ------------------------------------------------------------------------------------------

COLUMNS = {
    "names": ["pos", "neg", " neg", "[/neg]"],
    "booleans": [True, False, True, True],
    "integers": [3, -1, 0, 10**15],
    "whole floats": [1.0, 0.0, -2.0, 1e17],
    "fractions": [1.0, 0.5, 2.0, 3.0],
    "large fractions": [1.5e-7, 2.0, 3.0, 4.0],
    "with a gap": [1.0, None, 2.0, 3.0],
    "names with a gap": ["a", None, "b", "c"],
    "dates": [datetime.date(2020, 1, 31)] * 4,
    "times": [datetime.datetime(2020, 1, 31, 12, 30)] * 4,
    "decimals": [decimal.Decimal("1.00"), decimal.Decimal("2.00"), decimal.Decimal("3.00"), decimal.Decimal("-4.00")],
    "fine decimals": [decimal.Decimal("1.25")] * 4,
    "numbers as text": ["1", "1.0", "0.0", "-3"],
    "booleans as text": ["True", "false", "TRUE", "true"],
    "lists": [[0, 1], [1, 0], [1, 1], [0, 0]],
    "codes": ["007", "+1", "1e3", "٣"],
}


def write_in_every_format(folder, texts, labels):
    import pandas

    frame = pandas.DataFrame({"text": texts, "label": labels})
    frame.to_csv(folder / "pandas.csv", index=False)
    frame.to_csv(folder / "with_index.csv")
    frame.to_csv(folder / "all_quoted.csv", index=False, quoting=csv.QUOTE_ALL)
    frame.to_csv(folder / "packed.csv.gz", index=False)
    frame.to_csv(folder / "semicolons.csv", index=False, sep=";")
    frame.to_csv(folder / "pandas.tsv", index=False, sep="\t")
    frame.to_csv(folder / "unquoted.tsv", index=False, sep="\t", quoting=csv.QUOTE_NONE)
    frame.to_csv(folder / "utf16.tsv", index=False, sep="\t", encoding="utf-16")
    frame.to_json(folder / "pandas.jsonl", orient="records", lines=True, date_format="iso")
    frame.to_json(folder / "pandas.json", orient="records", date_format="iso")
    frame.to_parquet(folder / "pandas.parquet")
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    (folder / "python.jsonl").write_text("".join(json.dumps(row, default=str) + "\n" for row in rows), encoding="utf-8")
    (folder / "python.json").write_text(json.dumps(rows, default=str), encoding="utf-8")
    with (folder / "python.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("text", "label"))
        writer.writeheader()
        writer.writerows(rows)


def outcome(path):
    try:
        found = load_examples(str(path))
    except DataError as error:
        for reason in ("a fraction", "a time", "a list", "has no value in"):
            if reason in str(error):
                return reason
        raise
    return found.texts, found.labels


@pytest.mark.parametrize("labels", COLUMNS.values(), ids=COLUMNS)
def test_a_label_does_not_depend_on_the_format(labels, tmp_path):
    pytest.importorskip("pandas")
    texts = ["good", "so, so", "it; is", "a \u2028 b"]
    write_in_every_format(tmp_path, texts, labels)
    found = {path.name: outcome(path) for path in sorted(tmp_path.iterdir())}
    assert len(found) == 14
    first = found["pandas.csv"]
    assert {name: each for name, each in found.items() if each != first} == {}


def test_regression_targets_are_refused_from_csv_too(tmp_path):
    targets = [round(1 + i / 17, 3) for i in range(59)]
    rows = "".join(f"text {i},{target}\n" for i, target in enumerate(targets))
    (tmp_path / "scores.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"line 3: column 'label' must hold class names .*for numbers take --task regression"
    ):
        load_examples(str(tmp_path / "scores.csv"))


@pytest.mark.parametrize("texts", [['say "so"', "b"], ['"open', 'close"'], ["a\tb", "c\nd"], ['"whole"', "b"]])
def test_texts_with_quotes_tabs_and_newlines_survive_every_quoted_format(texts, tmp_path):
    with (tmp_path / "a.tsv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([("text", "label"), *((text, "p") for text in texts)])
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "p") for text in texts)])
    for name in ("a.tsv", "a.csv"):
        assert load_examples(str(tmp_path / name)).texts == texts


# --- what a name may mean ---------------------------------------------------------------------------------------------


def test_a_pattern_reads_its_files_in_order_as_one_table(tmp_path):
    (tmp_path / "b.csv").write_text("label,text\nn,bad\n")
    (tmp_path / "a.csv").write_text("text,label\ngood,p\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "so", "label": "n"}\n'))
    found = load_examples(str(tmp_path / "*.csv"))
    assert (found.texts, found.labels) == (["good", "bad"], ["p", "n"])
    assert load_examples(str(tmp_path / "*")).texts == ["good", "bad", "so"]
    (tmp_path / "d.csv").write_text("text,label,more\ngood,p,1\n")
    with pytest.raises(DataError, match=r"must have the same columns; .*a\.csv and .*d\.csv differ in 'more'"):
        load_examples(str(tmp_path / "*.csv"))
    (tmp_path / "d.csv").write_text("text,label\n,p\n")
    with pytest.raises(DataError, match=r"no value in .*d\.csv line 2"):
        load_examples(str(tmp_path / "?.csv"))
    with pytest.raises(DataError, match="no file matches"):
        load_examples(str(tmp_path / "*.tsv"))


def test_several_names_are_one_table_in_their_order(tmp_path):
    (tmp_path / "b.csv").write_text("label,text\nn,bad\n")
    (tmp_path / "a.jsonl").write_text('{"text": "good", "label": "p"}\n')
    (tmp_path / "c.tsv").write_text("text\tlabel\nso\tn\n")
    named = [str(tmp_path / name) for name in ("b.csv", "a.*", "c.tsv")]
    found = load_examples(sources.Sources(named))
    assert (found.texts, found.labels) == (["bad", "good", "so"], ["n", "p", "n"])
    (tmp_path / "c.tsv").write_text("text\tclass\nso\tn\n")
    with pytest.raises(DataError, match=r"must have the same columns; .*b\.csv and .*c\.tsv differ in 'class'"):
        load_examples(sources.Sources(named))


def test_a_name_that_is_a_pattern_too(tmp_path):
    (tmp_path / "a[1].csv").write_text(data_files.PLAIN)
    assert load_examples(str(tmp_path / "a[1].csv")).texts == ["good", "bad"]


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text(data_files.PLAIN)
    assert load_examples("~/a.csv").texts == ["good", "bad"]
    assert load_examples("~/*.csv").texts == ["good", "bad"]
    with pytest.raises(DataError, match="cannot be a path"):
        load_examples("~no_such_user/a.csv")


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "no.csv": "does not exist",
        "train.cvs": "is train.csv meant",
        "tra1n.csv": "does not exist; is .*train.csv meant?",
        "./nosuch": "does not exist",
        "a/b/c": "does not exist",
        "/nosuch": "does not exist",
        "nosuch": "no dataset of that name",
        "owner/nosuch": "no dataset of that name",
        "nosuch:part@train[:10%]": "no dataset of that name",
        "train.csv@test": "has no parts to choose from",
        "train.csv:x": "has no parts to choose from",
        "no.csv@test": "does not exist",
        "https://example.org/a.csv": "is an address",
        "hf://datasets/a/b.csv": "is an address",
        "": "does not exist",
        ".": "is a folder, and none of its files is named after a split",
        "x" * 5000: "cannot be a path",
        "[": "no file matches",
        "/dev/null": "is a device",
        "/dev/zero": "is a device",
        "caf\udce9.csv": "does not exist",
    }.items(),
)
def test_a_name_without_data_is_refused_at_once(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    (tmp_path / "train.csv").write_text(data_files.PLAIN)
    if name == ".":
        (tmp_path / "train.csv").rename(tmp_path / "some.csv")
    start = time.perf_counter()
    with pytest.raises(DataError, match=words):
        load_examples(name)
    assert time.perf_counter() - start < 2


# --- pipes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


PIPED = {
    "csv": data_files.PLAIN,
    "tsv": data_files.TSV,
    "jsonl": data_files.JSONL,
    "json": data_files.JSON,
    "packed": gzip.compress(data_files.PLAIN.encode()),
    "parquet": data_files.parquet(text=["good", "bad"], label=["p", "n"]),
}


@pytest.mark.parametrize("content", PIPED.values(), ids=PIPED)
def test_a_pipe_is_read_to_its_end(content, pipe):
    writer = threading.Thread(target=pipe.write_bytes, args=(data_files.content(content),))
    writer.start()
    found = load_examples(str(pipe))
    writer.join()
    assert list(zip(found.texts, found.labels, strict=True)) == data_files.TWO


def test_a_pipe_into_which_nobody_writes(pipe, monkeypatch):
    monkeypatch.setattr(sources, "WAIT_FOR_WRITER", 0.1)
    with pytest.raises(DataError, match="a pipe into which nothing is written"):
        load_examples(str(pipe))


@pytest.mark.parametrize(("char", "words"), [(b"\0", "begins with NUL bytes"), (b"a", "must not exceed")])
def test_a_pipe_without_end(char, words, pipe, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST_STREAM", 2**21)

    def write():
        with contextlib.suppress(BrokenPipeError), pipe.open("wb") as file:
            while True:
                file.write(char * 2**16)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(DataError, match=words):
        load_examples(str(pipe))
    writer.join()


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text(data_files.PLAIN)
    monkeypatch.setattr(sources, "LARGEST_FILE", 10)
    with pytest.raises(DataError, match="must not exceed 10 bytes, it has 24"):
        load_examples(str(tmp_path / "a.csv"))


def test_parquet_of_more_rows_than_bytes(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(data_files.parquet(text=["a"] * 10**6, label=["p"] * 10**6))
    monkeypatch.setattr(columnar, "MOST_ROWS", (10**3, 100))
    with pytest.raises(DataError, match="has 1000000 rows in"):
        load_examples(str(tmp_path / "a.parquet"))


def test_what_stands_in_place_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "WAIT_FOR_WRITER", 0.1)
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "gone.csv").symlink_to("nowhere")
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    words = {
        "zero.csv": "is a device",
        "loop.csv": "does not exist",
        "gone.csv": "does not exist",
        "folder.csv": r"is a folder, .*; give a file .* or a pattern such as '.*/folder.csv/\*.csv'",
        "pipe.csv": "a pipe into which nothing is written",
    }
    with socket.socket(socket.AF_UNIX) as listening:
        if len(str(tmp_path)) < 80:  # the system's limit is about 100
            listening.bind(str(tmp_path / "socket.csv"))
            words["socket.csv"] = "cannot be read"
        for name, reason in words.items():
            with pytest.raises(DataError, match=reason):
                load_examples(str(tmp_path / name))
