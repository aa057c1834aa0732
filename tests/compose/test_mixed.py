"""`mixed`: each sequence of a batch with an adapter of its own gives what it gives alone."""

import copy
import gc
import threading
import weakref

import pytest
import torch
import transformers
from tiny_models import FAMILIES, build, inputs_for, plain_model, run
from torch import nn

from adapterx import (
    AdapterConfig,
    AdapterSet,
    UnknownAdapterError,
    active_adapters,
    adapter_names,
    adapter_parameters,
    attach,
    detach,
    disabled,
    grouping,
    mixed,
    set_active,
)
from adapterx.export import to_onnx

PARALLEL = {"placement": "parallel"}
# Everything that adapters of one batch may differ in. "top" hangs on a part of the modules only.
CONFIGS = {
    "plain": AdapterConfig(bottleneck_dim=4),
    "wide": AdapterConfig(bottleneck_dim=7, scaling=-0.5),
    "bare": AdapterConfig(bottleneck_dim=3, down_bias=False, up_bias=False, scaling="learned"),
    "channels": AdapterConfig(bottleneck_dim=2, up_bias=False, scaling="learned_per_channel"),
    "sigmoid": AdapterConfig(bottleneck_dim=5, activation="sigmoid"),
    "sigmoid-wide": AdapterConfig(bottleneck_dim=6, activation="sigmoid", down_bias=False),
    "parallel": AdapterConfig(bottleneck_dim=4, **PARALLEL),
    "parallel-wide": AdapterConfig(bottleneck_dim=6, scaling=2.0, **PARALLEL),
    "top": AdapterConfig(bottleneck_dim=4, positions=("feed_forward",), layers=(1,)),
}
NAMES = [
    "wide",
    None,
    "plain",
    "bare",
    "channels",
    "sigmoid",
    "parallel",
    "parallel-wide",
    "top",
    "plain",
    "sigmoid-wide",
]


def randomise(model, scale=0.3):
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for _, parameter in adapter_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def adapted(name="bert", configs=CONFIGS, dtype=torch.float64):
    """Return a model with all adapters, of which "wide", or else the first, is active."""
    model = (build(name) if isinstance(name, str) else name).to(dtype)
    for adapter, config in configs.items():
        attach(model, config, adapter, active=False)
    randomise(model)
    set_active(model, "wide" if "wide" in configs else next(iter(configs)))
    return model


def small_model(configs=None, **options):
    """Return a plain model of matrices with adapters a, b (wider) and c (parallel) on its feed-forward layers."""
    shared = {"positions": ("feed_forward",), **options}
    chosen = configs or {
        "a": AdapterConfig(bottleneck_dim=3, **shared),
        "b": AdapterConfig(bottleneck_dim=5, **shared),
        "c": AdapterConfig(bottleneck_dim=2, **shared, **PARALLEL),
    }
    return adapted(plain_model(), chosen)


def alone(model, names, inputs, forward=run):
    """Return what each sequence gives with its own adapter, in batches of the same shape."""
    active = active_adapters(model)
    rows = []
    for index, name in enumerate(names):
        set_active(model, name)
        rows.append(forward(model, inputs)[index])
    set_active(model, active)
    return torch.stack(rows)


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def groups_of(model):
    return [group for m in model.modules() if isinstance(m, AdapterSet) and m.mixture for _, group in m.mixture]


HIDDEN_STATES = torch.linspace(-1, 1, 24, dtype=torch.float64).view(3, 8)


def call(model, inputs):
    return model(inputs)


# --- results ----------------------------------------------------------------------------------------------------------


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
    operator = grouping.ops.bottleneck_adapter
    monkeypatch.setattr(
        grouping.ops,
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


def alone_outside(model, names, inputs):
    """Compute `alone` in a copy, which knows nothing of the block around it."""
    return alone(copy.deepcopy(model), names, inputs)


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


# --- precision --------------------------------------------------------------------------------------------------------


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
        ((_, group),) = model.blocks[0].narrow.adapterx.mixture
        group_output.append(group(hidden_states, hidden_states))
    assert torch.equal(group_output[0], hidden_states)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_gradients_reach_exactly_the_named_adapters(name):
    model = adapted(name).train()
    names = [key for key in NAMES if key != "plain"]
    inputs = inputs_for(name, model, batch=len(names))
    wanted = {}
    for index, adapter in enumerate(names):
        set_active(model, adapter)
        loss = run(model, inputs)[index].square().sum()
        for key, parameter in adapter_parameters(model, adapter) if adapter else ():
            (wanted[key],) = torch.autograd.grad(loss, [parameter], retain_graph=True)
    with mixed(model, names):
        run(model, inputs).square().sum().backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == wanted.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], atol=1e-10, rtol=1e-8)


