"""How many tokens a model takes: the number is true, which a forward pass of that many tokens and of one more shows."""

import pytest
import torch

pytest.importorskip("transformers")

import tiny_models
import transformers

from adapterx.positions import max_positions

LONGEST = 24
SIZES = tiny_models.SIZES | {"max_position_embeddings": LONGEST}
TWO_TOWERS = tiny_models.ENCODER_DECODER | {"max_position_embeddings": LONGEST}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": LONGEST}
T5 = tiny_models.FAMILIES["t5"][1]
RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
# configuration, its values, the longest sequence (None: no limit), whether one more is an error
CASES = {
    "BertConfig": (SIZES, 24, True),
    "RobertaConfig": (SIZES | {"pad_token_id": 1}, 22, True),
    "CamembertConfig": (SIZES | {"pad_token_id": 1}, 22, True),
    "MPNetConfig": (SIZES, 22, True),
    "EsmConfig": (SIZES | {"pad_token_id": 1, "position_embedding_type": "absolute"}, 22, True),
    "LongformerConfig": (SIZES | {"pad_token_id": 1, "attention_window": 8}, 22, True),
    "IBertConfig": (SIZES | {"pad_token_id": 1}, 22, True),
    "BartConfig": (TWO_TOWERS, 24, True),
    "MarianConfig": (TWO_TOWERS, 24, True),
    "LEDConfig": (
        tiny_models.ENCODER_DECODER
        | {"max_encoder_position_embeddings": 24, "max_decoder_position_embeddings": 24, "attention_window": 8},
        24,
        True,
    ),
    "OPTConfig": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "vocab_size": 99}
        | {"word_embed_proj_dim": 32, "max_position_embeddings": LONGEST},
        24,
        True,
    ),
    "GPT2Config": (GPT, 24, True),
    "OpenAIGPTConfig": (GPT, 24, True),
    "MptConfig": ({"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 99, "max_seq_len": LONGEST}, 24, True),
    "DebertaConfig": (SIZES, 24, True),
    "LlamaConfig": (SIZES, 24, False),
    "ModernBertConfig": (SIZES | tiny_models.SPECIAL, 24, False),
    "FalconConfig": (SIZES | {"alibi": True}, None, False),
    "DebertaV2Config": (SIZES | RELATIVE, None, False),
    "T5Config": (T5 | {"n_positions": 512}, None, False),  # a number that published files hold and nothing reads
    "BloomConfig": ({"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99}, None, False),
    "XLNetConfig": ({"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": 99}, None, False),
}


@pytest.mark.parametrize("name", CASES)
def test_longest_sequence(name):
    values, longest, ends = CASES[name]
    config = getattr(transformers, name)(**values)
    model = transformers.AutoModel.from_config(config).eval()
    assert max_positions(model, config) == longest
    reading = model.get_encoder() if config.is_encoder_decoder else model

    def run(tokens):
        with torch.no_grad():
            reading(input_ids=torch.randint(5, 90, (2, tokens)))

    run(longest or 3 * LONGEST)
    if ends:
        with pytest.raises((IndexError, RuntimeError)):
            run(longest + 1)
