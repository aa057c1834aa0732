"""`mixed` in low precision and under autocast is as exact as one adapter for the whole batch."""

import pytest
import torch
from mixed_cases import NAMES, adapted, alone, small_model
from tiny_models import inputs_for, run

from adapterx import disabled, mixed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_low_precision(dtype):
    model = adapted(dtype=torch.float32)
    inputs = inputs_for("bert", model, batch=len(NAMES))
    with torch.no_grad():
        exact = alone(model, NAMES, inputs)
        model.to(dtype)
        single = alone(model, NAMES, inputs)
        with mixed(model, NAMES):
            found = run(model, inputs)
    assert found.dtype == dtype
    for own, other, right in zip(found, single, exact, strict=True):
        assert (own.float() - right).norm() <= 2 * (other.float() - right).norm()


def test_autocast():
    model = adapted(dtype=torch.float32)
    inputs = inputs_for("bert", model, batch=len(NAMES))
    with torch.no_grad():
        exact = alone(model, NAMES, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            single = alone(model, NAMES, inputs)
        with mixed(model, NAMES):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = run(model, inputs)
            torch.testing.assert_close(run(model, inputs), exact, atol=1e-5, rtol=1e-5)  # nothing low is kept
    assert found.dtype == single.dtype
    for own, other, right in zip(found, single, exact, strict=True):
        assert (own.float() - right).norm() <= 2 * (other.float() - right).norm()


def test_autocast_does_not_round_the_residual():
    model = small_model().float()
    hidden_states = torch.randn(3, 5, 8)
    with torch.no_grad(), disabled(model):
        base = model.blocks[0].narrow(torch.ones(3, 5, 12))
    assert base.dtype == torch.float32
    model.blocks[0].narrow.adapterx["b"].up_proj.weight.data.zero_()
    model.blocks[0].narrow.adapterx["b"].up_proj.bias.data.zero_()
    group_output = []
    with mixed(model, ["b", None, "b"]), torch.autocast("cpu", dtype=torch.bfloat16):
        (step,) = model.blocks[0].narrow.adapterx.route.steps
        group = step.group
        group_output.append(group(hidden_states, hidden_states))
    assert torch.equal(group_output[0], hidden_states)
