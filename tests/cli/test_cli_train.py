"""What `adapterx train` makes of good options and data."""

import json
import socket

import pytest
import tiny_training
from command_line import ROWS, invoke, refused, tensors, train
from safetensors.torch import load_file


def test_run_folder_is_complete_and_the_model_has_learnt(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "head_config.json",
        "head_model.safetensors",
        "learning_curve.png",
        "metrics.json",
        "run.json",
    ]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["accuracy"] > metrics["majority_baseline"] + 0.3
    assert metrics["macro_f1"] > 0.8
    assert metrics["eval_examples"] == 20
    assert metrics["train_examples"] == 180
    assert metrics["adapter_file_bytes"] == (trained / "adapter_model.safetensors").stat().st_size
    assert 0 < metrics["trainable_fraction"] < 0.5
    assert [entry["epoch"] for entry in metrics["history"] if "eval_accuracy" in entry] == list(range(1, 9))
    record = json.loads((trained / "run.json").read_text())
    assert record["labels"] == ["negative", "positive"]
    assert (record["text_column"], record["label_column"], record["seed"]) == ("text", "label", 3)
    assert (trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_base_model_on_disk_is_not_touched_and_adapter_loads_bare(trained, model):
    from transformers import AutoModel

    import adapterx

    base = AutoModel.from_pretrained(model)
    adapterx.load_adapter(base, trained)
    saved = load_file(trained / "adapter_model.safetensors")
    assert saved
    assert all("adapterx" in name for name in saved)


@pytest.mark.parametrize("method", ["head", "full"])
def test_other_methods(model, data, tmp_path, method):
    arguments = ("--model", model, "--data", data, "--method", method, "--epochs", "2", "--output", tmp_path / "run")
    invoke("train", *arguments, "--pooling", "last", "--keep-best")
    names = set(tensors(tmp_path / "run"))
    assert names == {"head_model.safetensors"} | ({"model.safetensors"} if method == "full" else set())
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["trainable_fraction"] == 1.0) == (method == "full")
    scores = json.loads(invoke("evaluate", tmp_path / "run", "--data", data, "--json").stdout)
    assert scores["examples"] == 60
    invoke("info", tmp_path / "run")


def test_number_labels_are_ordered_by_value(model, tmp_path):
    rows = [(text, 2 if label == "positive" else 10) for text, label in ROWS]
    data = tiny_training.write_csv(tmp_path / "t.csv", rows)
    train(model, data, tmp_path / "run", "--eval-fraction", "0", "--examples-per-class", "8")
    assert json.loads((tmp_path / "run/run.json").read_text())["labels"] == ["2", "10"]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["train_examples"], metrics["eval_examples"], metrics["accuracy"]) == (16, 0, None)


def test_same_seed_gives_the_same_bytes(model, data, tmp_path):
    for name, seed in ("a", 1), ("b", 1), ("c", 2):
        train(model, data, tmp_path / name, "--seed", seed, "--dropout", "0.1")
    assert tensors(tmp_path / "a") == tensors(tmp_path / "b")
    assert tensors(tmp_path / "a") != tensors(tmp_path / "c")


def test_adapter_options_reach_the_adapter(model, data, tmp_path):
    more = ("--positions", "feed_forward", "--layers", "1", "--placement", "parallel", "--activation", "relu")
    more += ("--scaling", "learned", "--no-up-bias", "--init", "xavier", "--init-up", "near_zero", "--dropout", "0.2")
    train(model, data, tmp_path / "run", *more)
    config = json.loads((tmp_path / "run/run.json").read_text())["options"]["adapter"]
    expected = {"positions": ["feed_forward"], "layers": [1], "placement": "parallel", "activation": "relu",
                "scaling": "learned", "up_bias": False, "init": "xavier", "init_up": "near_zero", "dropout": 0.2,
                "bottleneck_dim": 4}  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert all("layer.1" in name for name in load_file(tmp_path / "run/adapter_model.safetensors"))


def test_local_folder_never_meets_the_network(model, data, tmp_path, monkeypatch):
    import huggingface_hub.constants

    def no_network(*args, **kwargs):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    train(model, data, tmp_path / "run")
    invoke("predict", tmp_path / "run", "good")


@pytest.mark.parametrize("option", ["fsdp", "deepspeed"])
def test_a_model_that_is_to_be_shared_out_is_refused(model, data, tmp_path, monkeypatch, option):
    """`accelerate launch` asks for it by the environment; the first process would save its share alone."""
    monkeypatch.setenv(f"ACCELERATE_USE_{option.upper()}", "true")
    said = refused("train", "--model", model, "--data", data, "--output", tmp_path / "run")
    assert f"train: every process must hold the whole model, got --use_{option}" in said
    assert not (tmp_path / "run").exists()
