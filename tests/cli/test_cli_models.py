"""Base models of every architecture, and those that cannot be used."""

import json

import pytest
import tiny_training
import torch
from command_line import invoke, refused, train
from safetensors.torch import load_file


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
