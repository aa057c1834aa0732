import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("typer")

import tiny_training
from safetensors.torch import load_file
from typer.testing import CliRunner

from adapterx.cli import recipes
from adapterx.cli.app import app

ROWS = tiny_training.sentences(60)
QUICK = ("--epochs", "2", "--bottleneck-dim", "4", "--batch-size", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_training.save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    return tiny_training.write_csv(tmp_path / "train.csv", ROWS)


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A complete run that tests read and never change."""
    folder = tmp_path_factory.mktemp("trained")
    data = tiny_training.write_csv(folder / "train.csv", tiny_training.sentences(200))
    more = (
        "--epochs",
        "8",
        "--seed",
        "3",
        "--learning-rate",
        "0.005",
        "--batch-size",
        "4",
        "--init",
        "xavier",
        "--bottleneck-dim",
        "32",
    )
    invoke("train", "--model", model, "--data", data, "--output", folder / "run", *more)
    return folder / "run"


def invoke(*arguments, code=0, stdin=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exit_code != code:
        raise AssertionError(f"exit code {result.exit_code}: {result.output}") from result.exception
    return result


def refused(*arguments, code=2):
    """Run what must fail; return the one line that says why."""
    result = invoke(*arguments, code=code)
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def train(model, data, output, *more, **settings):
    return invoke("train", "--model", model, "--data", data, "--output", output, *QUICK, *more, **settings)


def tensors(run):
    return {path.name: path.read_bytes() for path in sorted(run.glob("*.safetensors"))}


# -- the way it should go


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
    as_text = invoke("predict", trained, *texts).stdout
    assert [line.split()[0] for line in as_text.splitlines()] == ["positive", "negative"]
    assert invoke("predict", trained, "-", stdin="\n".join(texts) + "\n").stdout == as_text
    (tmp_path / "texts.txt").write_text("\n\n".join(texts), encoding="utf-8")
    assert invoke("predict", trained, "--file", tmp_path / "texts.txt").stdout == as_text
    invoke("predict", trained, *texts, "--format", "csv", "--output", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "text,label,probability"
    answer = json.loads(invoke("predict", trained, texts[0], "--format", "jsonl").stdout)
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    assert answer["probability"] == max(answer["probabilities"].values())


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
    from adapterx.cli.examples import load_examples

    files = sorted(path for path in tmp_path.iterdir() if path.is_file())
    assert len({load_examples(str(path)).digest() for path in files}) == 1


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


def test_info_of_everything(trained, model):
    assert "torch" in invoke("info").stdout
    shown = invoke("info", trained).stdout
    assert "adapters" in shown
    assert "negative, positive" in shown
    shown = invoke("info", model).stdout
    assert "layer.0.attention.output.dense" in shown.replace("\n", "")
    assert "trainable" in shown


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "export", "info"])
def test_help_teaches_by_example(command):
    shown = invoke(command, "--help").stdout
    assert "Examples" in shown
    assert f"adapterx {command}" in shown


def test_moved_base_model_can_be_named(trained, model, tmp_path):
    record = json.loads((trained / "run.json").read_text())
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "run.json").write_text(json.dumps(record | {"base_model": str(tmp_path / "gone")}))
    assert "gone" in refused("predict", tmp_path, "good")
    assert invoke("predict", tmp_path, "good", "--model", model).stdout.startswith("positive")


def save_architecture(name, folder):
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 30}
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=24, **sizes)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    elif name == "distilbert":
        config = transformers.DistilBertConfig(
            dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=24, **sizes
        )
        transformers.DistilBertForMaskedLM(config).save_pretrained(folder)
    elif name == "t5":
        config = transformers.T5Config(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, **sizes)
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    else:
        config = transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, **sizes
        )
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tiny_training.save_tiny_tokenizer(folder)
    if name in ("gpt2", "llama"):  # decoders often have an end token and no padding token
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
        tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "pooling"), [("gpt2", "last"), ("llama", "last"), ("distilbert", "cls"), ("t5", "mean")]
)
def test_other_architectures(data, tmp_path, name, pooling):
    folder = save_architecture(name, tmp_path / "model")
    train(folder, data, tmp_path / "run", "--pooling", pooling, "--epochs", "1")
    scores = json.loads(invoke("evaluate", tmp_path / "run", "--data", data, "--json").stdout)
    assert scores["examples"] == 60
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert 0 < metrics["trainable_fraction"] < 0.5


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


# -- wrong input: one line, nothing lost


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
    "utf16.csv": ("text,label\nx,a\n".encode("utf-16"), "line 1, byte 0"),
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
    "regression.jsonl": (b'{"text": "x", "label": 0.5}\n', "regression is not supported"),
    "broken.parquet": (b"PAR1 and then nothing", "cannot be read as Parquet"),
    "table.xlsx": (b"PK", "unknown file type .xlsx"),
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


BAD_OPTIONS = {
    "bottleneck 0": (("--bottleneck-dim", "0"), "bottleneck_dim must be at least 1, got 0"),
    "bottleneck above hidden size": (("--bottleneck-dim", "33"), "at most the hidden size 32"),
    "two sizes": (("--bottleneck-dim", "4", "--reduction-factor", "4"), "exactly one of bottleneck_dim"),
    "adapter options without adapters": (("--method", "head", "--activation", "relu"), "--activation can only"),
    "method": (("--method", "lora"), "method must be one of adapters, head, full"),
    "layers": (("--layers", "x"), "layers must be block numbers"),
    "layer that is not there": (("--layers", "9"), "9"),
    "targets": (("--target-modules", "no_such_module"), "no_such_module"),
    "rate": (("--learning-rate", "-1"), "learning_rate must be a number above 0"),
    "epochs": (("--epochs", "0"), "epochs must be at least 1"),
    "fraction": (("--eval-fraction", "1.5"), "eval_fraction must be in [0, 1)"),
    "max length": (("--max-length", "1000"), "between 3 and 24"),
    "few-shot": (("--examples-per-class", "500"), "at least 500 examples"),
    "half precision on a CPU": (("--precision", "fp16", "--device", "cpu"), "needs a GPU"),
    "best of nothing": (("--keep-best", "--eval-fraction", "0"), "keep_best needs"),
    "resume nothing": (("--resume",), "nothing to resume"),
    "resume and overwrite": (("--resume", "--overwrite"), "exclude each other"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_option(model, data, tmp_path, name):
    options, expected = BAD_OPTIONS[name]
    line = refused("train", "--model", model, "--data", data, "--output", tmp_path / "o", *options)
    assert expected in line
    assert not (tmp_path / "o").exists() or not list((tmp_path / "o").iterdir())


def test_models_that_cannot_be_used(model, data, tmp_path):
    def line(name):
        return refused("train", "--model", name, "--data", data, "--output", tmp_path / "o")

    assert "no such folder exists" in line(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in line(tmp_path / "empty")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((model / "config.json").read_bytes())
    assert "no .safetensors file" in line(pickled)
    torch.save({}, pickled / "pytorch_model.bin")
    assert "a pickle can run any program" in line(pickled)


def test_weights_that_are_missing_are_not_made_up(model, data, tmp_path):
    from safetensors.torch import save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    line = refused("train", "--model", broken, "--data", data, "--output", tmp_path / "o")
    assert "encoder.layer.1.output.dense.weight" in line


def test_output_folder_with_something_in_it(model, data, tmp_path):
    output = tmp_path / "o"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    assert "not empty (thesis.txt)" in refused("train", "--model", model, "--data", data, "--output", output)
    train(model, data, output, "--overwrite")
    first = tensors(output)
    assert "not empty" in refused("train", "--model", model, "--data", data, "--output", output)
    assert "is complete" in refused("train", "--model", model, "--data", data, "--output", output, "--resume")
    train(model, data, output, "--overwrite", "--seed", "9")
    assert tensors(output) != first
    assert (output / "thesis.txt").read_text() == "precious"


def test_output_that_cannot_be_a_folder(model, data, tmp_path):
    assert "must be a folder" in refused("train", "--model", model, "--data", data, "--output", data)
    line = refused("train", "--model", model, "--data", data, "--output", data / "below")
    assert "not writable" in line


def test_loss_that_explodes(model, data, tmp_path):
    line = refused(
        "train", "--model", model, "--data", data, "--output", tmp_path / "o", *QUICK, "--learning-rate", "1e30"
    )
    assert "learning rate" in line
    assert "step" in line
    train(model, data, tmp_path / "o")  # nothing is left behind that would be in the way


@pytest.mark.parametrize("function", ["save_adapter", "draw_learning_curve"])
def test_full_disk_at_the_end_loses_nothing(model, data, tmp_path, monkeypatch, function):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    train(model, data, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(f"adapterx.cli.train.{function}", full)
        result = train(model, data, tmp_path / "o", code=2)
    assert "No space left on device" in result.stderr
    assert "--resume" in result.stderr
    assert "not complete" in refused("predict", tmp_path / "o", "good")
    train(model, data, tmp_path / "o", "--resume")
    assert tensors(tmp_path / "o") == tensors(tmp_path / "straight")


def interrupted(model, data, output, monkeypatch, step, *more):
    """Leave what Ctrl-C after that step leaves."""
    from adapterx.cli.progress import ProgressLine

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "on_step_end", stop)
        return train(model, data, output, *more, code=130)


@pytest.mark.parametrize("step", [2, 11])
def test_interrupt_and_resume_end_as_an_undisturbed_run(model, data, tmp_path, monkeypatch, step):
    train(model, data, tmp_path / "straight", "--dropout", "0.1")
    result = interrupted(model, data, tmp_path / "cut", monkeypatch, step, "--dropout", "0.1")
    assert "--resume" in result.output
    assert "finish it with" in refused("evaluate", tmp_path / "cut", "--data", data)
    assert "continue it with --resume" in refused(
        "train", "--model", model, "--data", data, "--output", tmp_path / "cut"
    )
    assert "interrupted" in invoke("info", tmp_path / "cut").stdout
    train(model, data, tmp_path / "cut", "--dropout", "0.1", "--resume")
    assert tensors(tmp_path / "cut") == tensors(tmp_path / "straight")
    histories = [json.loads((tmp_path / run / "metrics.json").read_text())["history"] for run in ("cut", "straight")]
    assert histories[0] == histories[1]


def test_resume_with_other_options_says_which(model, data, tmp_path, monkeypatch):
    interrupted(model, data, tmp_path / "o", monkeypatch, 11)
    before = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}
    with monkeypatch.context():
        result = train(model, data, tmp_path / "o", "--resume", "--seed", "5", "--activation", "relu", code=2)
    assert "seed: 0 -> 5" in result.stderr
    assert "activation: gelu -> relu" in result.stderr
    tiny_training.write_csv(data, ROWS[::-1])
    assert "content of the data" in train(model, data, tmp_path / "o", "--resume", code=2).stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}


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
    assert "not UTF-8 at byte 1" in invoke("predict", trained, "-", stdin=b"x\xff", code=2).stderr
    assert "format must be one of" in refused("export", trained, "--format", "pickle")


def test_missing_extra_is_named(monkeypatch, capsys):
    from adapterx import cli

    monkeypatch.setitem(sys.modules, "typer", None)
    for name in [name for name in sys.modules if name.startswith("adapterx.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "pip install 'adapterx[train]'" in capsys.readouterr().err


def test_missing_library_of_a_command_is_named(model, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("adapterx.cli.trainer", "adapterx.cli.progress", "adapterx.integrations.transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert "pip install 'adapterx[train]'" in refused(
        "train", "--model", model, "--data", data, "--output", tmp_path / "o"
    )


def test_recipes_are_complete():
    assert set(recipes.RECIPES) == {"adapters", "head", "full"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_moment_and_resumed(model, data, tmp_path):
    runner = Path(__file__).parents[1] / "support" / "crash_runner.py"
    arguments = [sys.executable, "-W", "ignore", str(runner), str(model), str(data), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    expected = report["straight"] | {"code": 0}
    assert sum(cut["killed"] for cut in report["cut"].values()) >= 6
    for name, cut in report["cut"].items():
        # A run that was killed after it was complete may leave its checkpoints.
        ignored = {"left"} if cut.get("left") == "['checkpoints']" else set()
        wrong = {key for key in expected.keys() - ignored if cut.get(key) != expected[key]}
        assert not wrong, (name, cut, done.stderr)
