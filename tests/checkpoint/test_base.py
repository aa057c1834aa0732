"""The base model that a file was written for is told from others by its weights."""

import copy
import json

import pytest
import torch
import transformers
from saved_adapters import CONFIG, PLAIN, adapted_plain, assert_refused, edit, randomise
from tiny_models import build, plain_model
from torch import nn

from adapterx import (
    AdapterConfig,
    CheckpointError,
    adapter_names,
    attach,
    detach,
    load_adapter,
    restore_adapter,
    save_adapter,
)
from adapterx.checkpoint import restore_trained, save_trained
from adapterx.checkpoint.base import checksum
from adapterx.heads import SequenceClassifier


def test_the_checksum_is_of_all_values_and_of_nothing_else():
    state = plain_model().state_dict()
    known = checksum(state)
    assert checksum(dict(reversed(state.items()))) == known
    assert checksum({name: nn.Parameter(tensor.clone()) for name, tensor in state.items()}) == known
    strided = {name: torch.stack([tensor, tensor], dim=-1)[..., 0] for name, tensor in state.items()}
    assert checksum(strided) == known
    for name, tensor in state.items():
        changed = tensor.clone()
        changed.view(-1)[-1] = torch.nextafter(changed.view(-1)[-1], torch.tensor(9.0))
        assert checksum(state | {name: changed}) != known
    assert checksum({name: tensor.double() for name, tensor in state.items()}) != known
    assert checksum({name: tensor[..., None] for name, tensor in state.items()}) != known
    assert checksum({f"x.{name}": tensor for name, tensor in state.items()}) != known
    assert checksum({}) == checksum({})


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
)
def test_the_checksum_takes_every_dtype(dtype):
    one, two = torch.zeros(3, 2).to(dtype), torch.ones(3, 2).to(dtype)
    assert checksum({"a": one, "scalar": one[0, 0], "empty": one[:0]}) != checksum({"a": two})


def freed():
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("make", [freed, lambda: torch.ones(4, device="meta"), lambda: torch.eye(2).to_sparse()])
def test_weights_that_are_not_in_memory_have_no_checksum(make):
    with pytest.raises(CheckpointError, match=r"must be in memory, got none for \['b'\]"):
        checksum({"a": torch.ones(2), "b": make()})


# --- adapters and the base that they were trained on ------------------------------------------------------------------


def saved_bert(folder, model, **values):
    attach(model, AdapterConfig(bottleneck_dim=4, **values))
    randomise(model)
    save_adapter(model, folder)
    detach(model)
    return model


def changed(model, name="encoder.layer.1.output.dense.weight", by=1e-6):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] += by
    return model


def test_another_base_of_the_same_shape_is_refused(tmp_path):
    model = saved_bert(tmp_path, build("bert"))
    other = build("bert")
    with pytest.raises(
        CheckpointError,
        match=r"^load_adapter: the base model must be the one that .* was saved from \('BertModel'\), got other "
        r"weights in encoder.layer.0.attention.output.dense; check_base=False takes another one$",
    ):
        load_adapter(other, tmp_path)
    assert adapter_names(other) == ()
    load_adapter(other, tmp_path, check_base=False)
    load_adapter(model, tmp_path)


def test_one_changed_number_is_noticed(tmp_path):
    model = saved_bert(tmp_path, build("bert"))
    with pytest.raises(CheckpointError, match=r"got other weights in encoder\.layer\.1\.output\.dense"):
        load_adapter(changed(model), tmp_path)
    with pytest.raises(CheckpointError, match=r"got other weights in encoder\.layer\.0\.attention\.output\.dense"):
        load_adapter(changed(model, "encoder.layer.0.attention.output.dense.bias"), tmp_path)


def test_what_the_adapter_does_not_hang_on_may_differ(tmp_path):
    model = saved_bert(tmp_path, build("bert"))
    task = transformers.BertForSequenceClassification(model.config)  # a head of its own
    task.bert.load_state_dict(model.state_dict())
    task.resize_token_embeddings(120)
    load_adapter(task, tmp_path)
    load_adapter(SequenceClassifier(copy.deepcopy(model), 3), tmp_path)
    attach(model, AdapterConfig(bottleneck_dim=3), "second")
    attach(model, AdapterConfig(bottleneck_dim=3, modules_to_save=("pooler",)), "third")
    load_adapter(model, tmp_path)
    save_adapter(model, tmp_path / "again", "default")
    load_adapter(copy.deepcopy(task), tmp_path / "again", "again")


@pytest.mark.parametrize(
    "dtypes", [(a, b) for a in ("float32", "bfloat16", "float16") for b in ("float64", "bfloat16")]
)
def test_other_dtypes_of_one_base_are_taken_and_other_bases_are_not(dtypes, tmp_path):
    saved, loaded = (getattr(torch, dtype) for dtype in dtypes)
    original = build("bert")
    saved_bert(tmp_path, copy.deepcopy(original).to(saved))
    load_adapter(copy.deepcopy(original).to(loaded), tmp_path)
    with pytest.raises(CheckpointError, match="got other weights"):
        load_adapter(build("bert").to(loaded), tmp_path)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter *= 1 + 2**-5  # as if it had been trained further
    with pytest.raises(CheckpointError, match="got other weights"):
        load_adapter(original.to(loaded), tmp_path)