def test_what_the_user_freezes_inside_stays_frozen():
    model = small_model()
    before = flags(model)
    with mixed(model, ["a", "b", "b"]):
        for _, parameter in adapter_parameters(model, "a"):
            parameter.requires_grad_(False)
        model(HIDDEN_STATES).sum().backward()
        assert all(parameter.grad is None for _, parameter in adapter_parameters(model, "a"))
        assert all(parameter.grad is not None for _, parameter in adapter_parameters(model, "b"))
    assert flags(model) == before


def test_backward_after_the_block_is_refused_where_it_would_lose_gradients():
    model = small_model()  # "a" is active
    with mixed(model, ["a", "a", None]):
        loss = model(HIDDEN_STATES).sum()
    loss.backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(model, "a"))
    with mixed(model, ["a", "a", "b"]):
        loss = model(HIDDEN_STATES).sum()
    with pytest.raises(RuntimeError, match=r"mixed: backward\(\) must run inside the `with` block"):
        loss.backward(retain_graph=True)
    set_active(model, ["a", "b"])
    loss.backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(model, "b"))


@pytest.mark.parametrize("fused", [True, False])
def test_training_and_evaluating_in_turns(fused):
    model = small_model(scaling="learned")
    names = ["b", "c", "a"]
    optimizer = torch.optim.AdamW([p for _, p in adapter_parameters(model)], lr=0.1, fused=fused)
    with mixed(model, names):
        for _ in range(3):
            loss = model(HIDDEN_STATES).square().sum()
            with torch.no_grad():
                model(HIDDEN_STATES)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                found = model(HIDDEN_STATES)
                torch.testing.assert_close(found, alone_outside_of_small(model, names))


def alone_outside_of_small(model, names):
    return alone(copy.deepcopy(model), names, HIDDEN_STATES, call)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    model = adapted().train()
    inputs = inputs_for("bert", model, batch=len(NAMES))

    def gradients():
        model.zero_grad()
        with mixed(model, NAMES):
            run(model, inputs).square().mean().backward()
        return [parameter.grad.clone() for _, parameter in adapter_parameters(model)]

    plain = gradients()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for one, other in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(one, other)


# --- dropout ----------------------------------------------------------------------------------------------------------


def test_one_rate_of_dropout_draws_like_a_single_adapter():
    model = small_model(dropout=0.5).train()
    set_active(model, "b")
    torch.manual_seed(3)
    expected = model(HIDDEN_STATES)
    with mixed(model, ["b"] * 3):
        torch.manual_seed(3)
        torch.testing.assert_close(model(HIDDEN_STATES), expected)
        model.eval()
        found = model(HIDDEN_STATES)
    torch.testing.assert_close(found, model(HIDDEN_STATES))


