"""`adapterx predict`: which texts are labelled, and what stands beside each answer."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys

import pytest
import tiny_training
from command_line import invoke, refused, train

from adapterx.cli import answers, reporting
from adapterx.cli.data.examples import load_examples
from adapterx.cli.data.texts import texts_to_label
from adapterx.cli.data.wanted import Wanted
from adapterx.errors import CheckpointError, ConfigError, DataError

REVIEWS = "title,review_body,stars\nx,good,p\nx,bad,n\nx,good,p\nx,bad,n\n"


@pytest.fixture(scope="session")
def reviews(model, tmp_path_factory):
    """A run whose texts stood in a column that a guess would not take."""
    folder = tmp_path_factory.mktemp("reviews")
    (folder / "reviews.csv").write_text(REVIEWS)
    columns = ("--text-column", "review_body", "--label-column", "stars", "--eval-fraction", "0")
    train(model, folder / "reviews.csv", folder / "run", *columns)
    return folder / "run"


def predicted(*arguments, **settings):
    return [json.loads(line) for line in invoke("predict", *arguments, **settings).stdout.splitlines()]


# --- what was recorded wins over what is guessed ----------------------------------------------------------------------


def test_the_column_of_the_training_is_read_again(reviews, tmp_path):
    (tmp_path / "new.csv").write_text("title,review_body\nbad,good\ngood,bad\n")
    assert [answer["text"] for answer in predicted(reviews, "--file", tmp_path / "new.csv")] == ["good", "bad"]
    (tmp_path / "new.csv").write_text("title,sentiment,stars,review_body\nbad,x,p,good\ngood,x,n,bad\n")
    invoke("evaluate", reviews, "--data", tmp_path / "new.csv")
    (tmp_path / "new.csv").write_text("title,text,label\ngood,bad,n\n")
    line = refused("predict", reviews, "--file", tmp_path / "new.csv")
    assert "has no column 'review_body'" in line
    assert "name the one to take with --text-column, one of 'title', 'text', 'label'" in line
    assert "has no column 'review_body'" in refused("evaluate", reviews, "--data", tmp_path / "new.csv")
    line = refused("evaluate", reviews, "--data", tmp_path / "new.csv", "--text-column", "text")
    assert "has no column 'stars'" in line
    assert "--label-column" in line
    asked = predicted(reviews, "--file", tmp_path / "new.csv", "--text-column", "text")
    assert [answer["text"] for answer in asked] == ["bad"]


def test_held_out_data_are_read_like_the_training(model, tmp_path):
    (tmp_path / "train.csv").write_text(REVIEWS)
    (tmp_path / "dev.csv").write_text("text,label\ngood,p\n")
    columns = ("--text-column", "review_body", "--label-column", "stars")
    files = ("--data", tmp_path / "train.csv", "--eval-data", tmp_path / "dev.csv")
    line = refused("train", "--model", model, *files, *columns, "--output", tmp_path / "o")
    assert "dev.csv has no column 'review_body'" in line
    (tmp_path / "train.csv").write_text("sentence,label,text\ngood,p,x\nbad,n,x\n")
    line = refused("train", "--model", model, *files, "--text-column", "sentence", "--output", tmp_path / "o")
    assert "dev.csv has no column 'sentence'" in line


def test_a_table_of_one_usual_column_needs_no_name(tmp_path):
    (tmp_path / "new.csv").write_text("text\ngood\n")
    assert texts_to_label([], str(tmp_path / "new.csv"), None, recorded="review_body").texts == ["good"]
    (tmp_path / "new.csv").write_text("a first text\na second text\n")  # no header: the first must not vanish
    with pytest.raises(DataError, match="has no column 'review_body'"):
        texts_to_label([], str(tmp_path / "new.csv"), None, recorded="review_body")


def test_labels_that_an_earlier_version_recorded_as_csv_wrote_them(tmp_path):
    from adapterx.cli.data.examples import label_ids

    (tmp_path / "a.csv").write_text("text,label\na,True\nb,False\nc,true\n")
    assert label_ids(load_examples(str(tmp_path / "a.csv")), ["False", "True"], "a.csv") == [1, 0, 1]
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1.0}\n{"text": "b", "label": 0}\n')
    assert label_ids(load_examples(str(tmp_path / "a.jsonl")), ["0.0", "1.0"], "a.jsonl") == [1, 0]


# --- a line is a row --------------------------------------------------------------------------------------------------

INSIDE = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_lines_of_files_and_of_standard_input(end, encoding, tmp_path, monkeypatch):
    lines = ["good", f"a{INSIDE}b", "  bad "]
    raw = end.join([*lines, ""]).encode(encoding)
    (tmp_path / "a.txt").write_bytes(raw)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(raw))
    assert texts_to_label([], str(tmp_path / "a.txt"), None, recorded="text").texts == lines
    assert texts_to_label([], str(tmp_path / "a.txt.gz"), None, recorded="text").texts == lines
    assert texts_to_label([], str(tmp_path / "*"), None, recorded="text").texts == lines * 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert texts_to_label(["-"], None, None, recorded="text").texts == lines


def test_answers_stand_beside_the_lines(trained):
    lines = ["good word1", f"a{INSIDE}b", "bad\tword2"]
    for form in ("text", "jsonl", "csv"):
        shown = invoke("predict", trained, "-", "--format", form, stdin="\n".join(lines)).stdout
        assert shown.count("\n") == len(lines) + (form == "csv")
    assert len(predicted(trained, "-", stdin="\n".join(lines))) == len(lines)
    assert "blank: 2; fill or delete" in refused_stdin(trained, "good\n\nbad\n")
    assert "blank: 1, 2, 4 and 2 more" in refused_stdin(trained, "\n \nbad\n\t\n\x0c\n\x1c\nbad\n\n\n")
    assert len(predicted(trained, "-", stdin="good\nbad\n\n\n")) == 2


def refused_stdin(run, text):
    return invoke("predict", run, "-", stdin=text, code=2).stderr


def test_a_text_cannot_pretend_to_be_a_second_answer(trained, tmp_path):
    texts = ["good\npositive  1.000  bad", "a\tb\x1b[31m", "c\u2028d\r"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lines = invoke("predict", trained, "--file", tmp_path / "a.jsonl", "--format", "text").stdout.splitlines()
    assert [line.split("  ", 2)[2].strip() for line in lines] == [
        "good\\npositive  1.000  bad",
        "a\\tb\\x1b[31m",
        "c\\u2028d\\r",
    ]
    as_csv = invoke("predict", trained, "--file", tmp_path / "a.jsonl", "--format", "csv").stdout_bytes.decode()
    assert [row["text"] for row in csv.DictReader(io.StringIO(as_csv, newline=""))] == texts
    assert [answer["text"] for answer in predicted(trained, "--file", tmp_path / "a.jsonl")] == texts


# --- what an answer holds ---------------------------------------------------------------------------------------------


def test_the_other_columns_are_kept(trained, tmp_path):
    (tmp_path / "a.csv").write_text('id,text,note,label\n007,good,"a, ""b""",x\n8,bad,,y\n')
    first, second = predicted(trained, "--file", tmp_path / "a.csv")
    assert list(first) == ["id", "note", "given_label", "text", "label", "probability", "probabilities"]
    assert [first[name] for name in ("id", "note", "given_label", "label")] == ["007", 'a, "b"', "x", "positive"]
    assert second["note"] == ""
    shown = invoke("predict", trained, "--file", tmp_path / "a.csv", "--format", "csv").stdout
    assert shown.splitlines()[0] == "id,note,given_label,text,label,probability"
    assert shown.splitlines()[1].startswith('007,"a, ""b""",x,good,positive,0.')


