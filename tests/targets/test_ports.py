"""The three ports; the normed sum against Pfeiffer's formulas, written into the layers' own forward."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_adapters import randomise
from tiny_models import build, inputs_for, plain_model, run
from torch import nn
from torch.nn import functional

from adapterx import (
    AdapterConfig,
    ConfigError,
    TargetError,
    adapter_parameters,
    attach,
    detach,
    disabled,
    load_adapter,
    mixed,
    save_adapter,
    set_active,
)
from adapterx.config import ADDED_TO, DEFAULT_POSITIONS
from adapterx.export import to_onnx, to_torchscript
from adapterx.targets import Input, NormedSum, Output

NORMED_SUM = AdapterConfig(bottleneck_dim=4, placement="normed_sum", scaling=0.7)
# AdapterHub's `residual_before_ln` beside our names.
FORMULAS = {
    "sum": lambda h, r, x, branch: h + branch + r,  # True
    "sum_plus_residual": lambda h, r, x, branch: (h + r) + branch + r,  # "post_add"
    "normed_plus_residual": lambda h, r, x, branch: x + branch + r,  # False
    "normed": None,  # it is not normed again: `original_ln_after` False, `residual_before_ln` False
}


def branch_of(adapter, hidden_states):
    """s * g(x) with plain functions."""
    down = functional.gelu(functional.linear(hidden_states, adapter.down_proj.weight, adapter.down_proj.bias))
    return 0.7 * functional.linear(down, adapter.up_proj.weight, adapter.up_proj.bias)


class Written(nn.Module):
    """BERT's `BertSelfOutput` and `BertOutput` with an adapter written into them."""

    def __init__(self, output, adapter, formula):
        super().__init__()
        self.dense, self.norm, self.adapter, self.formula = output.dense, output.LayerNorm, adapter, formula

    def forward(self, hidden_states, residual):
        h, r = self.dense(hidden_states), residual
        x = self.norm(h + r)
        if self.formula is None:
            return x + branch_of(self.adapter, x)
        return self.norm(self.formula(h, r, x, branch_of(self.adapter, x)))