def test_every_adapter_has_its_own_rate_of_dropout():
    rates = {"none": 0.0, "some": 0.2, "most": 0.9}
    model = nn.Sequential(nn.Linear(64, 64))
    for name, rate in rates.items():
        attach(model, AdapterConfig(bottleneck_dim=4, target_modules=("0",), dropout=rate), name)
    randomise(model)
    names = ["some", None, "most", "none"]
    hidden_states = torch.randn(4, 500, 64)
    with torch.no_grad(), disabled(model):
        base = model(hidden_states)
    with torch.no_grad(), mixed(model, names):
        branch = model.eval()(hidden_states) - base
        dropped = model.train()(hidden_states) - base
        model[0].adapterx["most"].eval()
        half = model(hidden_states) - base
    for index, rate in enumerate(rates.get(name, 0.0) for name in names):
        kept = dropped[index] != 0
        if names[index] is not None:
            assert abs(float(kept.float().mean()) - (1 - rate)) < 0.01
        torch.testing.assert_close(dropped[index][kept], branch[index][kept] / (1 - rate), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(half[2], branch[2])
    assert not torch.allclose(half[0], branch[0])


# --- what is kept between forward passes ------------------------------------------------------------------------------


@pytest.fixture
def stacked(monkeypatch):
    """Count how often weights are stacked."""
    count = []
    stack = grouping.stack_weights
    monkeypatch.setattr(grouping, "stack_weights", lambda *args: (count.append(1), stack(*args))[1])
    return count


def test_weights_are_stacked_once_while_nothing_trains(stacked):
    model = small_model()
    with mixed(model, ["a", "b", "c"]):
        with torch.no_grad():
            first = model(HIDDEN_STATES)
            assert len(stacked) == 4  # two groups on each of two modules
            assert torch.equal(model(HIDDEN_STATES), first)
        with torch.inference_mode():
            assert torch.equal(model(HIDDEN_STATES), first)
        assert len(stacked) == 4
        model.requires_grad_(False)
        assert torch.equal(model(HIDDEN_STATES), first)
        assert len(stacked) == 4


def test_weights_stacked_in_inference_mode_serve_training(stacked):
    model = small_model()
    with torch.inference_mode(), mixed(model, ["a", "b", "c"]):
        model(HIDDEN_STATES)
        count = len(stacked)
        model.requires_grad_(False)
        with torch.inference_mode(False):
            hidden_states = HIDDEN_STATES.clone().requires_grad_()
            model(hidden_states).sum().backward()
    assert len(stacked) == count
    assert hidden_states.grad.abs().sum() > 0


CHANGES = {
    "in place": lambda module, key: getattr(module, key).mul_(2.0),
    "in place, in inference mode": lambda module, key: torch.inference_mode()(getattr(module, key).mul_)(2.0),
    "replaced": lambda module, key: setattr(module, key, nn.Parameter(getattr(module, key) * 2)),
    "other memory": lambda module, key: setattr(getattr(module, key), "data", getattr(module, key) * 2),
    "loaded": lambda module, key: module.load_state_dict({k: v * 2 for k, v in module.state_dict().items()}),
    "assigned": lambda module, key: module.load_state_dict(
        {k: nn.Parameter(v * 2) for k, v in module.state_dict().items()}, assign=True
    ),
}


@pytest.mark.parametrize("key", ["weight", "bias"])
@pytest.mark.parametrize("projection", ["down_proj", "up_proj"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_parameters_are_stacked_anew(change, projection, key):
    model = small_model(scaling="learned")
    names = ["a", "b", "c"]
    with torch.no_grad(), mixed(model, names):
        before = model(HIDDEN_STATES)
        CHANGES[change](getattr(model.blocks[0].narrow.adapterx["b"], projection), key)
        found = model(HIDDEN_STATES)
        assert not torch.allclose(found, before)
        torch.testing.assert_close(found, alone_outside_of_small(model, names))


def test_changed_scaling_and_dtype():
    model = small_model(scaling="learned")
    names = ["a", "b", "c"]
    with torch.no_grad(), mixed(model, names):
        model(HIDDEN_STATES)
        model.blocks[1].narrow.adapterx["c"].scaling.mul_(3)
        torch.testing.assert_close(model(HIDDEN_STATES), alone_outside_of_small(model, names))
        model.float()
        found = model(HIDDEN_STATES.float())
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found, alone(copy.deepcopy(model), names, HIDDEN_STATES.float(), call), atol=1e-5, rtol=1e-5
        )


def test_a_model_that_moves_inside_the_block():
    model = small_model()
    with torch.no_grad(), mixed(model, ["a", "b", "c"]):
        model(HIDDEN_STATES)
        model.to("meta")
        assert model(HIDDEN_STATES.to("meta")).is_meta


def test_functional_calls_and_transforms():
    model = small_model()
    names = ["a", "b", "c"]
    parameters = {key: p.detach() * 2 for key, p in adapter_parameters(model)}

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (HIDDEN_STATES,)).square().sum()

    with mixed(model, names):
        with torch.no_grad():
            model(HIDDEN_STATES)  # what is kept from here serves nobody else
        found = torch.func.grad(loss)(parameters)
        leaves = {key: p.clone().requires_grad_() for key, p in parameters.items()}
        expected = torch.autograd.grad(loss(leaves), list(leaves.values()))
    for gradient, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(gradient, other)
        assert gradient.abs().sum() > 0


def test_parametrised_weights_are_never_kept():
    model = small_model()
    names = ["a", "b", "c"]
    projection = model.blocks[0].narrow.adapterx["a"].down_proj
    nn.utils.parametrizations.weight_norm(projection)
    with mixed(model, names):
        with torch.no_grad():
            model(HIDDEN_STATES)
            projection.parametrizations.weight.original0.mul_(2.0)
            torch.testing.assert_close(model(HIDDEN_STATES), alone_outside_of_small(model, names))
        model(HIDDEN_STATES).sum().backward()
        assert projection.parametrizations.weight.original0.grad is not None


def test_the_end_of_the_block_frees_the_stacked_weights():
    model = small_model()
    with torch.no_grad(), mixed(model, ["a", "b", "c"]):
        model(HIDDEN_STATES)
        kept = [weakref.ref(group.cache.weights.down_weight) for group in groups_of(model)]
        assert len(kept) == 4
        kept.append(weakref.ref(groups_of(model)[0].batch))  # which no optimizer holds on to either
    gc.collect()
    assert not any(reference() is not None for reference in kept)


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_restore_what_was_before():
    model = small_model()
    set_active(model, ["c", "a"])
    adapter = model.blocks[0].narrow.adapterx["c"]
    adapter.down_proj.bias.requires_grad_(False)  # a flag of the user's own
    before, output = flags(model), model(HIDDEN_STATES)
    with mixed(model, ["b", None, "b"]):
        assert {key.split(".")[-3] for key, flag in flags(model).items() if flag} == {"b"}
        assert active_adapters(model) == ("c", "a")
        assert adapter_names(model) == ("a", "b", "c")
        assert not torch.equal(model(HIDDEN_STATES), output)
    assert flags(model) == before
    assert torch.equal(model(HIDDEN_STATES), output)
    with pytest.raises(ZeroDivisionError), mixed(model, ["b", "b", "a"]):
        _ = 1 / 0
    assert flags(model) == before
    assert torch.equal(model(HIDDEN_STATES), output)
    assert active_adapters(model) == ("c", "a")


def test_blocks_nest():
    model = small_model()
    outer, inner = ["a", "b", None], ["c", None]
    with torch.no_grad():
        expected = alone(model, outer, HIDDEN_STATES, call)
        other = alone(model, inner, HIDDEN_STATES[:2], call)
        with mixed(model, outer):
            torch.testing.assert_close(model(HIDDEN_STATES), expected)
            during = flags(model)
            with mixed(model, inner):
                torch.testing.assert_close(model(HIDDEN_STATES[:2]), other)
            assert flags(model) == during
            torch.testing.assert_close(model(HIDDEN_STATES), expected)


def test_disabled_inside_and_around():
    model = small_model()
    with disabled(model):
        base = model(HIDDEN_STATES)
        with mixed(model, ["a", "b", "c"]):
            assert torch.equal(model(HIDDEN_STATES), base)
    with mixed(model, ["a", "b", "c"]):
        found = model(HIDDEN_STATES)
        with disabled(model):
            assert torch.equal(model(HIDDEN_STATES), base)
        assert torch.equal(model(HIDDEN_STATES), found)
    assert not torch.allclose(found, base)


def test_a_block_on_a_part_of_the_model():
    model = small_model()
    with torch.no_grad():
        with mixed(model.blocks[0], ["b", "b", "b"]):
            found = model(HIDDEN_STATES)
        set_active(model.blocks[0], "b")
        assert torch.equal(model(HIDDEN_STATES), found)


def test_who_takes_part_cannot_change_inside():
    model = small_model()
    before = model(HIDDEN_STATES)
    with mixed(model, ["b", "b", "b"]):
        for function, act in (
            ("set_active", lambda: set_active(model, "c")),
            ("detach", lambda: detach(model, "a")),
            ("attach", lambda: attach(model, CONFIGS["plain"], "late", active=False)),
            ("to_onnx", lambda: to_onnx(model, "nowhere", example=(HIDDEN_STATES,))),
        ):
            with pytest.raises(RuntimeError, match=f"{function}: model must not be inside a `mixed` block"):
                act()
    assert adapter_names(model) == ("a", "b", "c")
    assert torch.equal(model(HIDDEN_STATES), before)


def test_copies_and_pickles_know_nothing_of_the_block():
    model = small_model()
    before = model(HIDDEN_STATES)
    with mixed(model, ["b", "b", None]):
        twin = copy.deepcopy(model)
    assert torch.equal(twin(HIDDEN_STATES), before)
    set_active(twin, "c")


def test_threads_share_a_block():
    model = adapted()
    inputs = inputs_for("bert", model, batch=len(NAMES))
    found = []

    def work():
        with torch.no_grad():
            found.extend(run(model, inputs) for _ in range(5))

    with mixed(model, NAMES):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with torch.no_grad():
            expected = run(model, inputs)
    assert len(found) == 20
    assert all(torch.equal(result, expected) for result in found)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("a", TypeError, "names must be a sequence of adapter names and None, got 'a'"),
        (None, TypeError, "names must be a sequence of adapter names and None, got None"),
        ({"a": 1}, TypeError, "names must be a sequence"),
        (["a", 3], TypeError, "names must hold strings and None, got 3 among them"),
        ([], ValueError, "names must have one entry for each sequence of the batch, got none"),
        (["a", "z", "y"], UnknownAdapterError, "mixed: name must be an attached adapter, got 'y', 'z'; attached are"),
    ],
)
def test_names_that_are_none(names, error, message):
    model = small_model()
    before = flags(model)
    with pytest.raises(error, match=message), mixed(model, names):
        pass
    assert flags(model) == before


