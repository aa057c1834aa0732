"""`Average`, from one module to files: what it computes, trains, saves and exports."""

import copy

import pytest
import torch
from model_state import pickled
from tiny_adapters import randomise
from tiny_models import build, inputs_for, plain_model, run
from torch import nn

from adapterx import (
    AdapterConfig,
    Average,
    ConfigError,
    Stack,
    active_adapters,
    adapter_parameters,
    adapters,
    attach,
    detach,
    disabled,
    load_adapter,
    save_adapter,
    set_active,
)
from adapterx.compose import Fuse, composition_from_dict, composition_to_dict
from adapterx.export import read_metadata, to_onnx, to_torchscript

CONFIG = AdapterConfig(bottleneck_dim=3, positions=("feed_forward",))
PARALLEL = AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), placement="parallel")
HIDDEN_STATES = torch.linspace(-1, 1, 24, dtype=torch.float64).view(3, 8)


@pytest.fixture
def model():
    """A plain model with adapters a, b (sequential) and c (parallel)."""
    model = plain_model().double()
    for name in "abc":
        attach(model, PARALLEL if name == "c" else CONFIG, name)
    randomise(model)
    return model


def test_mean_of_what_the_parts_give(model):
    narrow = model.blocks[0].narrow
    hidden_states = torch.randn(4, 12, dtype=torch.float64)
    with disabled(model):
        base = narrow(hidden_states)
    a, b = narrow.adapterx["a"], narrow.adapterx["b"]
    one, two, both = a(base, base), b(base, base), b(a(base, base), a(base, base))
    for composition, expected in (
        (Average("a", "b"), (one + two) / 2),
        (Average("a", "b", weights=[3, 1]), 0.75 * one + 0.25 * two),
        (Average("a", "b", weights=[3, -1], normalize=False), 3 * one - two),
        (Average("a"), one),
        (Stack("a", Average("b")), both),
    ):
        set_active(model, composition)
        torch.testing.assert_close(narrow(hidden_states), expected)
    set_active(model, Stack(Average("a", "b"), "c"))
    assert active_adapters(model) == ("a", "b", "c")


def test_sequential_and_parallel_parts_read_their_own(model):
    outputs = {}
    for name in ("a", "c"):
        set_active(model, name)
        outputs[name] = model.blocks[0](HIDDEN_STATES)
    set_active(model, Average("a", "c", weights=[1, 3]))
    expected = (outputs["a"] + 3 * outputs["c"]) / 4
    torch.testing.assert_close(model.blocks[0](HIDDEN_STATES), expected)


def test_parts_that_hang_elsewhere_leave_the_module_alone(model):
    attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), layers=(1,)), "top", active=False)
    set_active(model, "a")
    one = model.blocks[0](HIDDEN_STATES)
    set_active(model, Average("a", "top"))
    with disabled(model):
        base = model.blocks[0](HIDDEN_STATES)
    torch.testing.assert_close(model.blocks[0](HIDDEN_STATES), (one + base) / 2)


def test_new_adapters_change_nothing_together_bit_for_bit():
    model = build("bert")
    inputs = inputs_for("bert", model)
    base = run(model, inputs)
    for name in "abc":
        attach(model, AdapterConfig(bottleneck_dim=4), name)
    set_active(model, Average("a", "b", "c", weights=[1, 1, 7]))
    assert torch.equal(run(model, inputs), base)


def test_all_parts_train(model):
    set_active(model, Average("a", Stack("b", "c")))
    model(HIDDEN_STATES).square().sum().backward()
    for name, parameter in adapter_parameters(model):
        assert parameter.requires_grad, name
        assert parameter.grad.abs().sum() > 0, name


def test_trained_copies_are_averaged():
    model = plain_model()
    for name in "ab":
        attach(
            model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), modules_to_save=("classifier",)), name
        )
    attach(model, CONFIG, "without")
    randomise(model)
    hidden_states = torch.randn(4, 8)
    a, b = (model.classifier.adapterx_copies[name](hidden_states) for name in "ab")
    with disabled(model):
        base = model.classifier(hidden_states)
    set_active(model, Average("a", "b", weights=[1, 3]))
    torch.testing.assert_close(model.classifier(hidden_states), 0.25 * a + 0.75 * b)
    set_active(model, Average("a", "without"))
    torch.testing.assert_close(model.classifier(hidden_states), (a + base) / 2)
    set_active(model, Stack("a", "without"))
    torch.testing.assert_close(model.classifier(hidden_states), a)


