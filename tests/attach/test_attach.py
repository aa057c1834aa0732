"""Attached adapters start as the base model, stand where the formulas say, train alone, and go without a trace."""

from typing import NamedTuple

import pytest
import torch
from attach_cases import PARALLEL, PLACEMENTS, SEQUENTIAL
from model_state import assert_same, fingerprint
from tiny_adapters import randomise
from tiny_models import FAMILIES, build, inputs_for, plain_model, run
from torch import nn

from adapterx import AdapterConfig, adapter_parameters, attach, detach, disabled, reference


@pytest.mark.parametrize("name", FAMILIES)
@PLACEMENTS
def test_starts_as_exactly_the_base_model_and_ends_as_it_was(name, config):
    model = build(name)
    inputs = inputs_for(name, model)
    before = fingerprint(model)
    with torch.no_grad():
        base = run(model, inputs)
        report = attach(model, config, seed=1)
        assert torch.equal(run(model.train(), inputs), base)
        assert torch.equal(run(model.eval(), inputs), base)
        randomise(model)
        assert not torch.allclose(run(model, inputs), base, atol=1e-3)
        with disabled(model):
            assert torch.equal(run(model, inputs), base)
        assert len(report.targets) == FAMILIES[name][2]
        assert {k for k in model.state_dict() if ".adapterx." not in k} == before[0].keys()
        detach(model)
        assert torch.equal(run(model, inputs), base)
    assert_same(before, fingerprint(model))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "modernbert", "vit"])
@PLACEMENTS
def test_training_moves_every_adapter_and_nothing_else(name, config):
    model = build(name)
    inputs = inputs_for(name, model)
    attach(model, config, seed=1)
    base = {key: tensor.clone() for key, tensor in model.state_dict().items() if ".adapterx." not in key}
    parameters = dict(adapter_parameters(model))
    start = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        run(model.train(), inputs).square().mean().backward()
        assert {key for key, p in model.named_parameters() if p.grad is not None} == parameters.keys()
        optimizer.step()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in base.items())
    assert [key for key, parameter in parameters.items() if torch.equal(parameter, start[key])] == []


def test_sequential_adapter_stands_between_projection_and_residual():
    model = build("bert")
    attach(model, SEQUENTIAL)
    randomise(model)
    layer = model.encoder.layer[0]
    adapter = layer.output.dense.adapterx["default"]
    hidden_states, skip = torch.randn(2, 5, 48), torch.randn(2, 5, 32)
    with disabled(model):
        projected = layer.output.dense(hidden_states)
    weights = (adapter.down_proj.weight, adapter.down_proj.bias, adapter.up_proj.weight, adapter.up_proj.bias)
    adapted = reference.bottleneck_adapter(projected, projected, *weights, activation="gelu", scaling=1.0)
    expected = layer.output.LayerNorm(adapted + skip)  # y = LN(h + s g(h) + r)
    torch.testing.assert_close(layer.output(hidden_states, skip), expected, atol=1e-5, rtol=1e-5)


def test_parallel_adapter_reads_the_sublayers_input():
    model = build("bert")
    attach(model, AdapterConfig(bottleneck_dim=4, placement="parallel", scaling=4.0))
    randomise(model)
    layer = model.encoder.layer[0]
    hidden_states = torch.randn(2, 5, 32)

    def branch(module, source):
        adapter = module.adapterx["default"]
        weights = (adapter.down_proj.weight, adapter.down_proj.bias, adapter.up_proj.weight, adapter.up_proj.bias)
        return reference.bottleneck_adapter(source, None, *weights, activation="gelu", scaling=4.0)

    with disabled(model):
        context = layer.attention.self(hidden_states)[0]
        projected = layer.attention.output.dense(context)
        after_attention = layer.attention.output.LayerNorm(
            projected + branch(layer.attention.output.dense, hidden_states) + hidden_states
        )
        widened = layer.intermediate(after_attention)
        narrowed = layer.output.dense(widened) + branch(layer.output.dense, after_attention)
        expected = layer.output.LayerNorm(narrowed + after_attention)
    found = layer(hidden_states)
    found = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@PLACEMENTS
def test_named_modules_overlap_and_return_tuples(config):
    model = build("llama")
    inputs = inputs_for("llama", model)
    base = run(model, inputs)
    targets = ("mlp", "mlp.down_proj", "self_attn")
    report = attach(model, AdapterConfig(bottleneck_dim=4, placement=config.placement, target_modules=targets))
    assert len(report.targets) == 6
    assert torch.equal(run(model, inputs), base)
    randomise(model)
    run(model, inputs).sum().backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(model))


def test_parallel_with_named_module_reads_that_modules_own_input():
    model = plain_model()
    attach(model, AdapterConfig(bottleneck_dim=3, placement="parallel", target_modules=("0.narrow",)))
    randomise(model)
    narrow = model.blocks[0].narrow
    hidden_states = torch.randn(4, 12)
    adapter = narrow.adapterx["default"]
    with disabled(model):
        base = narrow(hidden_states)
    torch.testing.assert_close(narrow(hidden_states), adapter(hidden_states, base))


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.eye(4)), kind

    def forward(self, hidden_states):
        return self.kind(hidden_states @ self.weight)


class Output(NamedTuple):
    states: torch.Tensor
    extra: int = 5


def test_kinds_of_output():
    hidden_states = torch.randn(3, 4)
    for kind in (lambda t: t, lambda t: (t,), lambda t: (t, None, "x"), Output):
        model = nn.ModuleDict({"part": Several(kind)})
        before = model["part"](hidden_states)
        attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("part",)))
        after = model["part"](hidden_states)
        assert type(after) is type(before)
        if isinstance(before, tuple):
            assert torch.equal(after[0], before[0])
            assert after[1:] == before[1:]
    model = nn.ModuleDict({"part": Several(lambda t: {"states": t})})
    attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("part",)))
    with pytest.raises(TypeError, match="must return a tensor or a tuple that begins with one, part returns dict"):
        model["part"](hidden_states)


def test_torch_transformer_layers():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    hidden_states = torch.randn(2, 5, 8)
    for config in (SEQUENTIAL, PARALLEL):
        with torch.no_grad():  # also where torch would take its fused path, which calls no submodule
            base = model(hidden_states)
            attach(model, config)
            torch.testing.assert_close(model(hidden_states), base)
            randomise(model)
            assert not torch.allclose(model(hidden_states), base, atol=1e-3)
        model(hidden_states).sum().backward()
        assert all(parameter.grad.any() for _, parameter in adapter_parameters(model))
        detach(model)


def test_report_names_modules_sizes_and_rule():
    model = build("bert")
    text = str(attach(model, AdapterConfig(reduction_factor=8, placement="parallel", modules_to_save=("pooler",))))
    assert text.splitlines()[0] == "adapter 'default' on 4 modules, chosen by table for model type 'bert'"
    assert "  encoder.layer.1.output.dense (feed_forward): 32 -> 4 -> 32, reads the input of" in text
    assert "pooler: trained copy" in text
