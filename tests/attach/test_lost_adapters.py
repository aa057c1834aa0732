"""What others do to a model after `attach`: what was recorded must still be there, or it is said what is not."""

import copy
import warnings

import pytest
import torch
import transformers
from model_state import pickled
from tiny_models import SIZES, build, inputs_for, plain_model, run
from torch import nn

from adapterx import (
    AdapterConfig,
    TargetError,
    active_adapters,
    adapter_names,
    adapters,
    attach,
    detach,
    save_adapter,
    set_active,
    summary,
)

CONFIG = AdapterConfig(bottleneck_dim=4)


def causal_model():
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=False)
    return transformers.LlamaForCausalLM(config).eval()


def quantised(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still the way of many
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def assert_noticed(model, folder, match):
    asked = {
        "set_active": lambda: set_active(model, "default"),
        "save_adapter": lambda: save_adapter(model, folder, "default"),
        "summary": lambda: summary(model),
        "adapters": lambda: adapters(model),
        "attach": lambda: attach(model, CONFIG, "more"),
    }
    for name, ask in asked.items():
        with pytest.raises(TargetError, match=rf"^{name}: .*{match}"):
            ask()
    assert not folder.exists()


def test_a_resized_head_is_noticed(tmp_path):
    model = causal_model()
    attach(model, AdapterConfig(bottleneck_dim=4, modules_to_save=("lm_head",)))
    model.resize_token_embeddings(120, mean_resizing=False)
    assert_noticed(model, tmp_path / "a", r"adapter 'default' hangs on, lm_head was replaced")
    detach(model)
    attach(model, AdapterConfig(bottleneck_dim=4, modules_to_save=("lm_head",)))
    set_active(model, "default")
    assert model(torch.tensor([[3, 110]])).logits.shape[-1] == 120


def test_embeddings_resized_under_their_copy_are_noticed(tmp_path):
    model = build("bert")
    attach(model, AdapterConfig(bottleneck_dim=4, modules_to_save=("embeddings",)))
    model.resize_token_embeddings(120, mean_resizing=False)
    match = r"embeddings\.word_embeddings\.weight is \(120, 32\) now and \(99, 32\) in adapter 'default'"
    assert_noticed(model, tmp_path / "a", match)


def test_a_resized_head_that_is_tied_is_noticed(tmp_path):
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    model = transformers.LlamaForCausalLM(config).eval()
    attach(model, AdapterConfig(bottleneck_dim=4, modules_to_save=("lm_head",)))
    model.resize_token_embeddings(120, mean_resizing=False)
    assert_noticed(model, tmp_path / "a", r"lm_head\.weight is \(120, 32\) now and \(99, 32\) in adapter 'default'")


@torch.no_grad()
def test_nested_tensors_are_refused_in_words():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
    attach(model, AdapterConfig(bottleneck_dim=4, target_modules=("linear2",)))
    padding = torch.tensor([[False, True]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TypeError, match=r"attach: adapters on layers\.0\.linear2 must receive strided tensors"):
            model(torch.randn(1, 2, 16), src_key_padding_mask=padding)


def test_embeddings_resized_under_their_adapter_keep_it():
    model = build("bert")
    attach(model, AdapterConfig(bottleneck_dim=4, init_up="near_zero", target_modules=("word_embeddings",)))
    model.resize_token_embeddings(120, mean_resizing=False)
    set_active(model, "default")
    assert summary(model).trainable_adapters > 0


@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_a_quantised_model_is_noticed(placement, tmp_path):
    model = build("bert")
    inputs = inputs_for("bert", model)
    positions = ("feed_forward",)
    attach(model, AdapterConfig(bottleneck_dim=4, placement=placement, positions=positions))
    model = quantised(model)
    match = r"replaced by torch\.ao\.nn\.quantized\.dynamic\.modules\.linear\.Linear, .*quantise the model before"
    with pytest.raises(TargetError, match=match):
        run(model, inputs)
    assert_noticed(model, tmp_path / "a", r"encoder\.layer\.0\.output\.dense, encoder.* were replaced")
    detach(model)
    run(model, inputs)
    attach(model, AdapterConfig(bottleneck_dim=4, placement=placement, positions=positions))
    run(model, inputs)


def test_a_quantised_head_is_noticed():
    model = plain_model()
    attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("norm",), modules_to_save=("classifier",)))
    with pytest.raises(TargetError, match=r"replaced by torch\.ao"):
        quantised(model)(torch.randn(2, 8))


def test_adapters_of_what_is_not_quantised_go_on():
    model = build("gpt2")  # made of Conv1D, which quantize_dynamic leaves
    inputs = inputs_for("gpt2", model)
    attach(model, AdapterConfig(bottleneck_dim=4, init_up="near_zero"))
    assert torch.equal(run(quantised(model), inputs), run(model, inputs))


def test_adapters_whose_maps_were_replaced_say_so():
    model = plain_model()
    attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("norm",)))
    adapter = model.blocks[0].norm.adapterx["default"]
    adapter.up_proj = torch.ao.nn.quantized.dynamic.Linear(2, 8)
    with pytest.raises(TargetError, match=r"attach: adapter 'default' of blocks\.0\.norm must keep its linear maps"):
        model(torch.randn(2, 8))


def test_blocks_that_were_cut_off_are_noticed(tmp_path):
    model = build("bert")
    attach(model, CONFIG)
    model.encoder.layer = model.encoder.layer[1:]
    assert_noticed(model, tmp_path / "a", r"encoder\.layer\.0\.attention\.output\.dense, .* were replaced or taken out")
    assert adapter_names(model.encoder.layer[0]) == ("default",)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, pickled])
def test_copies_remember_as_well(twin_of):
    model = twin_of(causal_model())
    attach(model, AdapterConfig(bottleneck_dim=4, modules_to_save=("lm_head",)))
    twin = twin_of(model)
    set_active(twin, None)
    twin.lm_head = nn.Linear(32, 99)
    with pytest.raises(TargetError, match="lm_head was replaced"):
        set_active(twin, None)
    set_active(model, None)


def test_what_is_legitimate_is_left_in_peace():
    model = build("bert")
    outer = nn.Sequential(model)
    attach(model, CONFIG, "a")
    attach(model, CONFIG, "b")
    detach(outer[0].encoder.layer[0], "a")  # a part
    set_active(outer, ["a", "b"])
    set_active(model.encoder.layer[1], "b")
    model.encoder.layer[0] = torch.compile(model.encoder.layer[0])  # a wrapper
    set_active(outer, "b")
    stage = nn.Sequential(*model.encoder.layer[:1])  # a part in another order
    set_active(stage, "b")
    assert active_adapters(stage) == ("b",)
    detach(outer, "b")
    detach(model)
    assert adapter_names(outer) == ()
    attach(model, CONFIG, "a")
    set_active(copy.deepcopy(model.encoder.layer[1]), "a")
    summary(outer)
    assert not any(key.startswith("_adapterx_rosters") for key in vars(outer))
