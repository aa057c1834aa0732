"""Long texts as windows: each is trained, and a text is answered for by the mean of its windows."""

import json

import pytest
import tiny_training
import torch
from command_line import invoke, refused

from adapterx.cli.models import encode, load_text_model
from adapterx.cli.tasks.task import Encoder
from adapterx.cli.tasks.windows import averaged, encode_texts, texts_of_rows
from adapterx.errors import ConfigError


def encoder(model, stride, max_length=10):
    return Encoder(load_text_model(str(model))[0], max_length, None, {"window_stride": stride})


def words(count):
    return " ".join(f"word{i % 20}" for i in range(count))


@pytest.mark.parametrize("stride", [0, 3, 7])
@pytest.mark.parametrize("count", [1, 8, 9, 30, 31])
def test_windows_cover_a_text_and_overlap(model, stride, count):
    by_hand = encoder(model, stride)
    rows = encode_texts(by_hand, [words(count), words(2)], ["a", "b"])
    whole = encode(by_hand.tokenizer, [words(count)], 999)[0]["input_ids"][1:-1]
    pieces = [row["input_ids"][1:-1] for row in rows if row["labels"] == "a"]
    step = 8 - stride
    starts = range(0, max(1, count - stride), step)
    assert pieces == [whole[start : start + 8] for start in starts]
    assert texts_of_rows(rows) == [0] * len(pieces) + [1]


def test_without_a_stride_the_rows_are_those_of_before(model):
    plain = Encoder(encoder(model, None).tokenizer, 10, None, {})
    rows = encode_texts(plain, [words(30), words(2)])
    assert rows == encode(plain.tokenizer, [words(30), words(2)], 10)
    assert texts_of_rows(rows) is None


def test_a_stride_that_would_never_end(model):
    with pytest.raises(ConfigError, match="window_stride must be below the 8 tokens"):
        encode_texts(encoder(model, 8), ["x"])


def test_the_mean_of_the_windows():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * 3
    found = averaged(logits, [2, 0, 1, 0, 0, 2], 3)
    probabilities = logits.softmax(dim=1)
    expected = torch.stack([probabilities[[1, 3, 4]].mean(0), probabilities[2], probabilities[[0, 5]].mean(0)])
    torch.testing.assert_close(found.softmax(dim=1), expected)
    assert torch.equal(found[1], logits[2])
    sure = torch.tensor([[0.0, 500.0], [0.0, 500.0]])
    assert averaged(sure, [0, 0], 1).isfinite().all()


@pytest.fixture(scope="module")
def long_run(model, tmp_path_factory):
    """A run on texts of several windows, of which only the last tells the label."""
    folder = tmp_path_factory.mktemp("long")
    rows = [(f"{words(20)} {text}", label) for text, label in tiny_training.sentences(60)]
    data = tiny_training.write_csv(folder / "long.csv", rows)
    reading = ("--max-length", "12", "--window-stride", "4", "--bottleneck-dim", "8", "--epochs", "3")
    result = invoke("train", "--model", model, "--data", data, "--output", folder / "run", *reading)
    return folder / "run", data, rows, result


def test_a_run_reads_whole_texts(long_run):
    run, _, rows, result = long_run
    count = len(rows) - json.loads((run / "metrics.json").read_text())["eval_examples"]
    assert f"{count} texts are read in " in result.stdout
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["train_examples"], metrics["eval_examples"]) == (54, 6)
    assert metrics["majority_baseline"] == 0.5


def test_answers_are_the_mean_of_the_windows_and_held_out_scores_are_of_texts(long_run):
    from adapterx.cli.runs import load_run
    from adapterx.training import stratified_split

    run, data, rows, _ = long_run
    answers = [
        json.loads(line) for line in invoke("predict", run, "--file", data, "--format", "jsonl").stdout.splitlines()
    ]
    loaded = load_run(run)
    for (text, _), answer in list(zip(rows, answers, strict=True))[:3]:
        ids = loaded.tokenizer(text)["input_ids"][1:-1]
        mark, end = loaded.tokenizer.cls_token_id, loaded.tokenizer.sep_token_id
        pieces = [[mark, *ids[start : start + 10], end] for start in range(0, len(ids) - 4, 6)]
        each = [loaded.model(torch.tensor([piece]))["logits"].softmax(dim=1) for piece in pieces]
        mean = torch.cat(each).mean(dim=0)
        assert answer["probabilities"] == pytest.approx(dict(zip(loaded.labels, mean.tolist(), strict=True)), abs=2e-5)
    _, apart = stratified_split([label for _, label in rows], 0.1, seed=0)
    held_out = tiny_training.write_csv(data.with_name("held_out.csv"), [rows[i] for i in apart])
    found = json.loads(invoke("evaluate", run, "--data", held_out, "--json").stdout)
    metrics = json.loads((run / "metrics.json").read_text())
    for name in ("accuracy", "macro_f1", "loss"):
        assert metrics[name] == pytest.approx(found[name], abs=1e-5)