def test_columns_of_every_type_are_kept_as_valid_json(trained, tmp_path):
    row = '{"review": "good", "id": 7, "score": NaN, "far": 1e400, "tags": ["a", {"b": null}], "half": "\\ud800"}\n'
    (tmp_path / "a.jsonl").write_text(row + '{"review": "bad", "id": true, "deep": [NaN]}\n')

    def strict(name):
        raise AssertionError(name)

    shown = invoke("predict", trained, "--file", tmp_path / "a.jsonl", "--text-column", "review").stdout.splitlines()
    first, second = (json.loads(line, parse_constant=strict) for line in shown)
    kept = {"review": "good", "id": 7, "score": None, "far": "inf", "tags": ["a", {"b": None}], "half": "\ud800"}
    assert first | kept == first
    assert (second["id"], second["tags"], second["deep"], second["text"]) == (True, None, "[nan]", "bad")
    asked = ("--text-column", "review", "--format", "csv")
    rows = list(csv.DictReader(invoke("predict", trained, "--file", tmp_path / "a.jsonl", *asked).stdout.splitlines()))
    assert [row["id"] for row in rows] == ["7", "true"]
    assert rows[0]["tags"] == '["a", {"b": null}]'
    assert rows[1]["score"] == ""


def test_dates_and_numbers_of_parquet_are_kept(trained, tmp_path):
    import datetime
    import decimal

    import data_files

    day = datetime.date(2020, 1, 31)
    content = data_files.parquet(text=["good"], day=[day], price=[decimal.Decimal("1.50")], raw=[b"x"])
    (tmp_path / "a.parquet").write_bytes(content)
    (answer,) = predicted(trained, "--file", tmp_path / "a.parquet")
    assert (answer["day"], answer["price"], answer["raw"]) == ("2020-01-31", "1.50", "b'x'")