def test_weights_that_are_no_plain_floats_are_not_compared(tmp_path):
    model = plain_model()
    with torch.no_grad():
        for block in model.blocks:
            block.narrow.weight[0, 0] = float("nan")
    attach(model, PLAIN)
    save_adapter(model, tmp_path / "nan")
    load_adapter(plain_with_nan := copy.deepcopy(model), tmp_path / "nan", "twin")
    load_adapter(plain_with_nan.double(), tmp_path / "nan", "other")
    quantised = plain_model()
    for block in quantised.blocks:
        weight = block.narrow.weight.data
        block.narrow.weight = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)
    load_adapter(quantised, tmp_path / "nan")
    save_adapter(quantised, tmp_path / "quantised")
    record = json.loads((tmp_path / "quantised" / CONFIG).read_text())["base_check"]
    assert set(record["weights"].values()) == {None}
    load_adapter(plain_model(), tmp_path / "quantised")


def test_computed_weights_are_another_state(tmp_path):
    model = plain_model()
    for block in model.blocks:
        nn.utils.parametrizations.weight_norm(block.narrow)
    attach(model, PLAIN)
    save_adapter(model, tmp_path)
    twin = plain_model()
    for block in twin.blocks:
        nn.utils.parametrizations.weight_norm(block.narrow)
    load_adapter(twin, tmp_path)
    with pytest.raises(CheckpointError, match="got other weights"):
        load_adapter(plain_model(), tmp_path)


@pytest.mark.parametrize("target", ["blocks.0", "blocks.0.norm", "classifier"])
def test_whole_blocks_norms_and_heads_are_compared(target, tmp_path):
    model = plain_model()
    model.config = type("Config", (), {"hidden_size": 8})()
    bare = copy.deepcopy(model)
    config = AdapterConfig(bottleneck_dim=2, target_modules=(target,))
    if target == "classifier":
        config = AdapterConfig(bottleneck_dim=2, target_modules=(target,), modules_to_save=("blocks.1.norm",))
    attach(model, config)
    randomise(model)
    save_adapter(model, tmp_path)
    load_adapter(copy.deepcopy(bare), tmp_path)
    name = next(name for name, _ in bare.named_parameters() if name.startswith(f"{target}."))
    with pytest.raises(CheckpointError, match=rf"got other weights in {target};"):
        load_adapter(changed(bare, name), tmp_path)


def test_model_types_are_compared_too(tmp_path):
    """Two types of one shape, made of one seed, have equal weights and other meanings."""
    torch.manual_seed(0)
    bert = saved_bert(tmp_path, build("bert"))
    other = build("camembert")
    other.load_state_dict(bert.state_dict(), strict=False)
    with pytest.raises(CheckpointError, match=r"of model type \['bert'\], got \['camembert'\]; check_base=False"):
        load_adapter(other, tmp_path)
    load_adapter(other, tmp_path, check_base=False)


def test_a_part_of_a_larger_model_keeps_its_type(tmp_path):
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*[build("bert").config] * 2)
    both = transformers.EncoderDecoderModel(config)
    part = saved_bert(tmp_path / "part", both.encoder)
    load_adapter(both.encoder, tmp_path / "part")
    save_adapter(both, tmp_path / "whole")
    assert "encoder-decoder" in json.loads((tmp_path / "whole" / CONFIG).read_text())["base_check"]["model_types"]
    detach(both)
    load_adapter(copy.deepcopy(part), tmp_path / "whole")


def test_restoring_compares_what_is_not_trained(tmp_path):
    save_adapter(adapted_plain(), tmp_path)
    model = adapted_plain(seed=2)
    restore_adapter(model, tmp_path)
    other = changed(model, "blocks.1.narrow.bias", by=1.0)
    with pytest.raises(
        CheckpointError, match=r"^restore_adapter: the base model .*other weights in blocks\.1\.narrow;"
    ):
        restore_adapter(other, tmp_path)
    restore_adapter(other, tmp_path, check_base=False)
    other.blocks[1].narrow.bias.requires_grad_(True)  # the model is training it: it will be restored, or be left behind
    restore_adapter(other, tmp_path)


def test_a_base_that_is_trained_with_its_adapter_resumes(tmp_path):
    model = adapted_plain()
    model.blocks[1].narrow.requires_grad_(True)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        model.blocks[1].narrow.weight += 1
    save_trained(model, tmp_path)
    restore_trained(fresh, tmp_path)
    assert torch.equal(fresh.blocks[1].narrow.weight, model.blocks[1].narrow.weight)
    with pytest.raises(
        CheckpointError, match=r"^restore_trained: the base model .*other weights in blocks\.0\.narrow;"
    ):
        restore_trained(changed(fresh, "blocks.0.narrow.weight"), tmp_path)
    restore_trained(changed(fresh, "blocks.0.narrow.weight"), tmp_path, check_base=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: [], "base_check of .* must hold 'model_types' and 'weights'"),
        (lambda record: {"weights": {}}, "must hold 'model_types' and 'weights'"),
        (lambda record: record | {"model_types": [5]}, "must hold 'model_types' and 'weights'"),
        (lambda record: record | {"weights": []}, "must hold 'model_types' and 'weights'"),
        (lambda record: record | {"weights": {"blocks.9": None}}, r"must be about its modules, got \['blocks.9'\]"),
        *(
            (lambda record, other=other: record | {"weights": {"blocks.0.narrow": other}}, "what save_adapter records")
            for other in (
                [],
                {},
                {"dtypes": [], "sha256": "0" * 64, "sample": [0.5] * 8},
                {"dtypes": ["int8"], "sha256": "0" * 64, "sample": [0.5] * 8},
                {"dtypes": ["float32"], "sha256": "0" * 63, "sample": [0.5] * 8},
                {"dtypes": ["float32"], "sha256": "0" * 64, "sample": [0.5] * 7},
                {"dtypes": ["float32"], "sha256": "0" * 64, "sample": [True] * 8},
            )
        ),
    ],
)
def test_a_record_that_cannot_be_is_refused(saved, change, message):
    record = json.loads((saved / CONFIG).read_text())["base_check"]
    edit(saved, base_check=change(record))
    assert_refused(saved, message)
