"""PHM layers (Compacter): the sum of Kronecker products written out, and what modules share staying one."""

import copy
import itertools
import json
import pickle

import pytest
import torch
from mixed_cases import alone, groups_of
from safetensors.torch import load_file
from tiny_adapters import randomise
from tiny_models import build, inputs_for, run

from adapterx import (
    AdapterConfig,
    BottleneckAdapter,
    CheckpointError,
    ConfigError,
    PHMConfig,
    adapter_parameters,
    adapters,
    attach,
    detach,
    load_adapter,
    mixed,
    reference,
    restore_adapter,
    save_adapter,
    summary,
    unused_adapters,
)
from adapterx.phm import Factors

DOUBLE = torch.float64
COMPACTER = AdapterConfig(bottleneck_dim=8, phm=PHMConfig())


def matrices(factors):
    """Return the matrices of `Factors`, one by one."""
    if factors.rank is None:
        return list(factors.matrices)
    return [left @ right for left, right in zip(factors.left, factors.right, strict=True)]


def weight(projection):
    """The sum of Kronecker products, as the papers multiply: hidden states times H."""
    pairs = zip(matrices(projection.rule), matrices(projection.blocks), strict=True)
    return sum(torch.kron(rule, block) for rule, block in pairs).T


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize(("thin_rule", "thin_blocks"), list(itertools.product([True, False], repeat=2)))
def test_is_the_formula(thin_rule, thin_blocks, learn):
    phm = PHMConfig(dim=2, rank=3, factorized_rule=thin_rule, factorized_weight=thin_blocks, learn=learn)
    module = BottleneckAdapter(6, 8, 4, phm=phm, scaling="learned", dtype=DOUBLE)
    assert module.is_plain
    torch.manual_seed(2)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.normal_()
    assert "down_proj.rule.left" in module.state_dict() if thin_rule else "down_proj.rule.matrices"
    read = torch.randn(2, 3, 6, dtype=DOUBLE, requires_grad=True)
    residual = torch.randn(2, 3, 8, dtype=DOUBLE, requires_grad=True)
    weights = (weight(module.down_proj), module.down_proj.bias, weight(module.up_proj), module.up_proj.bias)
    wanted = residual + module.scaling * reference.bottleneck_adapter(read, None, *weights, "gelu", 1.0)
    found = module(read, residual)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    inputs = [read, residual, *module.parameters()]
    assert any("rule" in name for name, _ in module.named_parameters()) == learn
    gradients = (torch.autograd.grad(output, inputs, torch.ones_like(found)) for output in (found, wanted))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-11)


def test_starts_as_the_base_model_as_the_papers_say():
    module = BottleneckAdapter(64, 64, 16, phm=PHMConfig())
    states = torch.randn(3, 64)
    assert torch.equal(module(states, states), states)
    assert 0.5e-4 < module.down_proj.rule.matrices.std() < 2e-4
    assert module.down_proj.blocks.left.std().item() == pytest.approx((2 / 17) ** 0.5, rel=0.5)
    module(states, states).sum().backward()
    assert module.up_proj.blocks.right.grad.abs().max() > 0
    near = BottleneckAdapter(64, 64, 16, phm=PHMConfig(c_init="uniform", init="xavier_uniform"), init_up="near_zero")
    assert not torch.equal(near(states, states), states)
    assert 0.4 < near.up_proj.rule.matrices.std() < 0.8
    assert near.up_proj.blocks.left.abs().max() < (6 / 5) ** 0.5
    assert BottleneckAdapter(64, 64, 16, phm=PHMConfig(init="normal")).down_proj.blocks.left.std() < 3e-4
    bare = BottleneckAdapter(8, 8, 4, phm=PHMConfig(bias=False))
    assert bare.down_proj.bias is None
    assert bare.up_proj.bias is None


def adapted(config=COMPACTER, name="c", model=None):
    model = build("bert").double() if model is None else model
    attach(model, config, name)
    randomise(model, name)
    return model