@pytest.mark.parametrize("positions", [DEFAULT_POSITIONS, ("feed_forward",), ("attention",)], ids="-".join)
@pytest.mark.parametrize("added_to", ADDED_TO)
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_pfeiffers_formula(name, added_to, positions):
    model = build(name).double()
    inputs = inputs_for(name, model)
    written = copy.deepcopy(model)
    report = attach(
        model,
        AdapterConfig(bottleneck_dim=4, placement="normed_sum", added_to=added_to, positions=positions, scaling=0.7),
    )
    randomise(model)
    for target in report.targets:
        path = target.module.removesuffix(".LayerNorm")
        adapter = model.get_submodule(target.module).adapterx["default"]
        parent, _, child = path.rpartition(".")
        replaced = Written(written.get_submodule(path), adapter, FORMULAS[added_to])
        setattr(written.get_submodule(parent), child, replaced)
    assert len(report.targets) == 2 * len(positions)
    ours, expected = run(model, inputs), run(written, inputs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    with disabled(model):
        assert (run(model, inputs) - expected).abs().max() > 1e-3
    parameters = [parameter for _, parameter in adapter_parameters(model)]
    cotangent = torch.randn_like(ours)
    for own, other in zip(
        torch.autograd.grad(ours, parameters, cotangent),
        torch.autograd.grad(expected, parameters, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("added_to", ADDED_TO)
def test_the_formula_on_distilbert(added_to):
    model = build("distilbert").double()
    inputs = inputs_for("distilbert", model)
    block = model.transformer.layer[1]
    seen = {}
    block.ffn.register_forward_hook(lambda _, args, output: seen.update(r=args[0], h=output))
    with torch.no_grad():
        run(model, inputs)
    options = {"positions": ("feed_forward",), "layers": (1,)}
    attach(model, AdapterConfig(bottleneck_dim=4, placement="normed_sum", added_to=added_to, **options))
    randomise(model)
    adapter = block.output_layer_norm.adapterx["default"]
    norm = functional.layer_norm
    own = block.output_layer_norm
    layer_norm = lambda tensor: norm(tensor, (32,), own.weight, own.bias, own.eps)  # noqa: E731
    x = layer_norm(seen["h"] + seen["r"])
    branch = branch_of(adapter, x) / 0.7
    formula = FORMULAS[added_to]
    expected = x + branch if formula is None else layer_norm(formula(seen["h"], seen["r"], x, branch))
    torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=1e-12)


@given(
    st.sampled_from(["sum", "normed"]),
    st.lists(st.sampled_from(DEFAULT_POSITIONS), min_size=1, unique=True),
    st.integers(0, 3),
)
@torch.no_grad()
def test_new_adapters_leave_the_model_as_it_is_bit_for_bit(added_to, positions, seed):
    model = build("bert")
    inputs = inputs_for("bert", model, batch=1 + seed, length=2 + seed)
    base = run(model, inputs)
    config = AdapterConfig(bottleneck_dim=3, placement="normed_sum", added_to=added_to, positions=positions)
    attach(model, config, seed=seed)
    assert torch.equal(run(model, inputs), base)
    detach(model)
    assert torch.equal(run(model, inputs), base)


def test_stacked_adapters_read_what_the_one_before_has_left():
    model = build("bert").double()
    inputs = inputs_for("bert", model)
    config = AdapterConfig(bottleneck_dim=4, placement="normed_sum", positions=("feed_forward",), layers=(1,))
    attach(model, config, "a")
    attach(model, config, "b")
    randomise(model)
    seen = {}
    norm = model.encoder.layer[1].output.LayerNorm
    norm.register_forward_pre_hook(lambda _, args: seen.update(sum=args[0]))
    set_active(model, ["a", "b"])
    result = run(model, inputs)
    a, b = norm.adapterx["a"], norm.adapterx["b"]
    one = seen["sum"] + branch_of(a, norm.forward(seen["sum"])) / 0.7
    two = one + branch_of(b, norm.forward(one)) / 0.7
    torch.testing.assert_close(result, norm.forward(two))


@pytest.mark.parametrize("added_to", ADDED_TO)
def test_mixed_batches(added_to):
    model = build("bert").double()
    inputs = inputs_for("bert", model, batch=5)
    config = AdapterConfig(bottleneck_dim=4, placement="normed_sum", added_to=added_to)
    attach(model, config, "a")
    attach(model, AdapterConfig(bottleneck_dim=3, placement="normed_sum", added_to=added_to), "b")
    attach(model, AdapterConfig(bottleneck_dim=3), "c")
    randomise(model)
    names = ["b", None, "a", "c", "a"]
    with mixed(model, names):
        together = run(model, inputs)
    for row, name in enumerate(names):
        set_active(model, name)
        torch.testing.assert_close(run(model, inputs)[row], together[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("added_to", ADDED_TO)
def test_saved_and_loaded(added_to, tmp_path):
    model = build("bert")
    twin = copy.deepcopy(model)
    config = AdapterConfig(bottleneck_dim=4, placement="normed_sum", added_to=added_to)
    attach(model, config)
    randomise(model)
    save_adapter(model, tmp_path)
    report = load_adapter(twin, tmp_path)
    assert report.config == config
    assert torch.equal(run(twin, inputs_for("bert", twin)), run(model, inputs_for("bert", model)))


def test_exported(tmp_path):
    model = build("bert")
    attach(model, AdapterConfig(bottleneck_dim=4, placement="normed_sum", added_to="normed_plus_residual"))
    randomise(model)
    for document in (to_torchscript(model, tmp_path / "model.pt"), to_onnx(model, tmp_path)):
        assert document["adapter_nodes"] == 4
        assert document["validation"]["max_abs_diff"] < 1e-4


def test_compiled_in_one_graph():
    model = build("bert")
    inputs = inputs_for("bert", model)
    attach(model, AdapterConfig(bottleneck_dim=4, placement="normed_sum", added_to="sum_plus_residual"))
    randomise(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(compiled, inputs), run(model, inputs))


def test_norms_can_be_named():
    model = plain_model().double()
    attach(model, AdapterConfig(bottleneck_dim=3, placement="normed_sum", target_modules=("norm",)))
    randomise(model)
    norm, hidden_states = model.blocks[0].norm, torch.randn(5, 8, dtype=torch.float64)
    x = norm.forward(hidden_states)
    expected = norm.forward(hidden_states + branch_of(norm.adapterx["default"], x) / 0.7)
    torch.testing.assert_close(norm(hidden_states), expected)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("llama", {}, "placement 'normed_sum' needs a norm behind each sublayer that a table names"),
        ("vit", {}, "tables that name it: albert, bart, bert, camembert"),
        ("megatron-bert", {}, "got none for encoder.layer.0.attention.output.dense"),
        ("bert", {"target_modules": ("output.dense",)}, "must be a norm for placement 'normed_sum', got a Linear"),
        (
            "bert",
            {"target_modules": ("output.LayerNorm",), "added_to": "sum_plus_residual"},
            "target_modules must not be given with added_to='sum_plus_residual'",
        ),
    ],
)
def test_where_there_is_no_normed_sum(name, options, words):
    model = build(name)
    with pytest.raises(TargetError, match=f"^attach: .*{words}"):
        attach(model, AdapterConfig(bottleneck_dim=4, placement="normed_sum", **options))
    assert not [child for child in model.modules() if hasattr(child, "adapterx")]


def test_ports_of_one_module_must_read_alike():
    model = build("bert")
    attach(model, NORMED_SUM, "a")
    with pytest.raises(TargetError, match=r"adapters of one module must read alike, .*LayerNorm has some that read"):
        attach(model, AdapterConfig(bottleneck_dim=4, target_modules=("output.LayerNorm",)), "b")


def test_added_to_belongs_to_the_normed_sum():
    with pytest.raises(ConfigError, match="added_to must be 'sum' where placement is 'sequential', got 'sum_plus"):
        AdapterConfig(bottleneck_dim=4, added_to="sum_plus_residual")
    with pytest.raises(ConfigError, match="added_to must be one of sum, sum_plus_residual, normed_plus_residual, n"):
        AdapterConfig(bottleneck_dim=4, placement="normed_sum", added_to="output")


def test_targets_carry_their_ports():
    ports = {
        "sequential": Output(),
        "parallel": Input("encoder.layer.0.attention.self"),
        "normed_sum": NormedSum(),
    }
    for placement, port in ports.items():
        report = attach(build("bert"), AdapterConfig(bottleneck_dim=4, placement=placement))
        assert report.targets[0].port == port
    config = AdapterConfig(bottleneck_dim=4, placement="normed_sum", added_to="normed_plus_residual")
    port = attach(build("bert"), config).targets[1].port
    assert port == NormedSum("normed_plus_residual", "encoder.layer.0.intermediate.dense")
