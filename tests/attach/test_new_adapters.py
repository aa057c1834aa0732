"""New adapters: their seed, and the dtype, device and mode that they take from their module."""

import pytest
import torch
from attach_cases import PLACEMENTS, SEQUENTIAL
from tiny_adapters import randomise
from tiny_models import build, inputs_for, plain_model, run
from torch import nn

from adapterx import AdapterConfig, AdapterSet, TargetError, adapter_parameters, attach, detach


def test_seed_is_reproducible_and_leaves_the_global_random_numbers():
    first, second = build("bert"), build("bert")
    before = torch.get_rng_state()
    attach(first, SEQUENTIAL, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    attach(second, SEQUENTIAL, seed=0)
    weights = [dict(adapter_parameters(model)) for model in (first, second)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    downs = [tensor for name, tensor in weights[0].items() if name.endswith("down_proj.weight")]
    assert not torch.equal(downs[0], downs[1])  # one seed for the model, not the same weights everywhere
    other = build("bert")
    attach(other, SEQUENTIAL, seed=1)
    assert not torch.equal(next(adapter_parameters(other))[1], next(adapter_parameters(first))[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@PLACEMENTS
def test_adapters_are_trained_in_float32_or_what_is_wider(config, dtype):
    model = build("bert").to(dtype)
    inputs = inputs_for("bert", model)
    base = run(model, inputs)
    attach(model, config)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {parameter.dtype for _, parameter in adapter_parameters(model)} == {wanted}
    assert torch.equal(run(model, inputs), base)
    assert run(model, inputs).dtype == dtype
    randomise(model)
    run(model, inputs).sum().backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(model))


class IntegerLinear(nn.Module):
    """A quantised layer in small: integer weights, bfloat16 results."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().max() / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, hidden_states):
        return (hidden_states.float() @ (self.weight.float() * self.scale).T).bfloat16()


@PLACEMENTS
def test_quantised_modules_get_float32_adapters(config):
    model = plain_model().bfloat16()
    for block in model.blocks:
        block.narrow = IntegerLinear(block.narrow.float().requires_grad_(False))
    hidden_states = torch.randn(5, 8).bfloat16()
    base = model(hidden_states)
    options = {"positions": ("feed_forward",), "placement": config.placement}
    attach(model, AdapterConfig(bottleneck_dim=4, **options))
    assert {parameter.dtype for _, parameter in adapter_parameters(model)} == {torch.float32}
    assert torch.equal(model(hidden_states), base)
    model(hidden_states).sum().backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(model))
    detach(model)
    with pytest.raises(TargetError, match=r"floating-point parameters, got 'blocks\.0\.narrow'"):
        attach(model, AdapterConfig(bottleneck_dim=4, target_modules=("widen",), modules_to_save=("blocks.0.narrow",)))


def test_meta_models_and_meta_contexts():
    with torch.device("meta"):
        model = plain_model()
    attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",)))
    assert all(parameter.is_meta for _, parameter in adapter_parameters(model))
    assert model(torch.randn(3, 8, device="meta")).shape == (3, 3)
    model.to_empty(device="cpu")
    assert not any(parameter.requires_grad for parameter in model.classifier.parameters())
    detach(model)
    assert all(parameter.requires_grad for parameter in model.parameters())  # new objects, old flags
    model = plain_model()
    with torch.device("meta"):
        attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",)), seed=0)
    assert model(torch.randn(3, 8)).isfinite().all()


def test_training_mode_follows_the_module():
    model = plain_model().train()
    config = AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), dropout=0.5)
    attach(model, config, "a")
    model.eval()
    attach(model, config, "b")
    sets = [module for module in model.modules() if isinstance(module, AdapterSet)]
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(adapter.training for adapters in sets for adapter in adapters.values())
