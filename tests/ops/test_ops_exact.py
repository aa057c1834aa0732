"""Infinity, NaN and subnormal numbers go through the operator as they go through PyTorch's own operators."""

import pytest
import torch
from ops_cases import ACTIVATIONS, compute, expect

INFINITE = float("inf")
# PyTorch's own vector code makes NaN of gelu(inf), its scalar code inf; ours is inf.
MONOTONE = tuple(name for name in ACTIVATIONS if name not in ("gelu", "gelu_tanh"))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def pattern(tensor):
    return torch.where(tensor.isnan(), 3, torch.where(tensor.isinf(), torch.where(tensor > 0, 1, 2), 0))


def arguments_with(value, where, width, bottleneck_dim, dtype):
    torch.manual_seed(1)
    sizes = ((5, width), (5, width), (bottleneck_dim, width), (bottleneck_dim,), (width, bottleneck_dim), (width,))
    tensors = [torch.randn(size) * (0.2 if index in (2, 4) else 1) for index, size in enumerate(sizes)]
    tensors[where].view(-1)[0] = value
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", MONOTONE)
def test_the_same_places_are_infinite_or_not_a_number_as_in_pytorch(activation, dtype):
    for value in (INFINITE, -INFINITE, float("nan")):
        for where in range(6):
            for width, bottleneck_dim in ((16, 4), (37, 7)):
                arguments = arguments_with(value, where, width, bottleneck_dim, dtype)
                got, expected = compute(arguments, activation, 1.0), expect(arguments, activation, 1.0)
                assert torch.equal(pattern(got), pattern(expected)), (value, where, width)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_lets_no_infinity_of_the_weights_pass_where_it_is_off(dtype):
    for value in (INFINITE, -INFINITE, float("nan")):
        arguments = arguments_with(value, 4, 37, 7, dtype)
        got = torch.autograd.grad(compute(arguments, "relu", 1.0).sum(), arguments)
        expected = torch.autograd.grad(expect(arguments, "relu", 1.0).sum(), arguments)
        for own, right in zip(got, expected, strict=True):
            assert torch.equal(pattern(own), pattern(right))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_an_adapter_at_initialisation_are_passed_on_to_the_bit(dtype):
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    gradient = (torch.arange(-320, 320).reshape(40, 16).double() * smallest).to(dtype)
    hidden_states = torch.randn(40, 16).to(dtype).requires_grad_()
    weights = [torch.randn(3, 16).to(dtype), None, torch.zeros(16, 3, dtype=dtype), None]
    (got,) = torch.autograd.grad(compute([hidden_states, hidden_states, *weights]), hidden_states, gradient)
    assert torch.equal(got, gradient)