def test_names_that_answers_need(tmp_path):
    (tmp_path / "a.csv").write_text("text,body,label,given_label,probability,probabilities\n1,2,3,4,5,6\n")
    of_body = texts_to_label([], str(tmp_path / "a.csv"), "body", recorded="text")
    assert of_body.texts == ["2"]
    assert of_body.columns == [
        {
            "given_text": "1",
            "body": "2",
            "given_given_label": "3",
            "given_label": "4",
            "given_probability": "5",
            "given_probabilities": "6",
        }
    ]


@pytest.mark.parametrize(
    ("output", "terminal", "form"),
    [
        (None, True, "text"),
        (None, False, "jsonl"),
        ("a.csv", True, "csv"),
        ("a.CSV", False, "csv"),
        ("a.txt", False, "text"),
        ("a.jsonl", True, "jsonl"),
        ("a", True, "jsonl"),
    ],
)
def test_the_usual_format(output, terminal, form, monkeypatch):
    from pathlib import Path

    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert answers.usual_form(output and Path(output)) == form
    monkeypatch.setattr(sys, "stdout", None)
    assert answers.usual_form(None) == "jsonl"


# --- texts that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [["good", ""], ["good", "  \n"]])
def test_an_empty_text_is_refused(texts, trained):
    assert "text 2 must not be empty" in refused("predict", trained, *texts)


def test_the_name_of_a_file_in_place_of_a_text(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("text\ngood\n")
    assert "a.csv must be named by --file" in refused("predict", trained, "a.csv")
    assert [answer["text"] for answer in predicted(trained, "b.csv")] == ["b.csv"]


def test_data_are_refused_before_the_model_is_loaded(trained, tmp_path, monkeypatch):
    from adapterx.cli import app, scoring

    for module in (app, scoring):
        monkeypatch.setattr(module, "load_run", None)
    assert "does not exist" in refused("evaluate", trained, "--data", tmp_path / "no.csv")
    assert "does not exist" in refused("predict", trained, "--file", tmp_path / "no.csv")
    (tmp_path / "a.csv").write_text("text,label\ngood,neutral\n")
    assert "'neutral'" in refused("evaluate", trained, "--data", tmp_path / "a.csv")


def test_an_argument_that_is_not_utf8(trained):
    assert "text 1 must be text that UTF-8 can hold, got '\\udcff'" in refused("predict", trained, "a\udcff")


def test_options_that_do_not_fit_together(trained, tmp_path):
    (tmp_path / "a.txt").write_text("good\n")
    for source in (["good"], ["-"], ["--file", tmp_path / "a.txt"]):
        assert "--text-column must name a column" in refused("predict", trained, *source, "--text-column", "text")
    with pytest.raises(DataError, match="'' does not exist"):
        texts_to_label([], "", None, recorded="text")
    with pytest.raises(ConfigError, match="exactly one"):
        texts_to_label(["a"], "", None, recorded="text")


def test_a_text_of_which_the_tokenizer_makes_nothing(tmp_path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from adapterx.cli.models import encode

    words = Tokenizer(models.WordLevel({"<pad>": 0, "good": 1, "?": 2}, unk_token="?"))
    words.normalizer, words.pre_tokenizer = normalizers.Replace("\u200b", ""), pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    assert [row["input_ids"] for row in encode(tokenizer, ["good"], 8)] == [[1]]
    with pytest.raises(DataError, match=r"must have tokens, the tokenizer finds none in .*u200b"):
        encode(tokenizer, ["good", "\u200b"], 8)


def test_closed_standard_input(trained, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        texts_to_label(["-"], None, None, recorded="text")
    assert texts_to_label(["good"], None, None, recorded="text") == Wanted(["good"], [{}])


def test_standard_input_without_end(monkeypatch):
    with open("/dev/zero") as zeros:
        monkeypatch.setattr(sys, "stdin", zeros)
        with pytest.raises(DataError, match="begins with NUL bytes"):
            texts_to_label(["-"], None, None, recorded="text")


@pytest.mark.skipif(os.name == "nt", reason="a shell's redirections")
def test_the_command_in_a_shell(trained, tmp_path):
    """What only a process of its own meets: a descriptor that is closed, and `<(...)`."""
    tiny_training.write_csv(tmp_path / "a.csv", [("good", "1"), ("b\xe4d\x1b[1m", "2")], ("text", "id"))
    script = '"$PYTHON" -m adapterx.cli predict "$RUN" --file <(cat a.csv) <&-'
    names = {"PYTHON": sys.executable, "RUN": str(trained), "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | names, capture_output=True, text=True, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [("1", "good"), ("2", "b\xe4d\x1b[1m")]


def test_closed_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ConfigError, match="standard output is closed"):
        reporting.put("x")


def test_logits_that_are_not_finite(trained):
    from pathlib import Path

    from adapterx.cli.runs import load_run
    from adapterx.cli.scoring import predict

    run = load_run(Path(trained))
    run.model.head.linear.bias.data[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"logits of a run must be finite, those of .* are not for 'good'"):
        predict(run, Wanted(["good"], [{}]))
