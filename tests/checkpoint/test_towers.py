"""The adapter of one part of a model never lands on another part that looks like it."""

import copy

import pytest
import torch
import transformers
from saved_adapters import randomise
from tiny_models import ENCODER_DECODER, Block, build, inputs_for, run
from torch import nn

from adapterx import AdapterConfig, CheckpointError, adapter_names, adapters, attach, detach, load_adapter, save_adapter


def saved_from(part, folder, **values):
    attach(part, AdapterConfig(bottleneck_dim=2, **values))
    randomise(part)
    save_adapter(part, folder)
    detach(part)


def assert_ambiguous(model, folder, *places):
    with pytest.raises(CheckpointError, match=r"^load_adapter: the names in .* must fit the model in one way") as error:
        load_adapter(model, folder)
    assert all(repr(place) in str(error.value) for place in places)
    assert "model.get_submodule(" in str(error.value)
    assert adapter_names(model) == ()


@pytest.fixture
def bart():
    values = ENCODER_DECODER | {"decoder_layers": 2}
    return transformers.BartModel(transformers.BartConfig(**values, dropout=0.0)).eval()


@pytest.mark.parametrize("target", ["fc2", "self_attn.out_proj", r"layers\.\d\.fc1"])
def test_a_tower_of_bart(bart, target, tmp_path):
    target = target if "\\" in target else (target,)
    saved_from(bart.decoder, tmp_path, target_modules=target)
    assert_ambiguous(bart, tmp_path, "encoder", "decoder")
    task = transformers.BartForConditionalGeneration(bart.config)
    assert_ambiguous(task, tmp_path, "model.encoder", "model.decoder")
    load_adapter(bart.decoder, tmp_path)
    assert all(target.module.startswith("decoder.") for target in adapters(bart)["default"].targets)
    detach(bart)
    with pytest.raises(CheckpointError, match="got other weights"):
        load_adapter(bart.encoder, tmp_path)


def test_what_only_one_tower_has_is_certain(bart, tmp_path):
    saved_from(bart.decoder, tmp_path, target_modules=("encoder_attn.out_proj",))
    report = load_adapter(bart, tmp_path)
    assert [target.module for target in report.targets] == [f"decoder.layers.{i}.encoder_attn.out_proj" for i in (0, 1)]


def test_the_whole_model_and_a_part_of_it_that_is_named_alike(bart, tmp_path):
    saved_from(bart, tmp_path, target_modules=("decoder.layers.0.fc2",))
    with pytest.raises(CheckpointError, match=r"got other weights in layers\.0\.fc2"):
        load_adapter(bart.encoder, tmp_path)
    load_adapter(bart.decoder, tmp_path)


def test_the_towers_of_t5(tmp_path):
    model = build("t5")
    saved_from(model.encoder, tmp_path, target_modules=("layer.0.SelfAttention.o",))
    assert_ambiguous(model, tmp_path, "encoder", "decoder")
    load_adapter(model.encoder, tmp_path)


def test_the_towers_of_clip(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": 99}, vision_config=sizes | {"image_size": 8, "patch_size": 4}
    )
    model = transformers.CLIPModel(config)
    saved_from(model.text_model, tmp_path, target_modules=("mlp.fc2",))
    assert_ambiguous(model, tmp_path, "text_model", "vision_model")
    load_adapter(model.text_model, tmp_path)


def test_copies_of_one_encoder_are_two_places_also_where_their_weights_are_equal(tmp_path):
    encoder = build("bert")
    pair = nn.ModuleDict({"query": encoder, "passage": copy.deepcopy(encoder)})
    saved_from(encoder, tmp_path)
    assert_ambiguous(pair, tmp_path, "query", "passage")
    load_adapter(pair["passage"], tmp_path)
    assert {target.module.partition(".")[0] for target in adapters(pair)["default"].targets} == {"passage"}


class Nested(nn.Module):
    """Blocks, and a model inside that has blocks of the same names."""

    def __init__(self, inner=None):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        if inner is not None:
            self.inner = inner

    def forward(self, hidden_states):
        return self.blocks(self.inner(hidden_states) if hasattr(self, "inner") else hidden_states)


class Inner(Nested):
    pass


def test_names_of_the_recorded_class_are_certain_as_they_are(tmp_path):
    torch.manual_seed(0)
    model = Nested(Inner())
    saved_from(model, tmp_path / "whole", target_modules=(r"blocks\.\d\.narrow"))
    report = load_adapter(model, tmp_path / "whole")
    assert [target.module for target in report.targets] == ["blocks.0.narrow", "blocks.1.narrow"]
    detach(model)
    saved_from(model.inner, tmp_path / "inner", target_modules=("narrow",))
    with pytest.raises(CheckpointError, match="they fit as they are, under 'inner'"):
        load_adapter(model, tmp_path / "inner")
    same = Inner(Inner())
    saved_from(same.inner, tmp_path / "same", target_modules=("narrow",))
    with pytest.raises(CheckpointError, match="got other weights"):  # the class does not tell, the weights do
        load_adapter(same, tmp_path / "same")


def test_several_prefixes_to_take_off(tmp_path):
    model = nn.ModuleDict({"a": nn.ModuleDict({"a": nn.ModuleDict({"a": nn.Linear(4, 4)})})})
    saved_from(model, tmp_path, target_modules=("a.a.a",))
    with pytest.raises(CheckpointError, match=r"they fit without 'a\.a', without 'a'"):
        load_adapter(nn.ModuleDict({"a": nn.ModuleDict({"a": nn.Linear(4, 4)})}), tmp_path, check_base=False)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.Sequential(model)])
def test_one_wrapper_is_no_second_place(wrap, tmp_path):
    model = build("bert")
    inputs = inputs_for("bert", model)
    bare = run(model, inputs)
    saved_from(model, tmp_path)
    load_adapter(wrap(model), tmp_path)
    assert not torch.equal(run(model, inputs), bare)


def test_a_trained_copy_outside_the_part_keeps_its_name(tmp_path):
    """A head of the whole stays where it is, though the adapted modules stand under a prefix."""
    model = transformers.BertForSequenceClassification(build("bert").config)
    twin = copy.deepcopy(model)
    bare = copy.deepcopy(nn.ModuleDict({"encoder": model.bert.encoder, "classifier": model.classifier}))
    attach(model, AdapterConfig(bottleneck_dim=2, modules_to_save=("classifier",)))
    randomise(model)
    save_adapter(model, tmp_path)
    wrapped = nn.ModuleDict({"model": twin})
    assert load_adapter(wrapped, tmp_path).modules_to_save == ("model.classifier",)
    report = load_adapter(bare, tmp_path)
    assert report.modules_to_save == ("classifier",)
    found = dict(bare.named_parameters())
    for name, tensor in model.named_parameters():
        if "adapterx" in name:
            assert torch.equal(found[name.removeprefix("bert.")], tensor)
