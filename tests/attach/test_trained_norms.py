"""`train_norms`: copies of the model's own norms in the adapted blocks, trained beside the adapter."""

import copy

import pytest
import torch
from mixed_cases import alone
from model_state import assert_same, fingerprint
from tiny_adapters import randomise
from tiny_models import build, inputs_for, plain_model, run
from torch import nn

from adapterx import (
    AdapterConfig,
    CheckpointError,
    ConfigError,
    TargetError,
    adapter_parameters,
    attach,
    detach,
    disabled,
    load_adapter,
    mixed,
    save_adapter,
    set_active,
)

HOUSLBY = AdapterConfig(bottleneck_dim=4, train_norms=True)
PFEIFFER = AdapterConfig(bottleneck_dim=4, train_norms=True, placement="normed_sum", positions=("feed_forward",))
NORMS = tuple(f"encoder.layer.{i}.{part}.LayerNorm" for i in range(2) for part in ("attention.output", "output"))


def with_own_norms(model, name):
    """Return a copy of the base model in which the trained norms of an adapter stand in place of the model's own."""
    base = copy.deepcopy(model)
    state = {path: base.get_submodule(path).adapterx_copies[name].state_dict() for path in NORMS}
    detach(base)
    for path, values in state.items():
        base.get_submodule(path).load_state_dict(values)
    return base


def test_the_norms_of_the_adapted_blocks_are_copied_and_no_others():
    report = attach(build("bert"), HOUSLBY)
    assert report.modules_to_save == NORMS
    assert f"{NORMS[0]}: trained copy" in str(report)
    assert (
        attach(build("bert"), AdapterConfig(bottleneck_dim=4, train_norms=True, layers=(1,))).modules_to_save
        == (NORMS[2:])
    )
    llama = attach(build("llama"), HOUSLBY).modules_to_save
    assert len(llama) == 4
    assert all(path.endswith(("input_layernorm", "post_attention_layernorm")) for path in llama)
    copied = AdapterConfig(
        bottleneck_dim=4, train_norms=True, positions=("feed_forward",), modules_to_save=("blocks.0.norm",)
    )
    assert attach(plain_model(), copied).modules_to_save == ("blocks.0.norm", "blocks.1.norm")


@pytest.mark.parametrize("config", [HOUSLBY, PFEIFFER], ids=["houlsby", "pfeiffer"])
@pytest.mark.parametrize("order", [False, True])
def test_is_the_model_with_other_norms(config, order, tmp_path):
    model = build("bert").double()
    before, inputs = fingerprint(model), inputs_for("bert", model)
    base = run(model, inputs)
    if order:  # an adapter that hangs there before, inactive
        attach(model, PFEIFFER, "other")
    attach(model, config, "a")
    assert torch.equal(run(model, inputs), base)
    randomise(model)
    bare = with_own_norms(model, "a")
    attach(bare, AdapterConfig(**config.to_dict() | {"train_norms": False}), "a")
    with torch.no_grad():
        own = dict(adapter_parameters(model, "a"))
        for key, parameter in adapter_parameters(bare, "a"):
            parameter.copy_(own[key])
    torch.testing.assert_close(run(model, inputs), run(bare, inputs), atol=1e-12, rtol=1e-12)
    cotangent = torch.randn_like(base)
    run(model, inputs).backward(cotangent)
    bare.requires_grad_(True)
    run(bare, inputs).backward(cotangent)
    for path in NORMS:
        twin = bare.get_submodule(path)
        for key, parameter in model.get_submodule(path).adapterx_copies["a"].named_parameters():
            torch.testing.assert_close(parameter.grad, twin.get_parameter(key).grad, atol=1e-11, rtol=1e-11)
    wanted = run(model, inputs)
    with disabled(model):
        assert torch.equal(run(model, inputs), base)
    assert torch.equal(run(copy.deepcopy(model), inputs), wanted)
    save_adapter(model, tmp_path, "a")
    detach(model)
    assert_same(before, fingerprint(model))
    assert torch.equal(run(model, inputs), base)
    assert load_adapter(model, tmp_path).modules_to_save == NORMS
    assert torch.equal(run(model, inputs), wanted)


def test_several_adapters_at_once():
    model = build("bert").double()
    inputs = inputs_for("bert", model, batch=5)
    for name, config in {"h": HOUSLBY, "p": PFEIFFER, "plain": AdapterConfig(bottleneck_dim=3)}.items():
        attach(model, config, name)
    randomise(model)
    names = ["p", "h", None, "plain", "p"]
    wanted = alone(model, names, inputs)
    with mixed(model, names):
        torch.testing.assert_close(run(model, inputs), wanted, atol=1e-12, rtol=1e-12)
    set_active(model, "p")
    torch.testing.assert_close(run(model, inputs)[0], wanted[0], atol=1e-12, rtol=1e-12)


def test_half_bases_train_norms_in_float32():
    model = build("llama").bfloat16()
    inputs = inputs_for("llama", model)
    base = run(model, inputs)
    attach(model, HOUSLBY)
    assert {parameter.dtype for _, parameter in adapter_parameters(model)} == {torch.float32}
    found = run(model, inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, base)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ConfigError, match="AdapterConfig: train_norms must be True or False, got 'all'"):
        AdapterConfig(bottleneck_dim=2, train_norms="all")
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    with pytest.raises(
        TargetError, match=r"attach: train_norms must be False where .* got adapted modules in no block"
    ):
        attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("0",), train_norms=True))
    bare = plain_model()
    for block in bare.blocks:
        block.norm = nn.BatchNorm1d(8)
    with pytest.raises(TargetError, match=r"no norms with weights, got adapted modules in blocks\.0, blocks\.1"):
        attach(bare, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), train_norms=True))


def test_files_of_other_norms_are_refused(tmp_path):
    model = build("bert")
    attach(model, HOUSLBY)
    save_adapter(model, tmp_path)
    other = build("bert")
    other.encoder.layer[0].output.LayerNorm = nn.Identity()
    with pytest.raises(CheckpointError, match=r"unknown tensors .'encoder.layer.0.output.LayerNorm.bias'"):
        load_adapter(other, tmp_path)