@pytest.mark.parametrize("shape", [(4, 8), (2, 5, 8), (6, 2, 8), (8,)])
def test_batches_of_another_size(shape):
    model = small_model()
    message = r"mixed: the hidden states of blocks\.0\.narrow must be \(3, \.\.\., hidden_size\).*got shape \("
    with mixed(model, ["a", None, "b"]), pytest.raises(ValueError, match=message):
        model(torch.zeros(shape, dtype=torch.float64))


def test_one_token_is_not_a_batch():
    model = small_model()
    with mixed(model, ["a"] * 8), pytest.raises(ValueError, match=r"blocks\.0\.narrow must be .*got shape \(8,\)"):
        model(torch.zeros(8, dtype=torch.float64))


# --- generating -------------------------------------------------------------------------------------------------------

LANGUAGE_MODELS = {"gpt2": "AutoModelForCausalLM", "llama": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM"}


def language_model(name):
    config_class, values, _ = FAMILIES[name]
    config = getattr(transformers, config_class)(**values)
    if name == "t5":
        config.decoder_start_token_id = 0
    torch.manual_seed(5)
    model = getattr(transformers, LANGUAGE_MODELS[name]).from_config(config).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return adapted(model, {key: value for key, value in CONFIGS.items() if key != "top"})


def generate(model, ids, **options):
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, **options}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_generating_with_a_cache_of_keys_and_values(name):
    model = language_model(name)
    names = ["wide", "parallel", None, "channels"]
    ids = torch.randint(3, 99, (4, 5))
    expected = alone(model, names, ids, generate)
    with mixed(model, names):
        found = generate(model, ids)
    assert found.tolist() == expected.tolist()
    assert len({tuple(row[-6:].tolist()) for row in found}) > 1