def rules(model):
    return {id(module) for name, module in model.named_modules(remove_duplicate=False) if name.endswith(".rule")}


SHARING = {
    "rule": ({"shared_rule": True}, 1, 8),
    "nothing": ({"shared_rule": False}, 8, 8),
    "everything": ({"shared_weight": True, "learn": False}, 1, 2),
}


@pytest.mark.parametrize(("values", "rule_count", "block_count"), SHARING.values(), ids=SHARING)
def test_what_is_shared_stays_one(values, rule_count, block_count, tmp_path):
    config = AdapterConfig(bottleneck_dim=8, phm=PHMConfig(dim=4, **values))
    model = adapted(config)
    inputs = inputs_for("bert", model)
    wanted = run(model, inputs)
    assert len(rules(model)) == rule_count
    factors = {id(module) for module in model.modules() if isinstance(module, Factors)}
    assert len(factors) == rule_count + block_count
    names = [name for name, _ in adapter_parameters(model)]
    assert len(names) == len({id(p) for p in model.parameters() if p.requires_grad})
    assert summary(model).trainable == sum(p.numel() for _, p in adapter_parameters(model))

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.float().double().to("cpu")):
        assert len(rules(twin)) == rule_count
        torch.testing.assert_close(run(twin, inputs), wanted, atol=1e-6, rtol=1e-6)
    emptied = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    assert len(rules(emptied)) == rule_count

    save_adapter(model, tmp_path)
    wanted = run(model, inputs)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(".rule." in key for key in saved) == rule_count
    assert sum(".blocks." in key for key in saved) == 2 * block_count
    detach(model)
    load_adapter(model, tmp_path)
    assert torch.equal(run(model, inputs), wanted)
    assert adapters(model)["c"].config == config
    assert len(rules(model)) == rule_count
    randomise(model, seed=3)
    restore_adapter(model, tmp_path)
    assert torch.equal(run(model, inputs), wanted)


def test_a_part_saves_what_it_shares_with_the_rest(tmp_path):
    model = adapted(AdapterConfig(bottleneck_dim=8, phm=PHMConfig(), target_modules=("output.dense",)))
    layer = model.encoder.layer[1]
    save_adapter(layer, tmp_path)
    other = build("bert").double()
    other.load_state_dict({key: value for key, value in model.state_dict().items() if ".adapterx." not in key})
    load_adapter(other.encoder.layer[1], tmp_path)
    own = [(".".join(name.split(".")[-3:]), p) for name, p in adapter_parameters(layer)]
    loaded = [(".".join(name.split(".")[-3:]), p) for name, p in adapter_parameters(other)]
    assert [name for name, _ in own] == [name for name, _ in loaded]
    assert all(torch.equal(one, two) for (_, one), (_, two) in zip(own, loaded, strict=True))


def test_trains_with_every_gradient_in_the_one_rule():
    model = adapted()
    inputs = inputs_for("bert", model)
    optimizer = torch.optim.SGD([p for _, p in adapter_parameters(model)], lr=0.0)
    run(model, inputs).pow(3).sum().backward()
    optimizer.step()
    rule = model.encoder.layer[0].output.dense.adapterx["c"].down_proj.rule.matrices
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            rule[1, 2, 3] += sign * step
            values.append(run(model, inputs).pow(3).sum())
            rule[1, 2, 3] -= sign * step
    assert rule.grad[1, 2, 3].item() == pytest.approx(((values[0] - values[1]) / (2 * step)).item(), rel=1e-6)


def test_a_module_that_does_not_run_is_found_though_its_rule_trains():
    model = adapted()
    run(model, inputs_for("bert", model)).sum().backward()
    assert unused_adapters(model) == {}
    for parameter in model.encoder.layer[1].output.dense.adapterx["c"].parameters():
        if parameter.dim() != 3 or parameter.shape != (4, 4, 4):
            parameter.grad = None
    assert unused_adapters(model) == {"c": ("encoder.layer.1.output.dense",)}


