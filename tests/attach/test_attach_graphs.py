"""Adapted models under gradient checkpointing, `torch.compile` and `torch.export`."""

import dataclasses
from functools import partial

import pytest
import torch
from attach_cases import FEED_FORWARD, PLACEMENTS
from tiny_adapters import randomise
from tiny_models import build, inputs_for, plain_model, run
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from adapterx import AdapterConfig, adapter_parameters, attach, set_active


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("reentrant", [True, False])
@PLACEMENTS
def test_gradient_checkpointing(name, reentrant, config):
    model = build(name).train()
    model.config.use_cache = False
    inputs = inputs_for(name, model)
    attach(model, config)
    randomise(model)

    def gradients():
        model.zero_grad()
        run(model, inputs).square().mean().backward()
        return [parameter.grad.clone() for _, parameter in adapter_parameters(model)]

    plain = gradients()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # new name in 5.x
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for one, other in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@PLACEMENTS
def test_checkpointed_blocks_of_a_plain_model(reentrant, config):
    model = plain_model()
    attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), placement=config.placement, dropout=0.3))
    randomise(model)

    def gradients(wrapped):
        model.zero_grad()
        torch.manual_seed(5)
        hidden_states = torch.ones(4, 8, requires_grad=True)
        for block in model.blocks:
            hidden_states = (
                checkpoint(block, hidden_states, use_reentrant=reentrant) if wrapped else block(hidden_states)
            )
        hidden_states.square().sum().backward()
        return [parameter.grad.clone() for _, parameter in adapter_parameters(model)]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["bert"])
@PLACEMENTS
def test_compile_in_one_graph(name, config):
    model = build(name)
    model.config.use_cache = False
    inputs = inputs_for(name, model)
    attach(model, config, "first-one")
    attach(model, FEED_FORWARD, "second")
    randomise(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for active in ("first-one", "second"):
        set_active(model, active)
        expected = run(model, inputs)
        found = run(compiled, inputs)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        found.sum().backward()
        assert all(parameter.grad is not None for _, parameter in adapter_parameters(model, active))


@pytest.mark.parametrize("name", ["bert", "llama"])
@PLACEMENTS
def test_export(name, config):
    model = build(name)
    model.config.use_cache = False
    inputs = inputs_for(name, model)
    report = attach(model, config, "my-adapter-2")
    randomise(model)
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, strict=False)
        torch.testing.assert_close(program.module()(**inputs)[0], run(model, inputs))
    nodes = [node for node in program.graph.nodes if node.target is torch.ops.adapterx.bottleneck_adapter.default]
    assert len(nodes) == len(report.targets)


@pytest.mark.parametrize("saved", ["nothing", "matrix products", "adapters"])
@pytest.mark.parametrize("name", ["bert", "llama"])
@PLACEMENTS
def test_selective_checkpointing(name, saved, config):
    """The third mode: a policy keeps the results of some operators, ours among them, and computes the others again."""
    kept = {
        "nothing": (),
        "matrix products": (torch.ops.aten.mm.default, torch.ops.aten.addmm.default),
        "adapters": (torch.ops.adapterx.bottleneck_adapter_train.default,),
    }[saved]
    seen = []

    def policy(context, operator, *args, **kwargs):
        seen.append(operator)
        return CheckpointPolicy.MUST_SAVE if operator in kept else CheckpointPolicy.PREFER_RECOMPUTE

    model = build(name).train()
    model.config.use_cache = False
    inputs = inputs_for(name, model)
    attach(model, dataclasses.replace(config, dropout=0.2))
    randomise(model)
    target = torch.randn_like(run(model, inputs))

    def gradients():
        model.zero_grad()
        torch.manual_seed(5)
        (run(model, inputs) * target).mean().backward()
        return [parameter.grad.clone() for _, parameter in adapter_parameters(model)]

    plain = gradients()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False, "context_fn": partial(create_selective_checkpoint_contexts, policy)})
    for one, other in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
    assert torch.ops.adapterx.bottleneck_adapter_train.default in seen
