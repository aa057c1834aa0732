"""`mixed` under `torch.compile`: one graph, which serves other orders of the same adapters."""

import torch
from mixed_cases import NAMES, adapted, small_model
from tiny_models import inputs_for, run

from adapterx import adapter_parameters, mixed


def test_compile_in_one_graph():
    model = adapted(dtype=torch.float32)
    inputs = inputs_for("bert", model, batch=len(NAMES))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), mixed(model, NAMES):
        expected = run(model, inputs)
        torch.testing.assert_close(run(compiled, inputs), expected, atol=1e-5, rtol=1e-5)
        model.encoder.layer[0].output.dense.adapterx["wide"].up_proj.weight.mul_(2.0)
        changed = run(model, inputs)
        assert not torch.allclose(changed, expected)
        torch.testing.assert_close(run(compiled, inputs), changed, atol=1e-5, rtol=1e-5)
    other = NAMES[::-1]  # the same adapters in another order: only the indices change
    with torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"), mixed(model, other):
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs), atol=1e-5, rtol=1e-5)


def test_compile_for_training():
    model = small_model().train()
    hidden_states = torch.randn(3, 5, 8, dtype=torch.float64)
    names = ["b", "c", None]

    def gradients(function):
        model.zero_grad()
        with mixed(model, names):
            function(hidden_states).square().sum().backward()
        return {key: p.grad.clone() for key, p in adapter_parameters(model) if p.grad is not None}

    expected = gradients(model)
    torch._dynamo.reset()
    found = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key])
