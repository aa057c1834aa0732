"""Generating text inside `mixed`, with a cache, with beams, from an encoder."""

import pytest
import torch
import transformers
from mixed_cases import CONFIGS, adapted, alone
from tiny_models import FAMILIES

from adapterx import mixed

LANGUAGE_MODELS = {"gpt2": "AutoModelForCausalLM", "llama": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM"}


def language_model(name):
    config_class, values, _ = FAMILIES[name]
    config = getattr(transformers, config_class)(**values)
    if name == "t5":
        config.decoder_start_token_id = 0
    torch.manual_seed(5)
    model = getattr(transformers, LANGUAGE_MODELS[name]).from_config(config).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return adapted(model, {key: value for key, value in CONFIGS.items() if key != "top"})


def generate(model, ids, **options):
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, **options}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_generating_with_a_cache_of_keys_and_values(name):
    model = language_model(name)
    names = ["wide", "parallel", None, "channels"]
    ids = torch.randint(3, 99, (4, 5))
    expected = alone(model, names, ids, generate)
    with mixed(model, names):
        found = generate(model, ids)
    assert found.tolist() == expected.tolist()
    assert len({tuple(row[-6:].tolist()) for row in found}) > 1


def test_beams_have_names_of_their_own():
    model = language_model("gpt2")
    names = ["wide", None, "sigmoid"]
    ids = torch.randint(3, 99, (3, 5))
    expected = alone(model, names, ids, lambda model, ids: generate(model, ids, num_beams=2))
    with mixed(model, [name for name in names for _ in range(2)]):
        found = generate(model, ids, num_beams=2)
    assert found.tolist() == expected.tolist()
    with mixed(model, names), pytest.raises(ValueError, match="mixed: the hidden states of transformer"):
        generate(model, ids, num_beams=2)


def test_an_encoder_reads_the_batch_before_its_rows_are_repeated():
    model = language_model("t5")
    names = ["wide", "parallel", None]
    ids = torch.randint(3, 99, (3, 5))
    expected = alone(model, names, ids, lambda model, ids: generate(model, ids, num_beams=2))
    with torch.no_grad(), mixed(model, names):
        encoded = model.get_encoder()(input_ids=ids)
    with mixed(model, [name for name in names for _ in range(2)]):
        options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 2}
        found = model.generate(encoder_outputs=encoded, attention_mask=torch.ones_like(ids), **options)
    assert found.tolist() == expected.tolist()