def test_beams_have_names_of_their_own():
    model = language_model("gpt2")
    names = ["wide", None, "sigmoid"]
    ids = torch.randint(3, 99, (3, 5))
    expected = alone(model, names, ids, lambda model, ids: generate(model, ids, num_beams=2))
    with mixed(model, [name for name in names for _ in range(2)]):
        found = generate(model, ids, num_beams=2)
    assert found.tolist() == expected.tolist()
    with mixed(model, names), pytest.raises(ValueError, match="mixed: the hidden states of transformer"):
        generate(model, ids, num_beams=2)


def test_an_encoder_reads_the_batch_before_its_rows_are_repeated():
    model = language_model("t5")
    names = ["wide", "parallel", None]
    ids = torch.randint(3, 99, (3, 5))
    expected = alone(model, names, ids, lambda model, ids: generate(model, ids, num_beams=2))
    with torch.no_grad(), mixed(model, names):
        encoded = model.get_encoder()(input_ids=ids)
    with mixed(model, [name for name in names for _ in range(2)]):
        options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 2}
        found = model.generate(encoder_outputs=encoded, attention_mask=torch.ones_like(ids), **options)
    assert found.tolist() == expected.tolist()


# --- copies of modules ------------------------------------------------------------------------------------------------


def with_copies(model, module, configs=("a", "b", "bare")):
    for name in configs:
        saved = () if name == "bare" else (module,)
        attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("narrow",), modules_to_save=saved), name)
    randomise(model)
    return model.double()


@pytest.mark.parametrize(
    "names", [["b", None, "a"], ["a", "b", "a"], ["b", "b", "b"], ["bare", "b", None], ["bare"] * 3]
)
def test_each_sequence_has_its_own_trained_copy(names):
    model = with_copies(plain_model(), "classifier")
    set_active(model, "a")
    for hidden_states in (HIDDEN_STATES, torch.randn(3, 4, 8, dtype=torch.float64)):
        expected = alone(model, names, hidden_states, call)
        with mixed(model, names):
            torch.testing.assert_close(model(hidden_states), expected)
            if hidden_states.dim() == 3:
                found = model(hidden_states.view(12, 8))
                torch.testing.assert_close(found, expected.view(12, 3))


