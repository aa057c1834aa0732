"""Bases in 16 bits: what is trained on them is float32, unless the user chooses, and nothing else notices."""

import pytest
import torch
from tiny_adapters import randomise
from tiny_models import build, inputs_for, run
from torch import nn

from adapterx import (
    AdapterConfig,
    adapter_parameters,
    attach,
    disabled,
    load_adapter,
    mixed,
    restore_adapter,
    save_adapter,
    set_active,
)
from adapterx.compose import Average

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
CONFIG = AdapterConfig(bottleneck_dim=4, modules_to_save=("pooler.dense", "embeddings.LayerNorm"))


@pytest.fixture
def model():
    return build("bert")


def loss_of(model, inputs):
    states, pooled = model(**inputs)[:2]
    return states.float().square().mean() + pooled.float().square().mean()


@pytest.mark.parametrize("placement", ["sequential", "parallel", "normed_sum"])
@HALF
def test_a_grad_scaler_trains_them(model, dtype, placement):
    model.to(dtype)
    inputs = inputs_for("bert", model)
    attach(model, AdapterConfig(bottleneck_dim=4, placement=placement, modules_to_save=("pooler.dense",)))
    before = {name: parameter.clone() for name, parameter in adapter_parameters(model)}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(2):
        with torch.autocast("cpu", dtype=dtype):
            loss = loss_of(model, inputs)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in adapter_parameters(model))


@HALF
def test_trained_copies_are_float32_and_answer_in_the_dtype_of_their_module(model, dtype):
    model.to(dtype)
    inputs = inputs_for("bert", model)
    base = model(**inputs)
    attach(model, CONFIG, "a")
    attach(model, CONFIG, "b")
    assert {parameter.dtype for _, parameter in adapter_parameters(model)} == {torch.float32}
    for names in ("a", ["a", "b"], Average("a", "b")):
        set_active(model, names)
        for found, wanted in zip(model(**inputs)[:2], base[:2], strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found, wanted, atol=0.02, rtol=0.02)
    for names in (["a", None], ["b", "a"], ["a", "a"]):
        with mixed(model, names):
            found = model(**inputs)
            assert found[1].dtype == dtype
            torch.testing.assert_close(found[1], base[1], atol=0.02, rtol=0.02)
    loss_of(model, inputs).backward()
    assert all(p.grad.dtype == torch.float32 for _, p in adapter_parameters(model, "b"))


@HALF
def test_dtype_chooses_for_adapters_and_copies(model, dtype):
    model.to(dtype)
    attach(model, CONFIG, dtype=dtype)
    assert {parameter.dtype for _, parameter in adapter_parameters(model)} == {dtype}


def test_copies_in_another_dtype_than_a_float32_base(model):
    inputs = inputs_for("bert", model)
    base = model(**inputs)[1]
    attach(model, CONFIG, dtype=torch.bfloat16)
    assert model(**inputs)[1].dtype == torch.float32
    torch.testing.assert_close(model(**inputs)[1], base, atol=0.02, rtol=0.02)


def test_a_cast_of_the_whole_model_casts_all(model):
    attach(model.half(), CONFIG)
    model.half()
    inputs = inputs_for("bert", model)
    assert run(model, inputs).dtype == torch.float16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


@HALF
def test_saved_and_loaded_without_a_loss(model, dtype, tmp_path):
    model.to(dtype)
    inputs = inputs_for("bert", model)
    attach(model, CONFIG, "a")
    randomise(model)
    save_adapter(model, tmp_path)
    adapted = run(model, inputs)
    twin = build("bert").to(dtype)
    twin.load_state_dict(model.state_dict(), strict=False)
    load_adapter(twin, tmp_path)
    for (_, mine), (_, other) in zip(adapter_parameters(model), adapter_parameters(twin), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(run(twin, inputs), adapted)
    with disabled(twin):
        assert not torch.equal(run(twin, inputs), adapted)
    load_adapter(twin, tmp_path, "narrow", dtype=dtype)
    assert {p.dtype for _, p in adapter_parameters(twin, "narrow")} == {dtype}
    restore_adapter(twin, tmp_path, "narrow")


class Gate(nn.Module):
    """A module with tensors in containers, keywords and a named output."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, states, *, pair, scale=None, mask=None):
        out = self.linear(states) + pair[0] * scale
        return {"states": out, "mask": mask, "more": (out, [pair[1]])}


def test_containers_around_a_copy_keep_their_dtypes():
    model = nn.Sequential()
    model.add_module("body", nn.Linear(4, 4))
    model.add_module("gate", Gate())
    model.half()
    attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("body",), modules_to_save=("gate",)))
    x, mask = torch.randn(2, 4).half(), torch.ones(2, dtype=torch.long)
    found = model.gate(x, pair=(x, x), scale=2.0, mask=mask)
    with disabled(model):
        base = model.gate(x, pair=(x, x), scale=2.0, mask=mask)
    assert found["mask"] is mask
    assert {found["states"].dtype, found["more"][0].dtype, found["more"][1][0].dtype} == {torch.float16}
    torch.testing.assert_close(found["states"], base["states"], atol=0.01, rtol=0.01)