def test_copies_and_pickles_keep_the_composition(model):
    composition = Average("a", Stack("b", "c"), weights=[1, 2])
    set_active(model, composition)
    expected = model(HIDDEN_STATES)
    for twin in (copy.deepcopy(model), pickled(model)):
        assert {name: entry.composition for name, entry in adapters(twin).items()} == dict.fromkeys("abc", composition)
        assert torch.equal(twin(HIDDEN_STATES), expected)


def test_a_detached_part_leaves_the_mean(model):
    set_active(model, Average("a", "b", "c", weights=[1, 2, 1]))
    detach(model, "b")
    mean = model(HIDDEN_STATES)
    set_active(model, Average("a", "c"))
    torch.testing.assert_close(model(HIDDEN_STATES), mean)


def test_saved_adapters_give_the_same_mean_elsewhere(tmp_path):
    model = build("bert")
    inputs = inputs_for("bert", model)
    twin = copy.deepcopy(model)
    for name in "ab":
        attach(model, AdapterConfig(bottleneck_dim=4), name)
    randomise(model)
    set_active(model, Average("a", "b", weights=[1, 3]))
    for name in "ab":
        save_adapter(model, tmp_path / name, name)
        load_adapter(twin, tmp_path / name)
    written = composition_to_dict(adapters(model)["a"].composition)
    set_active(twin, composition_from_dict(written))
    assert torch.equal(run(twin, inputs), run(model, inputs))


def test_exported_models_compute_the_mean(tmp_path):
    model = build("bert")
    for name in "ab":
        attach(model, AdapterConfig(bottleneck_dim=4), name)
    randomise(model)
    composition = Average("a", "b", weights=[1, 3])
    set_active(model, composition)
    for document in (  # each is compared with the model at five shapes, or raises
        to_torchscript(model, tmp_path / "model.pt"),
        to_onnx(model, tmp_path, mode="function"),
        to_onnx(model, tmp_path, mode="portable"),
    ):
        assert document["validation"]["max_abs_diff"] < 1e-4
        assert composition_from_dict(document["composition"]) == composition
        assert [entry["name"] for entry in document["adapters"]] == ["a", "b"]
    assert read_metadata(tmp_path / "model.onnx")["adapter_nodes"] == 4  # one for both adapters of a module


def test_compiles_in_one_graph():
    model = build("bert")
    inputs = inputs_for("bert", model)
    for name in "ab":
        attach(model, AdapterConfig(bottleneck_dim=4), name)
    randomise(model)
    set_active(model, Average("a", "b", weights=[1, 3]))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(compiled, inputs), run(model, inputs))


def test_what_cannot_run_is_refused_and_changes_nothing(model):
    set_active(model, "a")
    with pytest.raises(ConfigError, match="set_active: fusion 'b,c' must have been added to"):
        set_active(model, Stack("a", Fuse("b", "c")))
    assert active_adapters(model) == ("a",)


def test_containers_that_differ_are_refused():
    class Several(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind, self.linear = kind, nn.Linear(8, 8)

        def forward(self, hidden_states):
            return self.kind((self.linear(hidden_states), hidden_states))

    model = plain_model()
    model.add_module("several", Several(tuple))
    attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), modules_to_save=("several",)), "a")
    attach(model, CONFIG, "b")
    set_active(model, Average("a", "b"))
    _, two = model.several(torch.ones(2, 8))
    torch.testing.assert_close(two, torch.ones(2, 8))
    model.several.adapterx_copies["a"].kind = list
    with pytest.raises(TypeError, match="trained copies of several and the module itself must return"):
        model.several(torch.ones(2, 8))


def test_unknown_order_of_parts_on_one_sublayer():
    model = build("bert")
    attach(model, AdapterConfig(bottleneck_dim=4), "inside")
    attach(model, AdapterConfig(bottleneck_dim=4, placement="normed_sum"), "behind")
    set_active(model, ["inside", "behind"])
    with pytest.raises(ConfigError, match="in the order in which it runs, got 'behind', which reads the normed sum"):
        set_active(model, ["behind", "inside"])
    with pytest.raises(ConfigError, match="parts of Average"):
        set_active(model, Average("inside", "behind"))
    assert active_adapters(model) == ("inside", "behind")
