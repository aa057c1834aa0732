"""What stands around the operator in a branch: formulas written by hand, in float64; starts; refusals; whole models."""

import copy

import pytest
import torch
from mixed_cases import alone, alone_outside
from tiny_adapters import randomise
from tiny_models import build, inputs_for, run
from torch import nn

from adapterx import (
    AdapterConfig,
    BottleneckAdapter,
    adapter_parameters,
    adapters,
    attach,
    fan_out,
    load_adapter,
    mixed,
    reference,
    save_adapter,
    set_active,
)
from adapterx.activations import ACTIVATIONS, LEARNED, PLAIN

DOUBLE = torch.float64
MODULES = {  # PyTorch's own modules, and formulas where it has none
    "relu6": nn.ReLU6(),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "gelu_10": lambda x: nn.GELU()(x).clip(-10, 10),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "laplace": lambda x: (1 + torch.erf((x - 0.707107) / 0.282095 / 2**0.5)) / 2,
    "mish": nn.Mish(),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "hardswish": nn.Hardswish(),
    "softplus": nn.Softplus(),
}
OPTIONS = {
    "before": {"norm_before": True},
    "branch": {"norm_after": "branch"},
    "sum": {"norm_after": "sum"},
    "gate": {"gating": True},
    "all": {"norm_before": True, "norm_after": "branch", "gating": True, "activation": "mish"},
    "all of the sum": {"norm_before": True, "norm_after": "sum", "gating": True, "activation": "prelu"},
}


def adapter(input_size=7, hidden_size=5, bottleneck_dim=3, dtype=DOUBLE, **options):
    module = BottleneckAdapter(input_size, hidden_size, bottleneck_dim, dtype=dtype, **options)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def norm(tensor, module):
    centred = tensor - tensor.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias


def activated(module, tensor):
    if module.activation == "prelu":
        return torch.where(tensor > 0, tensor, module.slope * tensor)
    return MODULES.get(module.activation, reference.ACTIVATIONS.get(module.activation))(tensor)


def expected(module, read, residual):
    """The formula, sum by sum."""
    source = read if module.norm_before is None else norm(read, module.norm_before)
    bottleneck = activated(module, source @ module.down_proj.weight.T + module.down_proj.bias)
    branch = module.scaling * (bottleneck @ module.up_proj.weight.T + module.up_proj.bias)
    if module.gate is not None:
        gates = 1 / (1 + torch.exp(-(read @ module.gate.weight[0] + module.gate.bias)))
        branch = torch.stack([branch[i] * gates[i].sum() / gates[i].numel() for i in range(len(branch))])
    if module.after == "branch":
        return residual + norm(branch, module.norm_after)
    return residual + branch if module.after is None else norm(residual + branch, module.norm_after)


