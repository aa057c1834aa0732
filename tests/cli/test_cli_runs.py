"""A finished run: `adapterx evaluate`, `predict`, `export` and `info`."""

import json

import pytest
import tiny_training
import torch
from command_line import invoke, refused

from adapterx.checkpoint.document import hashed


def test_evaluate_agrees_with_a_count_by_hand(trained, tmp_path):
    rows = tiny_training.sentences(40, seed=9)
    data = tiny_training.write_csv(tmp_path / "test.csv", rows)
    result = invoke("evaluate", trained, "--data", data, "--json", "--output", tmp_path / "deep" / "scores.json")
    scores = json.loads(result.stdout)
    assert json.loads((tmp_path / "deep" / "scores.json").read_text()) == scores
    lines = invoke("predict", trained, "--file", data, "--format", "jsonl").stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["text"] for answer in answers] == [text for text, _ in rows]
    hits = sum(answer["label"] == label for answer, (_, label) in zip(answers, rows, strict=True))
    assert scores["accuracy"] == hits / 40
    assert scores["majority_baseline"] == 0.5
    assert scores["classes"]["positive"]["examples"] == 20
    assert "accuracy" in invoke("evaluate", trained, "--data", data).stdout


def test_predict_from_arguments_stdin_and_files(trained, tmp_path):
    texts = ["word1 good word2 great", "awful word3 bad poor"]
    as_text = invoke("predict", trained, *texts, "--format", "text").stdout
    assert [line.split()[0] for line in as_text.splitlines()] == ["positive", "negative"]
    assert invoke("predict", trained, "-", "--format", "text", stdin="\n".join(texts) + "\n").stdout == as_text
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    assert invoke("predict", trained, "--file", tmp_path / "texts.txt", "--format", "text").stdout == as_text
    invoke("predict", trained, *texts, "--format", "csv", "--output", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "text,label,probability"
    answer = json.loads(invoke("predict", trained, texts[0], "--format", "jsonl").stdout)
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    assert answer["probability"] == max(answer["probabilities"].values())


def test_moved_base_model_can_be_named(trained, model, tmp_path):
    record = json.loads((trained / "run.json").read_text())
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "run.json").write_text(json.dumps(hashed(record | {"base_model": str(tmp_path / "gone")})))
    assert "gone" in refused("predict", tmp_path, "good")
    assert invoke("predict", tmp_path, "good", "--model", model, "--format", "text").stdout.startswith("positive")


def test_export_writes_a_model_with_its_tokenizer_and_labels(trained, tmp_path):
    invoke("export", trained, "--format", "torchscript", "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out/labels.json").read_text()) == ["negative", "positive"]
    assert (tmp_path / "out/tokenizer.json").exists()
    from transformers import AutoTokenizer

    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(["word1 good"], return_tensors="pt")
    scripted = torch.jit.load(tmp_path / "out/model.pt")
    names = ("input_ids", "attention_mask", "token_type_ids")
    logits = scripted(*(batch.get(name, torch.zeros_like(batch["input_ids"])) for name in names))
    answer = json.loads(invoke("predict", trained, "word1 good", "--format", "jsonl").stdout)
    assert logits.softmax(-1)[0, 1].item() == pytest.approx(answer["probabilities"]["positive"], abs=1e-5)


def test_info_of_everything(trained, model):
    assert "torch" in invoke("info").stdout
    shown = invoke("info", trained).stdout
    assert "adapters" in shown
    assert "negative, positive" in shown
    shown = invoke("info", model).stdout
    assert "layer.0.attention.output.dense" in shown.replace("\n", "")
    assert "trainable" in shown


def test_run_folders_that_cannot_be_read(trained, data, tmp_path):
    assert "does not exist" in refused("predict", tmp_path / "no", "x")
    assert "is no run folder" in refused("evaluate", tmp_path, "--data", data)
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights[:-5])
    assert "adapter_model.safetensors" in refused("predict", tmp_path, "x")
    (tmp_path / "run.json").write_text("{}")
    assert "run.json is damaged" in refused("predict", tmp_path, "x")


def test_predict_needs_exactly_one_source(trained, data, tmp_path):
    assert "exactly one" in refused("predict", trained)
    assert "exactly one" in refused("predict", trained, "x", "--file", data)
    assert "format must be one of" in refused("predict", trained, "x", "--format", "xml")
    assert "standard input is empty" in invoke("predict", trained, "-", stdin="\n", code=2).stderr
    assert "not UTF-8: line 1, byte 1 of" in invoke("predict", trained, "-", stdin=b"x\xff", code=2).stderr
    assert "format must be one of" in refused("export", trained, "--format", "pickle")


def test_a_training_that_is_refused_leaves_no_folder(model, data, tmp_path):
    refused("train", "--model", model, "--data", data, "--output", tmp_path / "new", "--max-length", "100000")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    refused("train", "--model", model, "--data", data, "--output", tmp_path / "old", "--max-length", "100000")
    assert (tmp_path / "old").is_dir()
