"""Training inside `mixed`: gradients, frozen parameters, backward after the block, checkpointing, dropout."""

import pytest
import torch
from mixed_cases import HIDDEN_STATES, NAMES, adapted, alone_outside, call, small_model
from model_state import flags
from tiny_adapters import randomise
from tiny_models import inputs_for, run
from torch import nn

from adapterx import AdapterConfig, adapter_parameters, attach, disabled, mixed, set_active


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_gradients_reach_exactly_the_named_adapters(name):
    model = adapted(name).train()
    names = [key for key in NAMES if key != "plain"]
    inputs = inputs_for(name, model, batch=len(names))
    wanted = {}
    for index, adapter in enumerate(names):
        set_active(model, adapter)
        loss = run(model, inputs)[index].square().sum()
        for key, parameter in adapter_parameters(model, adapter) if adapter else ():
            (wanted[key],) = torch.autograd.grad(loss, [parameter], retain_graph=True)
    with mixed(model, names):
        run(model, inputs).square().sum().backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == wanted.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], atol=1e-10, rtol=1e-8)


def test_what_the_user_freezes_inside_stays_frozen():
    model = small_model()
    before = flags(model)
    with mixed(model, ["a", "b", "b"]):
        for _, parameter in adapter_parameters(model, "a"):
            parameter.requires_grad_(False)
        model(HIDDEN_STATES).sum().backward()
        assert all(parameter.grad is None for _, parameter in adapter_parameters(model, "a"))
        assert all(parameter.grad is not None for _, parameter in adapter_parameters(model, "b"))
    assert flags(model) == before


def test_backward_after_the_block_is_refused_where_it_would_lose_gradients():
    model = small_model()  # "a" is active
    with mixed(model, ["a", "a", None]):
        loss = model(HIDDEN_STATES).sum()
    loss.backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(model, "a"))
    with mixed(model, ["a", "a", "b"]):
        loss = model(HIDDEN_STATES).sum()
    with pytest.raises(RuntimeError, match=r"mixed: backward\(\) must run inside the `with` block"):
        loss.backward(retain_graph=True)
    set_active(model, ["a", "b"])
    loss.backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(model, "b"))


@pytest.mark.parametrize("fused", [True, False])
def test_training_and_evaluating_in_turns(fused):
    model = small_model(scaling="learned")
    names = ["b", "c", "a"]
    optimizer = torch.optim.AdamW([p for _, p in adapter_parameters(model)], lr=0.1, fused=fused)
    with mixed(model, names):
        for _ in range(3):
            loss = model(HIDDEN_STATES).square().sum()
            with torch.no_grad():
                model(HIDDEN_STATES)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                found = model(HIDDEN_STATES)
                torch.testing.assert_close(found, alone_outside(model, names, HIDDEN_STATES, call))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    model = adapted().train()
    inputs = inputs_for("bert", model, batch=len(NAMES))

    def gradients():
        model.zero_grad()
        with mixed(model, NAMES):
            run(model, inputs).square().mean().backward()
        return [parameter.grad.clone() for _, parameter in adapter_parameters(model)]

    plain = gradients()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for one, other in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(one, other)


def test_one_rate_of_dropout_draws_like_a_single_adapter():
    model = small_model(dropout=0.5).train()
    set_active(model, "b")
    torch.manual_seed(3)
    expected = model(HIDDEN_STATES)
    with mixed(model, ["b"] * 3):
        torch.manual_seed(3)
        torch.testing.assert_close(model(HIDDEN_STATES), expected)
        model.eval()
        found = model(HIDDEN_STATES)
    torch.testing.assert_close(found, model(HIDDEN_STATES))


def test_every_adapter_has_its_own_rate_of_dropout():
    rates = {"none": 0.0, "some": 0.2, "most": 0.9}
    model = nn.Sequential(nn.Linear(64, 64))
    for name, rate in rates.items():
        attach(model, AdapterConfig(bottleneck_dim=4, target_modules=("0",), dropout=rate), name)
    randomise(model)
    names = ["some", None, "most", "none"]
    hidden_states = torch.randn(4, 500, 64)
    with torch.no_grad(), disabled(model):
        base = model(hidden_states)
    with torch.no_grad(), mixed(model, names):
        branch = model.eval()(hidden_states) - base
        dropped = model.train()(hidden_states) - base
        model[0].adapterx["most"].eval()
        half = model(hidden_states) - base
    for index, rate in enumerate(rates.get(name, 0.0) for name in names):
        kept = dropped[index] != 0
        if names[index] is not None:
            assert abs(float(kept.float().mean()) - (1 - rate)) < 0.01
        torch.testing.assert_close(dropped[index][kept], branch[index][kept] / (1 - rate), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(half[2], branch[2])
    assert not torch.allclose(half[0], branch[0])
