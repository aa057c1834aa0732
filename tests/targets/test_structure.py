"""Where adapters go in models without a table: the right modules of one tiny model per kind of structure, by name.

`make models` judges all model types by an oracle of its own; these are the kinds that it has found.
"""

import ast
import re

import pytest
import torch
from tiny_models import build
from torch import nn

pytest.importorskip("transformers")

import tiny_types
from special_configs import OLD
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from verdict import without_indices

from adapterx import AdapterConfig, TargetError, attach
from adapterx.host import base_modules
from adapterx.targets import find_targets


def tiny(model_type, device="meta"):
    """Return a tiny model of a type; on the meta device it costs nothing."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    return tiny_types.build(model_type, CONFIG_MAPPING[model_type], device)[0].eval()


def find(model, **options):
    return find_targets(base_modules(model), AdapterConfig(**{"bottleneck_dim": 4, **options}))


MIXTURE = "block_sparse_moe" if OLD else "mlp"  # of Mixtral
GATED = ("mlp.down_proj", "mlp.up_proj")
# model type: {block: {position: [(module, what receives the sublayer's input; None is the module itself)]}}
EXPECTED = {
    "mixtral": {
        "layers.*": {"attention": [("self_attn.o_proj", "self_attn")], "feed_forward": [(MIXTURE, None)]},
    },
    "deepseek_v3": {  # a dense block first; routed and shared experts behind one adapter
        "layers.*": {"attention": [("self_attn.o_proj", "self_attn")], "feed_forward": [GATED, ("mlp", None)]},
    },
    "longcat_flash": {  # two attentions and two feed-forwards in lists, a mixture of experts beside them
        "layers.*": {
            "attention": [("self_attn.*.o_proj", "self_attn.*")],
            "feed_forward": [("mlp", None), ("mlps.*.down_proj", "mlps.*.up_proj")],
        }
    },
    "deepseek_v4": {  # several residual streams, and an output projection of low rank
        "layers.*": {"attention": [("self_attn.o_b_proj", "self_attn")], "feed_forward": [("mlp", None)]},
    },
    "qwen4_exp_text": {  # several residual streams, weighed by linear modules named after the sublayer they feed
        "layers.*": {
            "attention": [("linear_attn.out_proj", "linear_attn"), ("self_attn.o_proj", "self_attn")],
            "feed_forward": [("mlp", None)],
        }
    },
    "perceiver": {  # a feed-forward sublayer as wide inside as outside
        "encoder.self_attends.*": {
            "attention": [("attention.output.dense", "attention")],
            "feed_forward": [("mlp.dense2", "mlp.dense1")],
        }
    },
    "jetmoe": {"layers.*": {"attention": [("self_attention", None)], "feed_forward": [("mlp", None)]}},
    "qwen3_next": {
        "layers.*": {
            "attention": [("linear_attn.out_proj", "linear_attn"), ("self_attn.o_proj", "self_attn")],
            "feed_forward": [("mlp", None)],
        }
    },
    "qwen3_5_text": {  # the width is that of the norms, not of the first projection, a gate
        "layers.*": {
            "attention": [("linear_attn.out_proj", "linear_attn"), ("self_attn.o_proj", "self_attn")],
            "feed_forward": [GATED],
        }
    },
    "olmo_hybrid": {  # blocks of two classes
        "layers.*": {
            "attention": [("linear_attn.o_proj", "linear_attn"), ("self_attn.o_proj", "self_attn")],
            "feed_forward": [GATED],
        }
    },
    "jamba": {
        "layers.*": {
            "attention": [("mamba.out_proj", "mamba"), ("self_attn.o_proj", "self_attn")],
            "feed_forward": [("feed_forward.down_proj", "feed_forward.up_proj"), ("feed_forward", None)],
        }
    },
    "nemotron_h": {  # each block holds one sublayer
        "layers.*": {
            "attention": [("mixer.out_proj", "mixer"), ("mixer.o_proj", "mixer")],
            "feed_forward": [("mixer", None), ("mixer.down_proj", "mixer.up_proj")],
        }
    },
    "falcon_h1": {  # two mixers side by side
        "layers.*": {
            "attention": [("mamba.out_proj", "mamba"), ("self_attn.o_proj", "self_attn")],
            "feed_forward": [("feed_forward.down_proj", "feed_forward.up_proj")],
        }
    },
    "mamba": {"layers.*": {"attention": [("mixer.out_proj", "mixer")]}},
    "lfm2": {
        "layers.*": {
            "attention": [("self_attn.out_proj", "self_attn")],
            "feed_forward": [("feed_forward.w2", "feed_forward.w3")],
        }
    },
    "mllama": {  # the language model too
        "vision_model.transformer.layers.*": {
            "attention": [("self_attn.o_proj", "self_attn")],
            "feed_forward": [("mlp.fc2", "mlp.fc1")],
        },
        "vision_model.global_transformer.layers.*": {
            "attention": [("self_attn.o_proj", "self_attn")],
            "feed_forward": [("mlp.fc2", "mlp.fc1")],
        },
        "language_model.layers.*": {"attention": [("self_attn.o_proj", "self_attn")], "feed_forward": [GATED]},
    },
    "wavlm": {  # its attention reads the weights of its projections and calls none
        "encoder.layers.*": {
            "attention": [("attention", "attention")],
            "feed_forward": [("feed_forward.output_dense", "feed_forward.intermediate_dense")],
        }
    },
    "xlm": {  # a list of attentions beside a list of feed-forwards
        "attentions.*": {"attention": [("out_lin", "")]},
        "ffns.*": {"feed_forward": [("lin2", "lin1")]},
    },
    "flaubert": {
        "attentions.*": {"attention": [("out_lin", "")]},
        "ffns.*": {"feed_forward": [("lin2", "lin1")]},
    },
    "wav2vec2-conformer": {  # two feed-forwards
        "encoder.layers.*": {
            "attention": [("self_attn.linear_out", "self_attn")],
            "feed_forward": [
                ("ffn1.output_dense", "ffn1.intermediate_dense"),
                ("ffn2.output_dense", "ffn2.intermediate_dense"),
            ],
        }
    },
    "instructblip_qformer": {
        "encoder.layer.*": {
            "attention": [("attention.output.dense", "attention")],
            "feed_forward": [
                ("output.dense", "intermediate.dense"),
                ("output_query.dense", "intermediate_query.dense"),
            ],
        }
    },
    "timesformer": {  # two attentions, one of them with a projection of the block's behind it
        "encoder.layer.*": {
            "attention": [("attention.output.dense", "attention"), ("temporal_dense", "temporal_attention")],
            "feed_forward": [("output.dense", "intermediate.dense")],
        }
    },
    "lxmert": {
        "encoder.layer.*": {
            "attention": [("attention.output.dense", "attention")],
            "feed_forward": [("output.dense", "intermediate.dense")],
        },
        "encoder.r_layers.*": {
            "attention": [("attention.output.dense", "attention")],
            "feed_forward": [("output.dense", "intermediate.dense")],
        },
        "encoder.x_layers.*": {
            "attention": [
                ("lang_self_att.output.dense", "lang_self_att"),
                ("visn_self_att.output.dense", "visn_self_att"),
            ],
            "feed_forward": [("lang_output.dense", "lang_inter.dense"), ("visn_output.dense", "visn_inter.dense")],
        },
    },
    "mobilebert": {  # the narrow stream between its bottlenecks
        "encoder.layer.*": {
            "attention": [("attention.output.dense", "attention")],
            "feed_forward": [
                ("output.dense", "intermediate.dense"),
                ("ffn.*.output.dense", "ffn.*.intermediate.dense"),
            ],
        }
    },
    "moshi": {  # projections in wrappers
        "layers.*": {"attention": [("self_attn.o_proj.linear", "self_attn")], "feed_forward": [("mlp.fc2", "mlp.fc1")]}
    },
    "swin2sr": {
        "encoder.stages.*.layers.*": {
            "attention": [("attention.output.dense", "attention")],
            "feed_forward": [("output.dense", "intermediate.dense")],
        }
    },
    "sam2_hiera_det_model": {  # the width grows from block to block
        "blocks.*": {"attention": [("attn.proj", "attn")], "feed_forward": [("mlp.proj_out", "mlp.proj_in")]}
    },
}


@pytest.mark.parametrize("model_type", EXPECTED)
def test_the_right_modules(model_type):
    model = tiny(model_type)
    expected = {
        (f"{block}.{output}", position, source if source is None else f"{block}.{source}".rstrip("."))
        for block, sublayers in EXPECTED[model_type].items()
        for position, pairs in sublayers.items()
        for output, source in pairs
    }
    targets, rule, _ = find(model, placement="parallel")
    found = {
        (without_indices(t.module), t.position, t.input_module and without_indices(t.input_module)) for t in targets
    }
    assert found == expected
    assert rule.startswith("structure of the repeated blocks")
    sequential, _, _ = find(model, positions=("feed_forward",)) if model_type != "mamba" else find(model)
    wanted = {module for module, position, _ in expected if position == "feed_forward" or model_type == "mamba"}
    assert {without_indices(target.module) for target in sequential} == wanted


@pytest.mark.parametrize(
    ("model_type", "note"),
    [
        ("mixtral", f"layers[0-1]: one adapter behind all experts of {MIXTURE}"),
        ("mamba", "layers[0-1]: no feed_forward sublayer"),
        ("xlnet", "layer[0-1]: rel_attn belongs to none of these sublayers and is left out"),
        ("wav2vec2-conformer", "encoder.layers[0-1]: conv_module belongs to none of these sublayers and is left out"),
        ("instructblip_qformer", "encoder.layer[0]: crossattention.output.dense (cross_attention) is left out"),
        ("bart", "decoder.layers: encoder_attn.out_proj (cross_attention) is left out"),
        ("albert", "encoder runs 1 group of blocks for 2 layers: each adapter serves 2 of them"),
        ("grounding-dino", "encoder.layers[0-1]: fusion_layer.attn (cross_attention) is left out"),
        (
            "fun_asr_nano_encoder",
            "layers[0-1]: self_attn.fsmn belongs to none of these sublayers and is left out",
        ),
        ("xcodec2", "semantic_encoder was left out: the model runs it without gradients"),
        ("blt", "patcher was left out: the model runs it without gradients"),
        ("omdet-turbo", "language_backbone was left out: the model keeps what it returned for its next call"),
        ("swin2sr", "encoder.stages.0.patch_embed was left out: it is in no block"),
    ],
)
def test_the_report_says_what_was_left_out_and_what_is_shared(model_type, note):
    assert note in find(tiny(model_type))[2]


def test_the_report_is_printed_and_kept():
    model = tiny("mixtral", "cpu")
    report = attach(model, AdapterConfig(bottleneck_dim=4))
    assert f"note: layers[0-1]: one adapter behind all experts of {MIXTURE}" in str(report)


def test_one_module_in_several_places():
    model = build("llama")
    model.layers[1].mlp = model.layers[0].mlp
    notes = find(model)[2]
    assert notes == (
        "layers.0.mlp.down_proj is one module in 2 places, its adapter serves all: layers.0.mlp.down_proj, "
        "layers.1.mlp.down_proj",
    )


def test_what_is_narrower_than_the_bottleneck_is_left_out_and_named():
    model = build("swin")  # 16 wide, then 32
    targets, _, notes = find(model, bottleneck_dim=24)
    assert {target.hidden_size for target in targets} == {32}
    assert len(notes) > 1
    assert "is left out: it is 16 wide, less than the bottleneck" in notes[-1]


@pytest.mark.parametrize(
    "model_type", ["lightglue", "superglue", "patchtsmixer", "convnext", "levit", "efficientloftr", "gemma3n_text"]
)
def test_a_refusal_names_target_modules_that_work(model_type):
    model = tiny(model_type, "cpu")
    with pytest.raises(TargetError) as refusal:
        find(model)
    named = ast.literal_eval(re.search(r"target_modules=(\(.*?,\))", str(refusal.value))[1])
    assert find(model, target_modules=named)[0]
    assert attach(model, AdapterConfig(bottleneck_dim=1, target_modules=named)).targets


@pytest.mark.parametrize(
    ("model_type", "words"),
    [("rwkv", "the backward pass of its recurrence fails"), ("reformer", "in a backward pass of its own")],
)
def test_models_that_fail_in_their_own_backward(model_type, words):
    with pytest.raises(TargetError, match=words):
        find(tiny(model_type))


def test_a_model_without_anything_to_adapt_says_so():
    with pytest.raises(TargetError, match="no linear module that target_modules could name"):
        find(tiny("resnet"))


class Mixture(nn.Module):
    """Experts that return tokens in a row, and the scores of the router with them."""

    def __init__(self, size=8):
        super().__init__()
        self.router = nn.Linear(size, 2)
        self.experts = nn.ModuleList(nn.Linear(size, size) for _ in range(2))

    def forward(self, hidden_states):
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores = self.router(tokens).softmax(-1)
        return sum(scores[:, [i]] * expert(tokens) for i, expert in enumerate(self.experts)), scores


class MixtureBlock(nn.Module):
    def __init__(self, size=8):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.moe = Mixture(size)

    def forward(self, hidden_states):
        return hidden_states + self.moe(self.norm(hidden_states))[0].view_as(hidden_states)


def test_parallel_adapters_read_the_tokens_of_a_mixture_in_a_row():
    torch.manual_seed(2)
    model = nn.Sequential(MixtureBlock(), MixtureBlock()).double()
    config = AdapterConfig(bottleneck_dim=4, placement="parallel", init_up="near_zero")
    assert [t.module for t in attach(model, config, dtype=torch.float64).targets] == ["0.moe", "1.moe"]
    states = torch.randn(2, 3, 8, dtype=torch.float64)
    expected = states
    for block in model:
        branch, normed = block.moe.adapterx["default"], block.norm(expected)
        down = nn.functional.linear(normed, branch.down_proj.weight, branch.down_proj.bias)
        own = Mixture.forward(block.moe, normed)[0].view_as(expected)
        up = nn.functional.linear(nn.functional.gelu(down), branch.up_proj.weight, branch.up_proj.bias)
        expected = expected + own + up
    assert (model(states) - expected).abs().max() <= 1e-12
    assert (expected - states).abs().max() > 0


def test_parallel_adapters_of_a_first_block_read_what_it_narrows():
    class Attention(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, 8) for _ in range(3))
            self.out_proj = nn.Linear(8, 8)

        def forward(self, states):
            scores = self.q_proj(states) @ self.k_proj(states).transpose(1, 2)
            return self.out_proj(scores.softmax(-1) @ self.v_proj(states))

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm, self.attn = nn.LayerNorm(width), Attention(width)
            self.ffn_norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

        def forward(self, states):
            mixed = self.attn(self.norm(states))
            states = mixed if mixed.shape != states.shape else states + mixed
            return states + self.fc2(self.fc1(self.ffn_norm(states)).relu())

    model = nn.Sequential(Block(20), Block(8))
    states = torch.randn(2, 3, 20)
    before = model(states)
    targets = attach(model, AdapterConfig(bottleneck_dim=4, placement="parallel")).targets
    assert [(t.module, t.input_module, t.input_size, t.hidden_size) for t in targets if t.position == "attention"] == [
        ("0.attn.out_proj", "0.attn", 20, 8),
        ("1.attn.out_proj", "1.attn", 8, 8),
    ]
    assert torch.equal(model(states), before)


def test_tokens_in_another_order_are_refused_at_the_first_forward_pass():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(8, 8)

        def forward(self, hidden_states):
            return self.proj(hidden_states.transpose(0, 1)).transpose(0, 1)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.norm = nn.Module(), nn.LayerNorm(8)
            self.attn = Turned()
            self.attn.value = nn.Linear(8, 8)

        def forward(self, hidden_states):
            return hidden_states + self.attn(self.norm(hidden_states))

    model = nn.Sequential(nn.ModuleDict({"blocks": nn.Sequential(Block(), Block())})["blocks"])
    attach(model, AdapterConfig(bottleneck_dim=2, placement="parallel", positions=("attention",)))
    with pytest.raises(
        RuntimeError, match=r"must read the tokens that its module returns, in the same order.*\(2, 3, 8\)"
    ):
        model(torch.randn(2, 3, 8))


def test_weights_of_convolutions_are_no_experts():
    class Moemix(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv1d(8, 8, 3)
            self.widen, self.narrow, self.norm = nn.Linear(8, 12), nn.Linear(12, 8), nn.LayerNorm(8)

    class MoeBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(8), Moemix()
            self.attention = nn.MultiheadAttention(8, 2)

    model = nn.Sequential(MoeBlock(), MoeBlock())
    assert [target.module for target in find(model, positions=("feed_forward",))[0]] == ["0.mlp.narrow", "1.mlp.narrow"]


def test_the_feed_forward_of_a_block_that_is_named_after_its_attention():
    if "edgetam_video" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no edgetam_video")
    targets, _, _ = find(tiny("edgetam_video"), positions=("feed_forward",))
    assert "memory_attention.layers.0.mlp.down_proj" in [target.module for target in targets]


def test_what_adds_to_no_stream_is_left_out_and_named():
    targets, _, notes = find(tiny("zamba"))  # its shared Transformer adds to what the mixers read
    assert {without_indices(target.module) for target in targets} == {
        "layers.*.mamba.out_proj",
        "layers.*.mamba_decoder.mamba.out_proj",
    }
    said = "shared_transf belongs to none of these sublayers and is left out"  # 1 and 3 may share it
    assert any(note.startswith("layers[1") and note.endswith(said) for note in notes)


def test_lists_without_mixing_are_passed_over_and_named():
    model = nn.Module()
    model.config = type("Config", (), {"model_type": "toy"})
    model.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 12) for _ in range(2))
    model.heads = nn.ModuleList(
        nn.ModuleDict({"norm": nn.LayerNorm(8), "widen": nn.Linear(8, 12), "narrow": nn.Linear(12, 8)})
        for _ in range(2)
    )
    targets, _, notes = find(model)
    assert {without_indices(target.module) for target in targets} == {"layers.*.self_attn", "layers.*.linear2"}
    assert notes == ("heads was left out: its modules mix no tokens",)
