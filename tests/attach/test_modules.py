"""`BottleneckAdapter` against its formula: forward, gradients, dropout, dtypes, initial weights."""

import itertools

import pytest
import torch
from torch.nn import functional

from adapterx import BottleneckAdapter, ConfigError, reference
from adapterx.bottleneck import NEAR_ZERO_SIGMA
from adapterx.targets.ports import first_input


def adapter(input_size=5, hidden_size=5, bottleneck_dim=3, *, randomise=True, **options):
    module = BottleneckAdapter(input_size, hidden_size, bottleneck_dim, **options)
    if randomise:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_()
    return module


def expected(module, hidden_states, residual):
    """The formula with learned scaling outside, in float64."""
    weights = [p if p is None else p.double() for p in (
        module.down_proj.weight, module.down_proj.bias, module.up_proj.weight, module.up_proj.bias)]  # fmt: skip
    branch = reference.bottleneck_adapter(
        hidden_states.double(), None, *weights, activation=module.activation, scaling=1.0
    )
    scaling = module.scaling.double() if isinstance(module.scaling, torch.Tensor) else module.scaling
    return residual.double() + scaling * branch


@pytest.mark.parametrize("scaling", [1.0, -2.5, "learned", "learned_per_channel"])
@pytest.mark.parametrize("activation", sorted(reference.ACTIVATIONS))
def test_forward_is_the_formula(activation, scaling):
    module = adapter(7, 5, 3, activation=activation, scaling=scaling)
    hidden_states, residual = torch.randn(2, 3, 7), torch.randn(2, 3, 5)
    torch.testing.assert_close(
        module(hidden_states, residual).double(), expected(module, hidden_states, residual), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("down_bias", "up_bias"), list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("scaling", [1.0, "learned"])
def test_biases_are_optional(down_bias, up_bias, scaling):
    module = adapter(down_bias=down_bias, up_bias=up_bias, scaling=scaling)
    assert ("down_proj.bias" in module.state_dict(), "up_proj.bias" in module.state_dict()) == (down_bias, up_bias)
    hidden_states = torch.randn(4, 5)
    torch.testing.assert_close(
        module(hidden_states, hidden_states).double(),
        expected(module, hidden_states, hidden_states),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("scaling", [0.5, "learned", "learned_per_channel"])
def test_gradients_are_those_of_the_formula(scaling):
    module = adapter(scaling=scaling)
    hidden_states = torch.randn(3, 5, requires_grad=True)
    cotangent = torch.randn(3, 5)
    module(hidden_states, hidden_states).backward(cotangent)
    found = [hidden_states.grad, *(p.grad.clone() for p in module.parameters())]
    module.zero_grad()
    wanted = torch.autograd.grad(
        expected(module, hidden_states, hidden_states), [hidden_states, *module.parameters()], cotangent.double()
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_keys_and_shapes():
    module = adapter(7, 5, 3, scaling="learned_per_channel")
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == {
        "scaling": (5,),
        "down_proj.weight": (3, 7),
        "down_proj.bias": (3,),
        "up_proj.weight": (5, 3),
        "up_proj.bias": (5,),
    }


def test_dropout_acts_on_the_scaled_branch_in_training_only():
    module = adapter(64, 64, 8, dropout=0.5, scaling=2.0)
    hidden_states = torch.randn(9, 64)
    branch = module.eval()(hidden_states, hidden_states) - hidden_states
    module.train()
    torch.manual_seed(1)
    found = module(hidden_states, hidden_states)
    torch.manual_seed(1)
    torch.testing.assert_close(found, hidden_states + functional.dropout(branch, 0.5), atol=1e-5, rtol=1e-5)
    kept = (found - hidden_states).abs() > 1e-7
    assert 0.3 < kept.float().mean() < 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_zero_up_projection_is_the_identity(dtype):
    module = adapter(33, 33, 7, randomise=False, dtype=dtype)
    hidden_states = torch.randn(5, 33).to(dtype)
    found = module(hidden_states, hidden_states)
    assert torch.equal(found, hidden_states)
    assert found.dtype == dtype


def test_identity_at_the_edges_of_the_numbers():
    module = adapter(4, 4, 2, randomise=False)
    tiny, huge = torch.finfo(torch.float32).smallest_normal / 4, torch.finfo(torch.float32).max / 16
    edge = torch.tensor([[0.0, -0.0, tiny, -huge]])
    found = module(edge, edge)
    assert torch.equal(found, edge)  # -0.0 + 0.0 is 0.0, which equals -0.0; every other bit is the same
    assert torch.equal(found.view(torch.int32)[0, 2:], edge.view(torch.int32)[0, 2:])
    for bad in (float("nan"), float("inf")):  # what is broken stays visible
        assert not module(torch.full((1, 4), bad), torch.full((1, 4), bad)).isfinite().any()
    residual = torch.full((1, 4), float("inf"))
    assert torch.equal(module(torch.ones(1, 4), residual), residual)


@pytest.mark.parametrize("hidden_dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_than_the_adapters(hidden_dtype):
    module = adapter(33, 33, 7)
    hidden_states = torch.randn(5, 33).to(hidden_dtype)
    found = module(hidden_states, hidden_states)
    assert found.dtype == hidden_dtype
    wanted = expected(module, hidden_states, hidden_states)
    own_error = (wanted.to(hidden_dtype).double() - wanted).abs().max()
    assert (found.double() - wanted).abs().max() <= 2 * own_error + 1e-4
    zero = adapter(33, 33, 7, randomise=False)
    assert torch.equal(zero(hidden_states, hidden_states), hidden_states)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_autocast_computes_low_and_keeps_the_residual(dropout):
    module = adapter(33, 33, 7, dropout=dropout, randomise=False).train()
    residual = torch.randn(5, 33)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(residual, residual), residual)  # float32 is not rounded on the way
        low = residual.bfloat16()
        found = module(low, low)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, low)


def test_autocast_trains_float32_weights():
    module = adapter(33, 33, 7)
    hidden_states = torch.randn(5, 33)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(hidden_states, hidden_states)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    wanted = expected(module, hidden_states, hidden_states)
    assert (found.double() - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert not torch.equal(found, module(hidden_states, hidden_states))  # it was bfloat16 that computed


def test_autocast_leaves_float64_alone():
    module = adapter(dtype=torch.float64)
    hidden_states = torch.randn(4, 5, dtype=torch.float64)
    plain = module(hidden_states, hidden_states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(hidden_states, hidden_states), plain)


@pytest.mark.parametrize(
    ("init", "limit", "sigma"),
    [("houlsby", 2e-2, 0.0088), ("xavier", (6 / 500) ** 0.5, (2 / 500) ** 0.5), ("he", 0.05, 0.05 / 3**0.5)],
)
def test_down_projection_initialisation(init, limit, sigma):
    weight = adapter(400, 400, 100, randomise=False, init=init).down_proj.weight
    assert weight.abs().max() <= limit
    assert weight.abs().max() > 0.99 * limit
    assert weight.std().item() == pytest.approx(sigma, rel=0.02)
    assert abs(weight.mean()) < 3 * sigma / 200


def test_up_projection_bias_and_scaling_initialisation():
    module = adapter(400, 400, 100, randomise=False, scaling="learned")
    assert not module.up_proj.weight.any()
    assert not module.up_proj.bias.any()
    assert not module.down_proj.bias.any()
    assert module.scaling.tolist() == [1.0]
    near = adapter(400, 400, 100, randomise=False, init_up="near_zero").up_proj.weight
    assert near.std().item() == pytest.approx(NEAR_ZERO_SIGMA, rel=0.02)
    hidden_states = torch.randn(10, 400)
    module = adapter(400, 400, 100, randomise=False, init_up="near_zero")
    change = module(hidden_states, hidden_states) - hidden_states
    assert 0 < change.norm() / hidden_states.norm() < 2**-8  # less than bfloat16 resolves


def test_generator_is_reproducible_and_apart_from_the_global_random_numbers():
    before = torch.get_rng_state()
    make = lambda: adapter(randomise=False, init_up="near_zero", generator=torch.Generator().manual_seed(0))  # noqa: E731
    one, other = make(), make()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.down_proj.weight, adapter(randomise=False).down_proj.weight)
    low = adapter(randomise=False, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    assert torch.equal(low.down_proj.weight, one.down_proj.weight.bfloat16())  # one seed, one set of weights


def test_meta_device_and_later_memory():
    module = adapter(randomise=False, device="meta", scaling="learned")
    assert all(parameter.is_meta for parameter in module.parameters())
    module.to_empty(device="cpu")
    module.reset_parameters(torch.Generator().manual_seed(0))
    assert torch.equal(
        module.down_proj.weight, adapter(randomise=False, generator=torch.Generator().manual_seed(0)).down_proj.weight
    )
    with torch.device("meta"):  # a named device wins over the surrounding one
        assert not adapter(randomise=False, device="cpu").down_proj.weight.is_meta


def test_first_input():
    hidden_states, ids = torch.randn(2, 3), torch.arange(3)
    assert first_input((hidden_states,), {}) is hidden_states
    assert first_input((), {"attention_mask": torch.ones(1), "hidden_states": hidden_states}) is hidden_states
    assert first_input((), {"input_ids": ids, "query": hidden_states, "key": torch.ones(1)}) is hidden_states
    with pytest.raises(TypeError, match="needs a module that receives hidden states"):
        first_input((ids,), {"flag": True})


def test_prints_what_it_is():
    assert "activation=gelu, scaling=learned, dropout=0.1" in repr(adapter(scaling="learned", dropout=0.1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"init": "xaiver"}, "init must be one of houlsby, xavier, he, got 'xaiver'"),
        ({"init_up": "one"}, "init_up must be one of zero, near_zero, got 'one'"),
        ({"scaling": "lerned"}, "scaling must be one of a number, learned, learned_per_channel, got 'lerned'"),
        ({"scaling": float("nan")}, "scaling must be a finite number, got nan"),
        ({"scaling": True}, "scaling must be a finite number, got True"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\), got 1.5"),
        ({"dropout": "0.1"}, "dropout must be a finite number, got '0.1'"),
        ({"activation": "GELU"}, "activation must be one of relu, gelu, .*, got 'GELU'"),
        ({"down_bias": 1}, "down_bias must be True or False, got 1"),
        ({"bottleneck_dim": 0}, "bottleneck_dim must be at least 1, got 0"),
        ({"hidden_size": 8.0}, "hidden_size must be an integer, got 8.0"),
        ({"input_size": True}, "input_size must be an integer, got True"),
    ],
    ids=str,
)
def test_values_that_break_their_rule_are_refused(values, words):
    with pytest.raises(ConfigError, match=f"^BottleneckAdapter: {words}"):
        BottleneckAdapter(**{"input_size": 8, "hidden_size": 8, "bottleneck_dim": 4, **values})
