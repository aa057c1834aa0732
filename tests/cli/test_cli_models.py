"""Base models of every architecture, and those that cannot be used."""

import json
import shutil
from inspect import signature

import pytest
import tiny_training
import torch
from command_line import invoke, refused, train
from safetensors.torch import load_file

from adapterx.errors import ConfigError

TEXT = {"vocab_size": 30, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
T5 = {"vocab_size": 30, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
TWO_TOWERS = TEXT | {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 24, "decoder_start_token_id": 3,
}  # fmt: skip
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
# name: (class of the model, class of its configuration, values)
ARCHITECTURES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 24}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", SIZES),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 24},
    ),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", SIZES | {"max_position_embeddings": 26, "pad_token_id": 1}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "t5-encoder": ("T5EncoderModel", "T5Config", T5),
    "bart": ("BartForConditionalGeneration", "BartConfig", TWO_TOWERS),
    "marian": ("MarianMTModel", "MarianConfig", TWO_TOWERS),
    "mbart": ("MBartForConditionalGeneration", "MBartConfig", TWO_TOWERS),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", TWO_TOWERS),
    "longt5-encoder": ("LongT5EncoderModel", "LongT5Config", T5),
    "umt5": ("UMT5ForConditionalGeneration", "UMT5Config", T5),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 24},
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
}


def build(name):
    import transformers

    torch.manual_seed(0)
    model_class, config_class, values = ARCHITECTURES[name.removesuffix(" alone")]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**{"vocab_size": 30} | values))
    if name.endswith(" alone"):
        model = model.get_encoder()
    return model.eval()


def save_architecture(name, folder):
    import transformers

    build(name).save_pretrained(folder)
    tiny_training.save_tiny_tokenizer(folder)
    if name in ("gpt2", "llama"):  # decoders often have an end token and no padding token
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
        tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("gpt2", "last"), ("llama", "last"), ("distilbert", "cls"), ("t5", "mean"), ("bart", "mean"), ("roberta", "cls")],
)
def test_other_architectures(data, tmp_path, name, pooling):
    folder = save_architecture(name, tmp_path / "model")
    train(folder, data, tmp_path / "run", "--pooling", pooling, "--epochs", "1", "--max-length", "24")
    scores = json.loads(invoke("evaluate", tmp_path / "run", "--data", data, "--json").stdout)
    assert scores["examples"] == 60
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert 0 < metrics["trainable_fraction"] < 0.5