def compare(module, shape=(2, 4)):
    """Compare outputs and all gradients, of parallel inputs."""
    read = torch.randn(*shape, module.down_proj.weight.shape[1], dtype=DOUBLE, requires_grad=True)
    residual = torch.randn(*shape, module.up_proj.weight.shape[0], dtype=DOUBLE, requires_grad=True)
    wanted, found = expected(module, read, residual), module(read, residual)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    cotangent, inputs = torch.randn_like(found), [read, residual, *module.parameters()]
    gradients = (torch.autograd.grad(output, inputs, cotangent) for output in (found, wanted))
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("scaling", [-0.5, "learned", "learned_per_channel"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_norms_and_gates_are_the_formula(options, scaling):
    module = adapter(**options, scaling=scaling)
    assert not module.is_plain
    compare(module)
    compare(module, (3, 2, 2))


@pytest.mark.parametrize("activation", [*PLAIN, *LEARNED])
def test_activations_are_the_formula(activation):
    compare(adapter(activation=activation, scaling=0.7))
    compare(adapter(activation=activation, scaling="learned"), (4,))


def test_every_activation_has_a_formula_here():
    assert set(MODULES) == set(PLAIN)
    assert set(ACTIVATIONS) == set(MODULES) | set(reference.ACTIVATIONS) | {"prelu"}


def test_the_operator_alone_computes_the_rest():
    assert all(adapter(activation=name, scaling="learned", dropout=0.5).is_plain for name in reference.ACTIVATIONS)
    assert not adapter(stochastic_depth=0.1).is_plain


def test_dropout_stands_before_gate_and_norm():
    module = adapter(dropout=0.5, gating=True, norm_after="branch", dtype=torch.float32)
    states, residual = torch.randn(2, 3, 7), torch.randn(2, 3, 5)
    torch.manual_seed(1)
    found = module(states, residual)
    torch.manual_seed(1)
    plain = copy.deepcopy(module).eval()
    plain.gate = plain.after = None
    branch = nn.functional.dropout(plain(states, torch.zeros_like(residual)), 0.5)
    gate = torch.sigmoid(states @ module.gate.weight.T + module.gate.bias).mean(1, keepdim=True)
    torch.testing.assert_close(found, residual + module.norm_after(branch * gate))


def test_whole_branches_are_dropped_in_training():
    module = adapter(stochastic_depth=0.4)
    states, residual = torch.randn(4000, 1, 7, dtype=DOUBLE), torch.randn(4000, 1, 5, dtype=DOUBLE)
    whole = module.eval()(states, residual) - residual
    torch.testing.assert_close(whole, expected(module, states, residual) - residual)
    branch = module.train()(states, residual) - residual
    dropped = (branch == 0).all(-1).squeeze(1)
    assert 0.35 < dropped.double().mean() < 0.45
    torch.testing.assert_close(branch[~dropped], whole[~dropped] / 0.6)


@pytest.mark.parametrize(
    ("options", "word"), [({"gating": True}, "gating"), ({"stochastic_depth": 0.5}, "stochastic_depth")]
)
def test_examples_must_be_told_apart(options, word):
    module = adapter(5, 5, **options)
    rows = torch.randn(4, 5, dtype=DOUBLE)
    with pytest.raises(ValueError, match=rf"^BottleneckAdapter: hidden_states must be .* for {word}, .*\(4, 5\)"):
        module(rows, rows)


@pytest.mark.parametrize("options", [o for o in OPTIONS.values() if o.get("norm_after") != "sum"])
def test_starts_as_the_identity(options):
    module = BottleneckAdapter(6, 6, 3, **options)
    states = torch.randn(2, 3, 6)
    assert torch.equal(module(states, states), states)
    if "gating" in options:
        assert 0.005 < module.gate.weight.std() < 0.05
    for each in (module.norm_before, module.norm_after):
        assert each is None or torch.equal(each.weight, torch.ones(6))
    if module.slope is not None:
        assert module.slope.item() == 0.25


def test_a_normed_sum_is_no_identity():
    states = torch.randn(2, 3, 6)
    torch.testing.assert_close(BottleneckAdapter(6, 6, 3, norm_after="sum")(states, states), nn.LayerNorm(6)(states))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_half_bases_and_autocast(options):
    module = adapter(**options, dtype=torch.float32)
    read, residual = torch.randn(2, 3, 7).bfloat16(), torch.randn(2, 3, 5).bfloat16()
    wanted = module(read.float(), residual.float())
    found = module(read, residual)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(read.float(), residual.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=0.25, rtol=0.1)
    if module.after is None:  # what is added to is not rounded
        far = residual.float() + 1e-3
        module.scaling = 0.0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(module(read.float(), far), far)


CONFIGS = {
    "plain": AdapterConfig(bottleneck_dim=4),
    "wide": AdapterConfig(reduction_factor={0: 0.5, "default": 8.0}),
    "normed": AdapterConfig(bottleneck_dim=3, norm_before=True, norm_after="branch"),
    "gated": AdapterConfig(bottleneck_dim=5, gating=True, activation="prelu", placement="parallel"),
    "mish": AdapterConfig(bottleneck_dim=2, activation="mish", scaling="learned_per_channel"),
    "deep": AdapterConfig(bottleneck_dim=2, stochastic_depth=0.3, placement="normed_sum", positions=("feed_forward",)),
}


def adapted(name="bert"):
    model = build(name).double()
    for key, config in CONFIGS.items():
        attach(model, config, key)
    randomise(model)
    return model


def test_mixed_rows_are_those_of_each_adapter_alone():
    model = adapted()
    names = ["gated", None, "normed", "plain", "gated", "mish", "wide", "deep"]
    inputs = inputs_for("bert", model, batch=len(names))
    wanted = alone(model, names, inputs)
    with mixed(model, names):
        found = run(model, inputs)
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
        found.square().sum().backward()
        gradients = {key: parameter.grad.clone() for key, parameter in adapter_parameters(model)}
    model.zero_grad()
    twin = copy.deepcopy(model)
    for _, parameter in adapter_parameters(twin):
        parameter.requires_grad_(True)
    total = 0.0
    for index, name in enumerate(names):
        set_active(twin, name)
        twin.requires_grad_(True)
        total = total + run(twin, inputs)[index].square().sum()
    total.backward()
    for key, parameter in adapter_parameters(twin):
        torch.testing.assert_close(gradients[key], parameter.grad, atol=1e-10, rtol=1e-10, msg=key)
    with mixed(model, ["gated"] * len(names)), torch.no_grad():
        torch.testing.assert_close(run(model, inputs), alone_outside(model, ["gated"] * len(names), inputs))


def test_fanned_out_rows_are_those_of_each_adapter_alone():
    model = adapted()
    inputs = inputs_for("bert", model, batch=3)
    with torch.no_grad(), fan_out(model, ["gated", "plain", "mish", None]) as fan:
        found = fan(**inputs)
    for name, output in found.items():
        set_active(model, name)
        torch.testing.assert_close(output[0], run(model, inputs), atol=1e-12, rtol=1e-12)


def test_late_gradients_are_refused():
    model = adapted()
    set_active(model, "plain")
    with mixed(model, ["gated", "mish"]):
        loss = run(model, inputs_for("bert", model)).sum()
    with pytest.raises(RuntimeError, match="mixed: backward"):
        loss.backward()


@pytest.mark.parametrize("name", ["wide", "normed", "gated", "mish"])
def test_saved_loaded_and_copied(name, tmp_path):
    model = adapted()
    set_active(model, name)
    inputs = inputs_for("bert", model)
    wanted = run(model, inputs)
    assert torch.equal(run(copy.deepcopy(model), inputs), wanted)
    save_adapter(model, tmp_path, name)
    other = build("bert").double()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if ".adapterx." not in k})
    load_adapter(other, tmp_path)
    assert torch.equal(run(other, inputs), wanted)
    assert adapters(other)[name].config == CONFIGS[name]


def test_the_report_says_what_runs_in_plain_pytorch():
    model = build("bert")
    plain = str(attach(model, CONFIGS["plain"], "plain"))
    assert "PyTorch" not in plain
    told = str(attach(model, AdapterConfig(bottleneck_dim=2, activation="mish", gating=True, norm_before=True)))
    assert "activation 'mish': the kernels have none such, so both maps run in plain PyTorch" in told
    assert "norm_before, gating: in plain PyTorch around the branch" in told
    assert "32 -> 64 -> 32" in str(attach(model, CONFIGS["wide"], "wide"))
