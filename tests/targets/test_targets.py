"""Where adapters go: tables of model families, the structure of the blocks, names and patterns."""

import copy
from typing import NamedTuple

import pytest
import torch
from tiny_models import FAMILIES, build, plain_model
from torch import nn

from adapterx import AdapterConfig, TargetError, attach
from adapterx.host import base_modules
from adapterx.targets import find_targets, layouts
from adapterx.targets.layouts import LAYOUTS


class Selection(NamedTuple):
    targets: tuple
    rule: str
    notes: tuple


def find(model, **options):
    return Selection(*find_targets(base_modules(model), AdapterConfig(bottleneck_dim=4, **options)))


def names(selection):
    return [target.module for target in selection.targets]


@pytest.mark.parametrize("name", FAMILIES)
def test_number_of_modules_and_rule(name):
    model = build(name)
    selection = find(model)
    assert len(selection.targets) == FAMILIES[name][2]
    model_type = model.config.model_type
    expected = f"table for model type '{model_type}'" if model_type in LAYOUTS else "structure of the repeated blocks"
    assert selection.rule.startswith(expected)
    attention = find(model, positions=("attention",))
    assert 2 * len(attention.targets) == FAMILIES[name][2]
    assert {target.position for target in attention.targets} == {"attention"}


def test_every_table_has_a_model_that_proves_it():
    assert set(LAYOUTS) <= set(FAMILIES)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_structure_agrees_with_the_tables(name, monkeypatch):
    model = build(name)
    by_table = find(model)
    monkeypatch.setattr(layouts, "LAYOUTS", {})
    by_structure = find(model)
    assert by_structure.rule.startswith("structure")
    assert names(by_structure) == names(by_table)


BERT = "encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"


@pytest.mark.parametrize(
    ("name", "attention", "feed_forward"),
    [
        ("bert", ("attention.output.dense", "attention.self"), ("output.dense", "intermediate.dense")),
        ("distilbert", ("attention.out_lin", "attention"), ("ffn.lin2", "ffn")),
        ("gpt2", ("attn.c_proj", "attn"), ("mlp.c_proj", "mlp")),
        ("llama", ("self_attn.o_proj", "self_attn"), ("mlp.down_proj", "mlp")),
        ("bart", ("self_attn.out_proj", "self_attn"), ("fc2", "fc1")),
        ("modernbert", ("attn.Wo", "attn"), ("mlp.Wo", "mlp.Wi")),
        ("gpt_neox", ("attention.dense", "attention"), ("mlp.dense_4h_to_h", "mlp.dense_h_to_4h")),
    ],
)
def test_parallel_adapters_read_what_the_sublayer_reads(name, attention, feed_forward):
    for target in find(build(name), placement="parallel").targets:
        output, source = attention if target.position == "attention" else feed_forward
        block = target.module.removesuffix(f".{output}")
        assert block.split(".")[-1] == str(target.block)
        assert target.input_module == f"{block}.{source}"
        assert (target.input_size, target.hidden_size) == (32, 32)


def test_cross_attention_is_left_alone():
    assert not [name for name in names(find(build("bart"))) if "encoder_attn" in name]
    assert not [name for name in names(find(build("t5"))) if "EncDec" in name]


def test_bert_suffix_trap():
    model = build("bert")
    assert names(find(model, positions=("feed_forward",))) == [BERT[1].format(0), BERT[1].format(1)]
    assert len(names(find(model, target_modules=("output.dense",)))) == 4  # suffixes mean what they say


def test_tables_match_whole_components_of_names():
    model = build("gpt2")
    before = names(find(model))
    model.branch = copy.deepcopy(model.h)  # ends in h, but is not called h
    assert names(find(model)) == before


def test_prefix_of_a_model_with_a_head():
    import transformers

    model = transformers.BertForSequenceClassification(build("bert").config)
    assert names(find(model))[0] == "bert.encoder.layer.0.attention.output.dense"


def test_wrapper_without_a_config_uses_the_inner_model():
    wrapper = nn.ModuleDict({"inner": build("gpt2")})
    assert find(wrapper).rule == "table for model type 'gpt2'"


def test_a_table_that_does_not_fit_says_so():
    model = build("vit")
    model.config.model_type = "bert"
    selection = find(model)
    assert len(selection.targets) == 4
    assert "has a table that does not fit this model" in selection.rule


def test_layers():
    model = build("bert")
    assert names(find(model, layers=(1,))) == [BERT[0].format(1), BERT[1].format(1)]
    with pytest.raises(
        TargetError, match=r"layers must be block indices of the model, got \[2, 7\]; there are \[0, 1\]"
    ):
        find(model, layers=(1, 2, 7))
    assert names(find(model, layers=(0,), target_modules=("key",))) == ["encoder.layer.0.attention.self.key"]
    with pytest.raises(TargetError, match="there are none"):
        find(plain_model(), layers=(0,), target_modules=("classifier",))


