"""The module `AdapterFusion` against its formula, written with every key and value formed."""

import itertools

import pytest
import torch
from torch.nn.functional import linear

from adapterx import AdapterFusion, ConfigError, FusionConfig

OPTIONS = list(itertools.product((True, False), repeat=4))


def fusion_of(config, *, size=6, query_size=None):
    """Return a fusion with weights that matter, in float64."""
    fusion = AdapterFusion(size, config, query_size=query_size).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return fusion


def formula(fusion, query, branches, residual, temperature=1.0):
    """Compute the fusion token by token, adapter by adapter."""
    config = fusion.config
    given = branches + residual if config.residual_before else branches
    q = linear(query, fusion.query.weight, fusion.query.bias) if config.query else query
    keys = [linear(z, fusion.key.weight, fusion.key.bias) if config.key else z for z in given]
    values = [linear(z, fusion.value.weight) if config.value else z for z in given]
    scores = torch.stack([torch.einsum("...h,...h->...", q, key) for key in keys]) / temperature
    weights = scores.exp() / scores.exp().sum(0)
    result = sum(weight.unsqueeze(-1) * value for weight, value in zip(weights, values, strict=True))
    return result if config.residual_before else residual + result


def tensors(count=3, size=6):
    generator = torch.Generator().manual_seed(9)
    shapes = ((2, 5, size), (count, 2, 5, size), (2, 5, size))
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize(("query", "key", "value", "residual_before"), OPTIONS)
def test_values_and_gradients(query, key, value, residual_before):
    config = FusionConfig(query=query, key=key, value=value, residual_before=residual_before, regularization=False)
    fusion, inputs = fusion_of(config), tensors()
    wanted = [*inputs, *fusion.parameters()]
    found = fusion(*inputs)
    expected = formula(fusion, *inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    gradient = torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad(found, wanted, gradient), torch.autograd.grad(expected, wanted, gradient), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_temperature_falls_with_each_backward_pass_to_one():
    fusion, inputs = fusion_of(FusionConfig(temperature=True)).train(), tensors()
    for step in range(3):
        temperature = 50.0 - 0.05 * step
        assert fusion.temperature.item() == pytest.approx(temperature, abs=1e-4)
        result = fusion(*inputs)
        torch.testing.assert_close(result, formula(fusion, *inputs, temperature=fusion.temperature.double()))
        result.sum().backward()
    fusion.eval()(*inputs).sum().backward()  # is no training
    with torch.no_grad():
        fusion.train()(*inputs)
    assert fusion.temperature.item() == pytest.approx(49.85, abs=1e-4)
    fusion.temperature.fill_(1.02)
    fusion(*inputs).sum().backward()
    assert fusion.temperature.item() == 1.0


def test_dropout_of_scores_weighs_the_others():
    fusion, (query, branches, residual) = fusion_of(FusionConfig(dropout=0.5)).train(), tensors(count=2)
    fusion.record = []
    torch.manual_seed(0)
    fusion(query, branches, residual)
    fusion.eval()(query, branches, residual)
    dropped, whole = fusion.record
    assert dropped.shape == whole.shape == (2, 5, 2)
    torch.testing.assert_close(dropped.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert not torch.allclose(dropped, whole)


def test_begins_as_published():
    fusion = AdapterFusion(64, FusionConfig(), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fusion.value.weight, torch.eye(64), rtol=0, atol=1e-6)
    assert not fusion.query.bias.any()
    assert fusion.key.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert list(fusion.state_dict()) == ["query.weight", "query.bias", "key.weight", "key.bias", "value.weight"]
    assert AdapterFusion(6, FusionConfig(), query_size=4).query.weight.shape == (6, 4)
    plain = AdapterFusion(6, FusionConfig(query=False, key=False, value=False, regularization=False))
    assert not list(plain.parameters())


def test_what_is_refused():
    for values, message in (
        ({"query": 1}, "query must be True or False, got 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"value": False}, "regularization must be False where value is False"),
    ):
        with pytest.raises(ConfigError, match=f"FusionConfig: {message}"):
            FusionConfig(**values)
    with pytest.raises(ConfigError, match="unknown keys: heads"):
        FusionConfig.from_dict({"heads": 2})
    assert FusionConfig.from_dict(FusionConfig(dropout=0.1).to_dict()) == FusionConfig(dropout=0.1)
    with pytest.raises(ConfigError, match="query must be True where it reads 4 elements"):
        AdapterFusion(6, FusionConfig(query=False), query_size=4)