def test_mixed_batches_call_the_operator_once():
    model = adapted()
    adapted(AdapterConfig(bottleneck_dim=3), "plain", model)
    adapted(AdapterConfig(bottleneck_dim=4, phm={"dim": 2, "shared_rule": False}), "other", model)
    names = ["plain", "c", None, "other"]
    inputs = inputs_for("bert", model, batch=4)
    wanted = alone(model, names, inputs)
    with mixed(model, names):
        assert [len(group.weights.blends) for group in groups_of(model)] == [3, 3, 3, 3]
        torch.testing.assert_close(run(model, inputs), wanted, atol=1e-12, rtol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(run(model, inputs), wanted, atol=1e-12, rtol=1e-12)
            for _, parameter in adapter_parameters(model, "c"):
                parameter.mul_(1.5)  # nothing that is kept hides the change
        changed = run(model, inputs)
    flags = {name: {p.requires_grad for _, p in adapter_parameters(model, name)} for name in ("plain", "c", "other")}
    assert flags == {"plain": {False}, "c": {False}, "other": {True}}  # as before, shared parameters too
    assert not torch.equal(changed[1], wanted[1])
    torch.testing.assert_close(changed[0], wanted[0], atol=1e-12, rtol=1e-12)


def test_half_bases():
    model = build("bert").bfloat16()
    attach(model, COMPACTER)
    assert all(p.dtype == torch.float32 for _, p in adapter_parameters(model))
    randomise(model)
    inputs = inputs_for("bert", model)
    wanted = run(model, inputs)
    assert wanted.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(run(model, inputs).float(), wanted.float(), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"phm": {"dim": 3}}, "attach: .*encoder.layer.0.attention.output.dense.*|BottleneckAdapter: .*phm.dim, which"),
        ({"phm": {"dim": 4}, "bottleneck_dim": 6}, "which is 4, got 32 -> 6 for the down projection"),
        (
            {"phm": {"shared_weight": True}, "bottleneck_dim": {0: 8, 1: 4}},
            "phm.shared_weight must be False where modules differ in size, got 32 -> 8 and 32 -> 4",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values, message):
    model = build("bert")
    with pytest.raises(ConfigError, match=message):
        attach(model, AdapterConfig(**{"bottleneck_dim": 8, **values}))
    assert not list(adapter_parameters(model))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 0}, "PHMConfig: dim must be at least 1, got 0"),
        ({"rank": True}, "PHMConfig: rank must be an integer, got True"),
        ({"init": "glorot"}, "PHMConfig: init must be one of xavier_normal, xavier_uniform, normal, got 'glorot'"),
        ({"c_init": 1}, "PHMConfig: c_init must be one of normal, uniform, got 1"),
        ({"learn": None}, "PHMConfig: learn must be True or False, got None"),
        ({"init_range": 0}, "PHMConfig: init_range must be above 0, got 0.0"),
        ({"alpha": 0}, "PHMConfig: unknown keys: 'alpha'; a newer adapterx may know"),
        ([1], r"AdapterConfig: phm must be a PHMConfig, or None, got \[1\]"),
    ],
)
def test_refuses_in_words(values, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        AdapterConfig(bottleneck_dim=8, phm=values)


def test_configs_survive_json():
    made = AdapterConfig(reduction_factor=4, phm={"dim": 2, "init_range": 1})
    assert made.phm == PHMConfig(dim=2, init_range=1.0)
    assert AdapterConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert hash(made) == hash(AdapterConfig(reduction_factor=4, phm=PHMConfig(dim=2, init_range=1)))


def test_hostile_ranks_take_no_memory(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path)
    detach(model)
    file = tmp_path / "adapter_config.json"
    document = json.loads(file.read_text())
    document["config"]["phm"]["rank"] = 2**40
    document["format_version"] = 1
    document.pop("document_sha256")
    file.write_text(json.dumps(document))
    with pytest.raises(CheckpointError):
        load_adapter(model, tmp_path)