# name: (the longest sequence, None where there is no limit by the model; the class that is adapted)
ENCODERS = {
    "roberta": (24, "RobertaModel"),
    "t5": (None, "T5EncoderModel"),
    "t5-encoder": (None, "T5EncoderModel"),
    "bart": (24, "BartEncoder"),
    "bart alone": (24, "BartEncoder"),
    "marian": (24, "MarianEncoder"),
    "mbart": (24, "MBartEncoder"),
    "mbart alone": (24, "MBartEncoder"),
    "pegasus": (24, "PegasusEncoder"),
    "longt5-encoder": (None, None),
    "umt5": (None, "UMT5EncoderModel"),
    "opt": (24, "OPTModel"),
    "bloom": (None, "BloomModel"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_part_that_reads_text_is_loaded_and_its_limit_is_true(tmp_path, name):
    from adapterx.cli.models import load_text_model, resolve_max_length

    limit, kind = ENCODERS[name]
    tokenizer, base = load_text_model(str(save_architecture(name, tmp_path)))
    assert kind in (None, type(base).__name__)
    assert not [part for part in base.state_dict() if "decoder.layers" in part and name != "opt"]
    longest = resolve_max_length(limit or 200, tokenizer, base)
    whole = build(name)
    reading = whole.get_encoder() if "decoder_input_ids" in signature(whole.forward).parameters else whole.base_model
    inputs = {"input_ids": torch.full((1, longest), 5), "attention_mask": torch.ones(1, longest, dtype=torch.int64)}
    with torch.no_grad():
        torch.testing.assert_close(base(**inputs)[0], reading(**inputs)[0])
    assert resolve_max_length(None, tokenizer, base) == 24  # what the tokenizer advises
    rule = "be at least 3" if limit is None else "lie between 3 and 24"
    for wrong in (2, -1) if limit is None else (2, 25):
        with pytest.raises(ConfigError, match=f"train: max_length must {rule}, the model's positions, got {wrong}"):
            resolve_max_length(wrong, tokenizer, base)


@pytest.mark.parametrize("advised", [None, 0, -1, 2, 10**30, 2.5, "many"])
def test_advice_of_a_tokenizer_that_is_none(model, advised):
    from types import SimpleNamespace

    from adapterx.cli.models import load_base, resolve_max_length

    assert resolve_max_length(None, SimpleNamespace(model_max_length=advised), load_base(str(model))) == 24


def test_a_full_training_of_an_encoder_comes_back(data, tmp_path):
    """The run folder then holds the encoder alone."""
    folder = save_architecture("bart", tmp_path / "model")
    train(folder, data, tmp_path / "run", "--method", "full", "--epochs", "1", code=2)  # --bottleneck-dim is no option
    arguments = ("--data", data, "--output", tmp_path / "run", "--method", "full", "--epochs", "1")
    invoke("train", "--model", folder, *arguments)
    assert json.loads(invoke("evaluate", tmp_path / "run", "--data", data, "--json").stdout)["examples"] == 60


NOT_TEXT = {
    "vit": ("ViTModel", "ViTConfig", SIZES | {"image_size": 16, "patch_size": 8}),
    "dpr": ("DPRQuestionEncoder", "DPRConfig", SIZES | {"vocab_size": 30, "max_position_embeddings": 24}),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": SIZES | {"vocab_size": 30, "max_position_embeddings": 24},
            "vision_config": SIZES | {"image_size": 16, "patch_size": 8},
        },
    ),
}


@pytest.mark.parametrize("name", NOT_TEXT)
def test_models_that_do_not_read_text_alone(data, tmp_path, name):
    import transformers

    model_class, config_class, values = NOT_TEXT[name]
    config = getattr(transformers, config_class)(**values)
    getattr(transformers, model_class)(config).save_pretrained(tmp_path / "model")
    tiny_training.save_tiny_tokenizer(tmp_path / "model")
    line = refused("train", "--model", tmp_path / "model", "--data", data, "--output", tmp_path / "o")
    assert "must be a model that reads text alone" in line or "must return states" in line


# -- tokenizers


def with_added_tokens(model, folder, *tokens, **special):
    from transformers import AutoTokenizer

    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return folder


def test_added_tokens_beyond_the_embeddings(model, data, tmp_path):
    """Published tokenizers have some; a text that holds one is refused, the others are not."""
    folder = with_added_tokens(model, tmp_path / "model", "extra0", "extra1")
    train(folder, data, tmp_path / "run", "--epochs", "1")
    assert "'extra1'" in refused("predict", tmp_path / "run", "good extra1 bad")
    invoke("predict", tmp_path / "run", "good bad")
    rows = [*tiny_training.sentences(20), ("good extra0", "positive")]
    other = tiny_training.write_csv(tmp_path / "other.csv", rows)
    assert "must not hold the token 'extra0'" in refused(
        "train", "--model", folder, "--data", other, "--output", tmp_path / "o", "--bottleneck-dim", "4"
    )


def test_a_padding_token_beyond_the_embeddings(model, data, tmp_path):
    folder = with_added_tokens(model, tmp_path / "model", pad_token="[PADDING]")
    line = refused("train", "--model", folder, "--data", data, "--output", tmp_path / "o")
    assert "token ids up to 30, the model has embeddings for 30 tokens" in line


def test_texts_of_which_every_word_is_unknown(model, tmp_path):
    data = tiny_training.write_csv(tmp_path / "d.csv", [("これは", "a"), ("それ", "b"), ("あれ", "a"), ("どれ", "b")])
    arguments = ("--output", tmp_path / "o", "--eval-fraction", "0", "--bottleneck-dim", "4")
    assert "must know some words" in refused("train", "--model", model, "--data", data, *arguments)


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