def test_regular_expression_matches_the_whole_name():
    model = build("bert")
    assert names(find(model, target_modules=r"encoder\.layer\.\d+\.output\.dense")) == [
        BERT[1].format(0),
        BERT[1].format(1),
    ]
    with pytest.raises(TargetError, match=r"nothing matches 'dense'.*one string is a regular expression"):
        find(model, target_modules="dense")


def test_nothing_matches_names_the_pattern_and_the_nearest_modules():
    with pytest.raises(TargetError, match=r"nothing matches 'o_porj'; the nearest names are .*self_attn\.o_proj"):
        find(build("llama"), target_modules=("o_porj",))
    with pytest.raises(TargetError, match="nothing matches 'nowhere'"):  # one good suffix does not hide a bad one
        find(build("llama"), target_modules=("o_proj", "nowhere"))


def test_any_module_can_be_named():
    model = build("bert")
    found = find(model, target_modules=("attention", "LayerNorm", "word_embeddings", "pooler.dense")).targets
    assert {target.hidden_size for target in found} == {32}
    sizes = {t.module: (t.input_size, t.hidden_size) for t in find(
        model, target_modules=("intermediate.dense", "output.dense"), placement="parallel").targets}  # fmt: skip
    assert sizes["encoder.layer.0.intermediate.dense"] == (32, 48)
    assert sizes["encoder.layer.0.output.dense"] == (48, 32)


def test_conv1d_sizes():
    model = build("gpt2")
    found = find(model, target_modules=("c_fc", "mlp.c_proj"), placement="parallel", layers=(0,)).targets
    assert [(t.input_size, t.hidden_size) for t in found] == [(32, 128), (128, 32)]


class Unknown(nn.Module):
    def forward(self, hidden_states):
        return hidden_states


def test_a_size_that_cannot_be_told_is_asked_for():
    model = nn.ModuleDict({"part": Unknown()})
    with pytest.raises(TargetError, match=r"hidden size of part \(Unknown\) cannot be told"):
        find(model, target_modules=("part",))
    model.config = type("Config", (), {"hidden_size": 5})
    assert find(model, target_modules=("part",)).targets[0].hidden_size == 5


def test_weight_shape_tells_the_size():
    module = Unknown()
    module.weight = nn.Parameter(torch.zeros(5, 3))
    target = find(nn.ModuleDict({"part": module}), target_modules=("part",), placement="parallel").targets[0]
    assert (target.input_size, target.hidden_size) == (3, 5)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.ModuleList([nn.Linear(2, 2)]), "a ModuleList is never called"),
        (nn.Conv2d(2, 2, 1), "the last axis of a Conv2d is not its channels"),
    ],
)
def test_what_cannot_be_adapted_is_refused(module, reason):
    with pytest.raises(TargetError, match=reason):
        find(nn.ModuleDict({"part": module}), target_modules=("part",))


def test_structure_of_a_plain_model():
    selection = find(plain_model(), positions=("feed_forward",), placement="parallel")
    assert names(selection) == ["blocks.0.narrow", "blocks.1.narrow"]
    assert [t.input_module for t in selection.targets] == ["blocks.0.widen", "blocks.1.widen"]
    everywhere = find(plain_model())
    assert names(everywhere) == names(selection)
    assert everywhere.notes == ("blocks[0-1]: no attention sublayer",)
    with pytest.raises(TargetError, match=r"positions must name sublayers .* they have feed_forward"):
        find(plain_model(), positions=("attention",))


def test_single_block_and_no_block():
    assert names(find(plain_model(depth=1), positions=("feed_forward",))) == ["blocks.0.narrow"]
    lone = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(TargetError, match=r"no repeated blocks.*give target_modules.*linear modules are 0, 2"):
        find(lone)


def test_torch_transformer_adapts_the_attention_module_itself():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert names(find(model)) == ["layers.0.self_attn", "layers.0.linear2", "layers.1.self_attn", "layers.1.linear2"]
    with pytest.raises(TargetError, match=r"reads its weights without calling it; name layers\.0\.self_attn instead"):
        find(model, target_modules=("out_proj",))


def test_adapters_are_never_targets():
    model = build("llama")
    attach(model, AdapterConfig(bottleneck_dim=4))
    before = names(find(build("llama"), target_modules=("down_proj",)))
    assert names(find(model, target_modules=("down_proj",))) == before  # adapters have a down_proj, too


def test_widths_are_those_of_the_blocks():
    """A bottleneck is compared with the module of its own block; one that a factor asks for is as wide as it asks."""
    modules = base_modules(build("bert"))
    for option, widths in (("reduction_factor", {0: 2, 1: 8}), ("bottleneck_dim", {0: 2, 1: 4})):
        assert len(find_targets(modules, AdapterConfig(**{option: widths}))[0]) == 4
    assert len(find_targets(modules, AdapterConfig(reduction_factor={0: 0.5, 1: 4}))[0]) == 4
