"""`mixed`: each sequence of a batch with an adapter of its own gives what it gives alone."""

import pytest
import torch
from mixed_cases import CONFIGS, HIDDEN_STATES, NAMES, PARALLEL, adapted, alone, alone_outside, call, small_model
from tiny_adapters import randomise
from tiny_models import FAMILIES, inputs_for, run
from torch import nn

from adapterx import AdapterConfig, AdapterSet, attach, disabled, mixed
from adapterx.compose import group


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "t5", "bart"])
def test_each_sequence_is_adapted_as_if_alone(name, dtype, tolerance):
    configs = {key: config for key, config in CONFIGS.items() if key != "top" or FAMILIES[name][2] == 4}
    model = adapted(name, configs, dtype)
    names = [key for key in NAMES if key is None or key in configs]
    inputs = inputs_for(name, model, batch=len(names))
    with torch.no_grad():
        expected = alone(model, names, inputs)
        with mixed(model, names) as same:
            assert same is model
            found = run(model, inputs)
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, atol=tolerance, rtol=0)
    assert len({tuple(row.flatten().tolist()) for row in found}) == len(found)  # they do differ


def test_modules_call_the_operator_once_for_what_it_can_serve_together(monkeypatch):
    model = adapted()
    inputs = inputs_for("bert", model, batch=len(NAMES))
    calls = []
    operator = group.ops.bottleneck_adapter
    monkeypatch.setattr(
        group.ops,
        "bottleneck_adapter",
        lambda *args, **kwargs: (calls.append(kwargs["adapter_indices"]), operator(*args, **kwargs))[1],
    )
    with torch.no_grad(), mixed(model, NAMES):
        run(model, inputs)
    assert len(calls) == 3 * 4  # gelu, sigmoid, parallel; 4 modules
    assert len({id(indices) for indices in calls}) == 4  # "top" hangs on one module, which so has its own indices


def test_a_sequence_alone_in_its_batch_and_all_with_one_adapter():
    model = adapted("llama")
    inputs = inputs_for("llama", model, batch=3)
    with torch.no_grad():
        for names in (["plain"] * 3, [None] * 3, ["bare"] * 3):
            with mixed(model, names):
                torch.testing.assert_close(run(model, inputs), alone_outside(model, names, inputs))
        one = {key: value[:1] for key, value in inputs.items()}
        with mixed(model, ("channels",)):
            found = run(model, one)
        torch.testing.assert_close(found, alone(model, ["channels"], one))


def test_matrices_belong_to_sequences_by_rows():
    model = small_model()
    hidden_states = torch.randn(3, 5, 8, dtype=torch.float64)
    names = ["b", None, "c"]
    expected = alone(model, names, hidden_states, call)
    with mixed(model, names):
        torch.testing.assert_close(model(hidden_states.view(15, 8)).view(3, 5, 3), expected)
        torch.testing.assert_close(model(hidden_states.transpose(1, 2).contiguous().transpose(1, 2)), expected)
        torch.testing.assert_close(model(hidden_states[:, 0]), expected[:, 0])
        torch.testing.assert_close(model(hidden_states[:, None, :2]), expected[:, None, :2])
        assert model(hidden_states[:, :0]).shape == (3, 0, 3)
        assert model(hidden_states[:, :0].reshape(0, 8)).shape == (0, 3)


def test_sequences_without_adapter_pass_bit_for_bit():
    model = adapted(dtype=torch.float32)
    inputs = inputs_for("bert", model, batch=3)
    with torch.no_grad():
        with disabled(model):
            base = run(model, inputs)
        with mixed(model, [None, "parallel", None]):
            found = run(model, inputs)
    assert torch.equal(found[0], base[0])
    assert torch.equal(found[2], base[2])


def test_a_parallel_adapter_beside_a_sequential_one_on_a_named_module():
    named = {"bottleneck_dim": 3, "target_modules": ("narrow",)}
    model = small_model(
        {
            "a": AdapterConfig(**named),
            "b": AdapterConfig(**named, **PARALLEL),  # reads what the projection reads
            "c": AdapterConfig(bottleneck_dim=3, positions=("feed_forward",), **PARALLEL),  # what the sublayer reads
        }
    )
    names = ["c", "b", "a"]
    with mixed(model, names):
        found = model(HIDDEN_STATES)
    torch.testing.assert_close(found, alone(model, names, HIDDEN_STATES, call))


def test_captured_inputs_are_not_held():
    model = adapted()
    inputs = inputs_for("bert", model, batch=3)
    with torch.no_grad(), mixed(model, ["parallel", "parallel-wide", "wide"]):
        run(model, inputs)
    captures = [capture for m in model.modules() if isinstance(m, AdapterSet) for capture in m.captures.values()]
    assert len(captures) == 8
    assert all(capture.captured.hidden_states is None for capture in captures)


class Returning(nn.Module):
    """Return a tuple that begins with hidden states."""

    def __init__(self):
        super().__init__()
        self.in_features = self.out_features = 8
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states):
        return self.linear(hidden_states), "rest"


def test_modules_that_return_tuples():
    model = nn.Sequential(Returning()).double()
    for name, width in (("a", 2), ("b", 3)):
        attach(model, AdapterConfig(bottleneck_dim=width, target_modules=r"0\.linear|0"), name)
    randomise(model)
    expected = alone(model, "ab", HIDDEN_STATES[:2], lambda model, inputs: model(inputs)[0])
    with mixed(model, ["a", "b"]):
        found, rest = model(HIDDEN_STATES[:2])
    torch.testing.assert_close(found, expected)
    assert rest == "rest"
