"""What `mixed` keeps between forward passes: weights stacked once, anew when they change, freed at the end."""

import gc
import weakref

import pytest
import torch
from mixed_cases import HIDDEN_STATES, alone_outside, call, groups_of, small_model
from torch import nn

from adapterx import adapter_parameters, mixed
from adapterx.compose import weights


@pytest.fixture
def stacked(monkeypatch):
    """Count how often weights are stacked."""
    count = []
    stack = weights.stack_weights
    monkeypatch.setattr(weights, "stack_weights", lambda *args: (count.append(1), stack(*args))[1])
    return count


def test_weights_are_stacked_once_while_nothing_trains(stacked):
    model = small_model()
    with mixed(model, ["a", "b", "c"]):
        with torch.no_grad():
            first = model(HIDDEN_STATES)
            assert len(stacked) == 4  # two groups on each of two modules
            assert torch.equal(model(HIDDEN_STATES), first)
        with torch.inference_mode():
            assert torch.equal(model(HIDDEN_STATES), first)
        assert len(stacked) == 4
        model.requires_grad_(False)
        assert torch.equal(model(HIDDEN_STATES), first)
        assert len(stacked) == 4


def test_weights_stacked_in_inference_mode_serve_training(stacked):
    model = small_model()
    with torch.inference_mode(), mixed(model, ["a", "b", "c"]):
        model(HIDDEN_STATES)
        count = len(stacked)
        model.requires_grad_(False)
        with torch.inference_mode(False):
            hidden_states = HIDDEN_STATES.clone().requires_grad_()
            model(hidden_states).sum().backward()
    assert len(stacked) == count
    assert hidden_states.grad.abs().sum() > 0


CHANGES = {
    "in place": lambda module, key: getattr(module, key).mul_(2.0),
    "in place, in inference mode": lambda module, key: torch.inference_mode()(getattr(module, key).mul_)(2.0),
    "replaced": lambda module, key: setattr(module, key, nn.Parameter(getattr(module, key) * 2)),
    "other memory": lambda module, key: setattr(getattr(module, key), "data", getattr(module, key) * 2),
    "loaded": lambda module, key: module.load_state_dict({k: v * 2 for k, v in module.state_dict().items()}),
    "assigned": lambda module, key: module.load_state_dict(
        {k: nn.Parameter(v * 2) for k, v in module.state_dict().items()}, assign=True
    ),
}


@pytest.mark.parametrize("key", ["weight", "bias"])
@pytest.mark.parametrize("projection", ["down_proj", "up_proj"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_parameters_are_stacked_anew(change, projection, key):
    model = small_model(scaling="learned")
    names = ["a", "b", "c"]
    with torch.no_grad(), mixed(model, names):
        before = model(HIDDEN_STATES)
        CHANGES[change](getattr(model.blocks[0].narrow.adapterx["b"], projection), key)
        found = model(HIDDEN_STATES)
        assert not torch.allclose(found, before)
        torch.testing.assert_close(found, alone_outside(model, names, HIDDEN_STATES, call))


def test_changed_scaling_and_dtype():
    model = small_model(scaling="learned")
    names = ["a", "b", "c"]
    with torch.no_grad(), mixed(model, names):
        model(HIDDEN_STATES)
        model.blocks[1].narrow.adapterx["c"].scaling.mul_(3)
        torch.testing.assert_close(model(HIDDEN_STATES), alone_outside(model, names, HIDDEN_STATES, call))
        model.float()
        found = model(HIDDEN_STATES.float())
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found, alone_outside(model, names, HIDDEN_STATES.float(), call), atol=1e-5, rtol=1e-5
        )


def test_a_model_that_moves_inside_the_block():
    model = small_model()
    with torch.no_grad(), mixed(model, ["a", "b", "c"]):
        model(HIDDEN_STATES)
        model.to("meta")
        assert model(HIDDEN_STATES.to("meta")).is_meta


def test_functional_calls_and_transforms():
    model = small_model()
    names = ["a", "b", "c"]
    parameters = {key: p.detach() * 2 for key, p in adapter_parameters(model)}

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (HIDDEN_STATES,)).square().sum()

    with mixed(model, names):
        with torch.no_grad():
            model(HIDDEN_STATES)  # what is kept from here serves nobody else
        found = torch.func.grad(loss)(parameters)
        leaves = {key: p.clone().requires_grad_() for key, p in parameters.items()}
        expected = torch.autograd.grad(loss(leaves), list(leaves.values()))
    for gradient, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(gradient, other)
        assert gradient.abs().sum() > 0


def test_parametrised_weights_are_never_kept():
    model = small_model()
    names = ["a", "b", "c"]
    projection = model.blocks[0].narrow.adapterx["a"].down_proj
    nn.utils.parametrizations.weight_norm(projection)
    with mixed(model, names):
        with torch.no_grad():
            model(HIDDEN_STATES)
            projection.parametrizations.weight.original0.mul_(2.0)
            torch.testing.assert_close(model(HIDDEN_STATES), alone_outside(model, names, HIDDEN_STATES, call))
        model(HIDDEN_STATES).sum().backward()
        assert projection.parametrizations.weight.original0.grad is not None


def test_the_end_of_the_block_frees_the_stacked_weights():
    model = small_model()
    with torch.no_grad(), mixed(model, ["a", "b", "c"]):
        model(HIDDEN_STATES)
        kept = [weakref.ref(group.weights.cache.weights.down_weight) for group in groups_of(model)]
        assert len(kept) == 4
        kept.append(weakref.ref(groups_of(model)[0].shared))  # which no optimizer holds on to either
    gc.collect()
    assert not any(reference() is not None for reference in kept)