def test_windows_can_be_streamed(long_run, model, tmp_path):
    run, data, _, _ = long_run
    reading = ("--max-length", "12", "--window-stride", "4", "--bottleneck-dim", "8", "--epochs", "3", "--streaming")
    result = invoke("train", "--model", model, "--data", data, "--output", tmp_path / "run", *reading, "--quiet")
    assert result.stdout == ""
    for name in ("adapter_model.safetensors", "head_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()


def test_what_a_stride_must_be(model, data, tmp_path):
    given = ("train", "--model", model, "--data", data, "--output", tmp_path / "o", "--bottleneck-dim", "4")
    assert "window_stride must be 0 or more" in refused(*given, "--window-stride", "-1")
    assert "window_stride must be below the 22 tokens" in refused(*given, "--window-stride", "22")


# -- several labels, numbers


def test_the_mean_of_the_windows_of_labels_and_numbers():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) * 3
    owners = [2, 0, 1, 0, 0, 2]
    parts = [[1, 3, 4], [2], [0, 5]]
    found = averaged(logits, owners, 3, "multi_label_classification")
    expected = torch.stack([logits.sigmoid()[part].mean(0) for part in parts])
    torch.testing.assert_close(found.sigmoid(), expected)
    assert torch.equal(found[1], logits[2])
    assert averaged(torch.tensor([[90.0], [80.0]]), [0, 0], 1, "multi_label_classification").item() > 79
    assert averaged(torch.tensor([[900.0], [-900.0]]), [0, 0], 1, "multi_label_classification").isfinite().all()
    found = averaged(logits, owners, 3, "regression")
    torch.testing.assert_close(found, torch.stack([logits[part].mean(0) for part in parts]))


@pytest.mark.parametrize("task", ["multi-label-classification", "regression"])
def test_other_tasks_read_whole_texts(model, tmp_path, task):
    from adapterx.cli.runs import load_run
    from adapterx.training import stratified_split

    labels = ("kind,all", "all") if task.startswith("multi") else (4.5, -1)
    label = dict(zip(("positive", "negative"), labels, strict=True))
    rows = [(f"{words(20)} {text}", label[each]) for text, each in tiny_training.sentences(40)]
    data = tiny_training.write_csv(tmp_path / "long.csv", rows)
    reading = ("--max-length", "12", "--window-stride", "4", "--bottleneck-dim", "8", "--epochs", "2")
    invoke("train", "--model", model, "--data", data, "--output", tmp_path / "run", "--task", task, *reading)
    lines = invoke("predict", tmp_path / "run", "--file", data, "--format", "jsonl").stdout.splitlines()
    loaded = load_run(tmp_path / "run")
    for (text, _), line in list(zip(rows, lines, strict=True))[:3]:
        ids = loaded.tokenizer(text)["input_ids"][1:-1]
        mark, end = loaded.tokenizer.cls_token_id, loaded.tokenizer.sep_token_id
        pieces = [[mark, *ids[start : start + 10], end] for start in range(0, len(ids) - 4, 6)]
        each = torch.cat([loaded.model(torch.tensor([piece]))["logits"] for piece in pieces])
        answer = json.loads(line)
        if task == "regression":
            assert answer["value"] == pytest.approx(each.mean().item(), abs=1e-4)
        else:
            mean = each.sigmoid().mean(dim=0).tolist()
            assert answer["probabilities"] == pytest.approx(dict(zip(loaded.labels, mean, strict=True)), abs=2e-5)
    _, apart = stratified_split([0] * len(rows), 0.1, seed=0)
    held_out = tiny_training.write_csv(tmp_path / "held_out.csv", [rows[i] for i in apart])
    found = json.loads(invoke("evaluate", tmp_path / "run", "--data", held_out, "--json").stdout)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["eval_examples"] == len(apart)
    for name in ("mse", "mae") if task == "regression" else ("micro_f1", "subset_accuracy", "loss"):
        assert metrics[name] == pytest.approx(found[name], abs=1e-4)
    truth = [row[1] for i, row in enumerate(rows) if i in set(apart)]
    if task != "regression":
        seen = [row[1] for i, row in enumerate(rows) if i not in set(apart)]
        often = max(sorted(set(seen)), key=seen.count)
        assert metrics["majority_baseline"] == truth.count(often) / len(truth)
