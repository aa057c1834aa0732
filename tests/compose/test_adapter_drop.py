"""Blocks without their adapters: for a while, for good, at random; and what a backward pass is spared."""

import pytest
import torch
from mixed_cases import adapted, alone_outside
from tiny_models import build, inputs_for, run

from adapterx import (
    AdapterConfig,
    Average,
    ConfigError,
    active_adapters,
    adapter_drop,
    adapter_parameters,
    attach,
    detach,
    mixed,
    set_active,
    skip_layers,
)

CONFIGS = {"a": AdapterConfig(bottleneck_dim=4), "b": AdapterConfig(bottleneck_dim=3, placement="parallel")}


@pytest.fixture
def model():
    return adapted("bert", CONFIGS)


def without(model, layers):
    """Return the output of a model on which the adapters of some blocks were never attached."""
    inputs = inputs_for("bert", model)
    twin = build("bert").double()
    twin.load_state_dict({key: value for key, value in model.state_dict().items() if ".adapterx" not in key})
    for name in CONFIGS:
        kept = tuple(block for block in (0, 1) if block not in layers)
        values = CONFIGS[name].to_dict() | {"layers": kept}
        attach(twin, AdapterConfig.from_dict(values), name)
    own = dict(adapter_parameters(model))
    with torch.no_grad():
        for key, parameter in adapter_parameters(twin):
            parameter.copy_(own[key])
    set_active(twin, Average("a", "b"))
    return run(twin, inputs)


def test_skipped_blocks_are_as_if_nothing_hung_there(model):
    inputs = inputs_for("bert", model)
    set_active(model, Average("a", "b"))
    whole = run(model, inputs)
    with skip_layers(model, [0]):
        torch.testing.assert_close(run(model, inputs), without(model, [0]), rtol=0, atol=1e-12)
        assert active_adapters(model) == ("a", "b")
        with skip_layers(model, {1}):
            base = run(model, inputs)
    assert torch.equal(run(model, inputs), whole)
    set_active(model, Average("a", "b"), skip_layers=[0])
    torch.testing.assert_close(run(model, inputs), without(model, [0]), rtol=0, atol=1e-12)
    late = AdapterConfig(bottleneck_dim=2, target_modules=("intermediate.dense",))
    attach(model, late, "late", active=False)
    detach(model, "late")
    torch.testing.assert_close(run(model, inputs), without(model, [0]), rtol=0, atol=1e-12)
    set_active(model, None)
    assert torch.equal(run(model, inputs), base)
    set_active(model, Average("a", "b"))
    assert torch.equal(run(model, inputs), whole)


def test_a_backward_pass_ends_above_the_skipped_blocks(model):
    set_active(model, "a")
    seen = {}
    for number, layer in enumerate(model.encoder.layer):
        layer.register_forward_hook(
            lambda _m, _a, output, number=number: seen.update(
                {number: output[0] if isinstance(output, tuple) else output}
            )
        )
    inputs = inputs_for("bert", model)
    with skip_layers(model, [0]):
        output = run(model, inputs)
    assert not seen[0].requires_grad
    assert seen[1].requires_grad
    output.sum().backward()
    with_gradient = {key.split(".adapterx.")[0] for key, p in adapter_parameters(model, "a") if p.grad is not None}
    assert with_gradient == {"encoder.layer.1.attention.output.dense", "encoder.layer.1.output.dense"}


def test_mixed_batches_skip_too(model):
    inputs = inputs_for("bert", model, batch=3)
    names = ["b", None, "a"]
    with torch.no_grad(), skip_layers(model, [1]):
        set_active(model, None)
        with mixed(model, names):
            found = run(model, inputs)
    set_active(model, None, skip_layers=[1])
    rows = []
    for index, name in enumerate(names):
        set_active(model, name, skip_layers=[1])
        rows.append(run(model, inputs)[index])
    expected = torch.stack(rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(alone_outside(model, names, inputs), expected)


def test_random_numbers_of_blocks(model):
    generator = torch.Generator().manual_seed(0)
    counts = set()
    for _ in range(20):
        with adapter_drop(model, generator=generator) as count:
            counts.add(count)
            assert len(model.encoder.layer[0].output.dense.adapterx.route.steps) == (0 if count else 1)
    assert counts == {0, 1}
    with adapter_drop(model, 0) as count:
        assert count == 0
    with (
        pytest.raises(ConfigError, match="at_most must be a number of blocks from 0 to 2, got 3"),
        adapter_drop(model, 3),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="skip_layers: layers must be block indices from 0 up"),
        skip_layers(model, [-1]),
    ):
        pass
    with pytest.raises(ConfigError, match="set_active: layers must be block indices"):
        set_active(model, "a", skip_layers="01")
