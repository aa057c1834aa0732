"""Training on data that stay on the disk: the same examples, digests, weights and figures as in memory."""

import json
import os
import resource
import subprocess
import sys

import pytest
import tiny_training
from command_line import QUICK, ROWS, invoke, refused, tensors

from adapterx.cli.data.examples import Examples, load_examples
from adapterx.cli.data.spool import Chosen, Spool, chosen
from adapterx.cli.data.streamed import stream_examples
from adapterx.errors import DataError


def train(model, data, output, *more, **settings):
    return invoke("train", "--model", model, "--data", data, "--output", output, *QUICK, *more, **settings)


# -- lists on the disk


def test_a_spool_is_a_list(tmp_path):
    values = ["a", "ä\n", {"labels": [1.5, 2], "x": None}, [], 1e-300]
    spool = Spool(tmp_path)
    for i, value in enumerate(values):
        spool.append(value)
        assert spool[i] == value  # written and read in turns
    assert list(spool) == values
    assert spool[-1] == values[-1]
    for position in (5, -6):
        with pytest.raises(IndexError):
            spool[position]
    assert list(chosen(spool, [3, 0, 3])) == [values[i] for i in (3, 0, 3)]
    assert isinstance(chosen(spool, [0]), Chosen)
    assert chosen(values, [1]) == ["ä\n"]
    assert list(tmp_path.iterdir()) == []


def test_a_digest_does_not_depend_on_where_the_texts_are(tmp_path):
    import hashlib

    texts, labels = ["a", 'quotes "', "\u2028ä"], ["p", "n", "p"]
    spool = Spool(tmp_path)
    for text in texts:
        spool.append(text)
    expected = hashlib.sha256(json.dumps([texts, labels]).encode()).hexdigest()[:16]
    assert {Examples(each, labels, "t", "l").digest() for each in (texts, spool)} == {expected}
    assert Examples([], [], "t", "l").digest() == hashlib.sha256(b"[[], []]").hexdigest()[:16]


# -- examples


def test_streamed_examples_are_those_in_memory(data, tmp_path):
    here, there = load_examples(str(data)), stream_examples(str(data), folder=tmp_path)
    assert list(there.texts) == here.texts
    assert there.labels == here.labels
    assert there.digest() == here.digest()
    assert there.take([5, 3]).digest() == here.take([5, 3]).digest()


@pytest.mark.parametrize(
    ("content", "words"),
    {
        '{"sentence": "a", "label": 1}\n{"text": "b", "sentence": "c", "label": 1}\n': "line 2 brings a column",
        '{"text": "a", "label": 1}\n{"label": 2}\n{"text": "b"}\n': "column 'text' has no value in line 2",
        '{"text": "a", "label": 1}\n{"text": 5, "label": 2}\n': "line 2: column 'text' must hold text, got 5",
        '{"text": "a", "label": 0.5}\n': "regression",
        '{"text": "a"}\n': "no column that looks like a label",
        "": "is empty",
    }.items(),
)
def test_what_is_refused(content, words, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=words):
        stream_examples(str(tmp_path / "a.jsonl"), folder=tmp_path)


# -- training


def test_streaming_changes_nothing_but_memory(model, data, tmp_path):
    train(model, data, tmp_path / "here")
    train(model, data, tmp_path / "there", "--streaming")
    assert tensors(tmp_path / "here") == tensors(tmp_path / "there")
    here, there = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("here", "there"))
    for told in (here, there):
        del told["train_seconds"], told["document_sha256"]
    assert here == there
    line = refused("train", "--model", model, "--data", data, "--output", tmp_path / "o", "--streaming", "--task",
                   "regression")  # fmt: skip
    assert "--streaming can only be used with --task sequence-classification" in line


def test_an_evaluation_that_streams_gives_the_same_figures(trained, data):
    found = invoke("evaluate", trained, "--data", data, "--json", "--streaming").stdout
    assert found == invoke("evaluate", trained, "--data", data, "--json").stdout


def test_a_run_goes_on_streaming_where_it_stopped_in_memory(model, data, tmp_path, monkeypatch):
    from adapterx.cli.progress import ProgressLine

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 9:
            raise KeyboardInterrupt

    saving = ("--save-steps", "4", "--examples-per-class", "20")
    train(model, data, tmp_path / "straight", *saving)
    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "on_step_end", stop)
        train(model, data, tmp_path / "cut", *saving, code=130)
    assert "resuming from checkpoint-8" in invoke("train", "--resume", tmp_path / "cut", "--streaming").stdout
    assert tensors(tmp_path / "straight") == tensors(tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "on_step_end", stop)
        train(model, data, tmp_path / "other", *saving, "--streaming", code=130)
    tiny_training.write_csv(data, ROWS[::-1])
    assert "content of the data" in refused("train", "--resume", tmp_path / "other")


PROGRAM = """
import resource, sys
from pathlib import Path
from adapterx.cli.data.streamed import stream_examples

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
examples = stream_examples(sys.argv[1], folder=Path(sys.argv[2]))
assert len(examples.take(range(0, len(examples.texts), 2)).digest()) == 16
print(peak() - before)
"""


def test_the_memory_of_a_process_stays_far_below_the_size_of_the_file(tmp_path):
    path, rows = tmp_path / "large.jsonl", 15_000
    with path.open("w") as file:
        for i in range(rows):
            file.write(json.dumps({"text": f"{i} " + "word " * 1000, "label": i % 3}) + "\n")
    arguments = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(path), str(tmp_path)]
    grown = int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    assert os.path.getsize(path) > 75e6
    assert grown < 15e6, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
