"""A table of command lines: no traceback, every refusal in one line and at once."""

import json
import time
from pathlib import Path

import pytest
import tiny_training
from command_line import invoke, train
from command_lines import LINES, prepare

MARKUP = [(text, {"positive": "[neg]", "negative": "[/neg]"}[label]) for text, label in tiny_training.sentences(24)]


@pytest.fixture(scope="module")
def places(model, trained, tmp_path_factory):
    place = tmp_path_factory.mktemp("lines")
    data = tiny_training.write_csv(place / "data.csv", tiny_training.sentences(24))
    (place / "[").mkdir()
    markup, markup_data = place / "[/b]run", place / "[/b].csv"
    tiny_training.write_csv(markup_data, MARKUP, header=("[/text]", "label"))
    train(model, markup_data, markup, "--epochs", "1", "--text-column", "[/text]", "--seed", "3")
    found = prepare(place, model, trained, data)
    return found | {"markup": str(markup), "markup_data": str(markup_data)}


def test_the_table_is_long_enough():
    assert len(LINES) >= 180
    assert len({line.typed for line in LINES}) == len(LINES)


@pytest.mark.parametrize("line", LINES, ids=lambda line: ascii(line.typed[:60]))
def test_line(places, line, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    result = invoke(*line.words(places), code=line.code)
    seconds = time.process_time() - start
    if line.code:
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        assert lines[0].isprintable()
        assert len(lines[0]) < 3000
        assert seconds < 2
        assert line.said in lines[0]
    else:
        assert line.said in result.stdout
        assert not result.stderr


def test_the_files_that_lines_named_are_as_they_should_be(places):
    """After all lines of the table: what was refused is untouched, what was written is complete."""
    assert Path(places["file"]).read_bytes() == b"file"
    assert sorted(path.name for path in Path(places["folder"]).iterdir()) == ["new", "old", "\udcff.json"]
    assert Path(places["link"]).is_symlink()
    for written in (Path(places["link"]).parent / "target", Path(places["folder"]) / "new/deep/x.json"):
        assert json.loads(written.read_bytes())["examples"] == 24