def test_copies_run_on_their_own_sequences_and_train():
    model = with_copies(plain_model(), "classifier")
    seen = []
    for copied in model.classifier.adapterx_copies.values():
        copied.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[0]))
    names = ["b", None, "b"]
    with mixed(model, names):
        model(HIDDEN_STATES).square().sum().backward()
    assert seen == [2]
    found = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert found == {key for key, _ in adapter_parameters(model, "b")}
    wanted = {key: parameter.grad.clone() for key, parameter in adapter_parameters(model, "b")}
    model.zero_grad()
    set_active(model, "b")
    model(HIDDEN_STATES)[[0, 2]].square().sum().backward()
    for key, parameter in adapter_parameters(model, "b"):
        torch.testing.assert_close(parameter.grad, wanted[key])
    set_active(model, None)
    with mixed(model.classifier, ["b", "b", "b"]):
        loss = model(HIDDEN_STATES).sum()
    with pytest.raises(RuntimeError, match=r"mixed: backward\(\) must run inside"):
        loss.backward()


class Head(nn.Module):
    """A head that receives two tensors and returns a dictionary and a tuple."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, hidden_states, mask, *, kind="x"):
        logits = self.linear(hidden_states * mask.unsqueeze(-1))
        return transformers.modeling_outputs.ModelOutput(logits=logits, rest=(logits.sum(-1), [kind, None]))


class WithHead(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.blocks, self.head = plain_model().blocks, head

    def forward(self, hidden_states):
        return self.head(self.blocks(hidden_states), torch.ones(hidden_states.shape[:-1]), kind="y")


def test_copies_of_modules_with_several_tensors_and_containers():
    model = with_copies(WithHead(Head()), "head")
    names = ["b", None, "a"]
    hidden_states = torch.randn(3, 4, 8, dtype=torch.float64)
    expected = [alone(model, names, hidden_states, forward) for forward in (
        lambda model, inputs: model(inputs).logits, lambda model, inputs: model(inputs).rest[0])]  # fmt: skip
    with mixed(model, names):
        found = model(hidden_states)
    assert type(found) is transformers.modeling_outputs.ModelOutput
    torch.testing.assert_close(found["logits"], expected[0])
    torch.testing.assert_close(found["rest"][0], expected[1])
    assert found["rest"][1] == ["y", None]


def test_copies_must_agree():
    model = with_copies(plain_model(), "classifier")
    model.classifier.adapterx_copies["a"] = nn.Linear(8, 4).double()
    with (
        mixed(model, ["a", "b", "b"]),
        pytest.raises(
            ValueError, match=r"trained copies of classifier .* same shape for a sequence, got \(4,\) and \(3,\)"
        ),
    ):
        model(HIDDEN_STATES)
    model.classifier.adapterx_copies["a"] = nn.Sequential(nn.Linear(8, 3).double(), nn.Flatten(0))
    with mixed(model, ["a", "a", "b"]), pytest.raises(ValueError, match=r"output of classifier .* got shape \(6,\)"):
        model(HIDDEN_STATES)

    class Pair(nn.Linear):
        def forward(self, hidden_states):
            return super().forward(hidden_states), 1

    model.classifier.adapterx_copies["a"] = Pair(8, 3).double()
    with mixed(model, ["a", "b", "b"]), pytest.raises(TypeError, match="same containers, got Tensor, tuple"):
        model(HIDDEN_STATES)


def test_classifiers_and_embeddings_of_a_real_model():
    config = transformers.BertConfig(**FAMILIES["bert"][1], num_labels=3)
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    saved = ("classifier", "bert.embeddings.word_embeddings")
    model = adapted(
        model,
        {
            "a": AdapterConfig(bottleneck_dim=3, modules_to_save=saved),
            "b": AdapterConfig(bottleneck_dim=4, modules_to_save=saved[:1]),
        },
    )
    names = ["b", "a", None, "a"]
    inputs = inputs_for("bert", model, batch=4)
    with torch.no_grad():
        expected = alone(model, names, inputs)
        with mixed(model, names):
            torch.testing.assert_close(run(model, inputs), expected)


# --- compiling --------------------------------------------------------------------------------------------------------


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
