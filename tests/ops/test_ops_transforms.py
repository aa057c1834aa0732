"""The operator under torch.func, forward-mode differentiation and autocast."""

import pytest
import torch
from ops_cases import NAMES, compute, copy_of, expect, make_arguments
from torch.autograd import forward_ad

# torch.func and forward mode


@pytest.mark.parametrize(
    "in_dims",
    [(0, 0, None, None, None, None), (1, None, None, None, None, None), (None, None, 0, 0, 0, 0), (0,) * 6],
    ids=str,
)
def test_vmap(in_dims):
    arguments = make_arguments((3,), 6, 5, 4)
    batched = [
        tensor if where is None else torch.stack([tensor + 0.1 * step for step in range(3)], where)
        for tensor, where in zip(arguments, in_dims, strict=True)
    ]
    actual = torch.vmap(lambda *tensors: compute(tensors), in_dims)(*batched)
    wanted = [
        expect(
            [
                tensor if where is None else tensor.select(where, step)
                for tensor, where in zip(batched, in_dims, strict=True)
            ]
        )
        for step in range(3)
    ]
    torch.testing.assert_close(actual, torch.stack(wanted))


def test_per_sample_gradients():
    arguments = make_arguments((5, 2), 6, 6, 3)

    def loss(function):
        def of(weights, sample):
            return function([sample, sample, *weights]).square().sum()

        return torch.vmap(torch.func.grad(of), (None, 0))(tuple(arguments[2:]), arguments[0])

    for mine, theirs in zip(loss(compute), loss(expect), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "hessian", "jvp", "vjp"])
def test_torch_func(transform):
    arguments = make_arguments((2,), 3, 3, 2)
    tangents = tuple(torch.randn_like(tensor) for tensor in arguments)

    def apply(function):
        def of(*tensors):
            output = function(tensors, "silu")
            return output.square().sum() if transform in ("grad", "hessian") else output

        every = tuple(range(6))
        if transform == "jvp":
            return torch.func.jvp(of, tuple(arguments), tangents)
        if transform == "vjp":
            return torch.func.vjp(of, *arguments)[1](torch.ones(2, 3, dtype=torch.float64))
        return getattr(torch.func, transform)(of, argnums=every)(*arguments)

    torch.testing.assert_close(apply(compute), apply(expect))


def test_torch_func_grad_of_tensors_that_require_gradients():
    arguments = make_arguments((2,), 3, 3, 2, requires_grad=NAMES)
    results = []
    for function in (compute, expect):
        twins = copy_of(arguments)
        inner = torch.func.grad(
            lambda hidden, twins=twins, function=function: function([hidden, *twins[1:]]).square().sum()
        )
        gradient = inner(twins[0])
        gradient.square().sum().backward()
        results.append([gradient.detach(), *[tensor.grad for tensor in twins]])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("requires_grad", [(), NAMES])
def test_forward_mode(requires_grad):
    arguments = make_arguments((2,), 3, 3, 2, requires_grad=requires_grad)
    tangent = torch.randn(3, 2, dtype=torch.float64)
    results = []
    for function in (compute, expect):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(arguments[4], tangent)
            output, derivative = forward_ad.unpack_dual(function([*arguments[:4], dual, arguments[5]]))
        results.append((output.detach(), derivative.detach()))
    torch.testing.assert_close(*results)


def test_batched_backward():
    arguments = make_arguments((4,), 5, 5, 3, requires_grad=NAMES)
    arguments[1] = arguments[0]
    leaves = [arguments[0], *arguments[2:]]
    cotangents = torch.randn(6, 4, 5, dtype=torch.float64)
    batched = torch.autograd.grad(compute(arguments), leaves, cotangents, is_grads_batched=True)
    for index, cotangent in enumerate(cotangents):
        for mine, theirs in zip(batched, torch.autograd.grad(expect(arguments), leaves, cotangent), strict=True):
            torch.testing.assert_close(mine[index], theirs)


# Autocast


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("residual", [None, torch.float32, torch.bfloat16, torch.float16, "hidden_states"], ids=str)
@pytest.mark.parametrize("hidden_states", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_gives_the_dtypes_of_the_formula(hidden_states, residual, lower):
    arguments = make_arguments((65,), 24, 24, 10, dtype=torch.float32, requires_grad=NAMES)
    arguments[0] = arguments[0].detach().to(hidden_states).requires_grad_()
    if residual is None:
        arguments[1] = None
    elif residual == "hidden_states":
        arguments[1] = arguments[0]
    else:
        arguments[1] = arguments[1].detach().to(residual).requires_grad_()
    results = []
    for function in (compute, expect):
        with torch.autocast("cpu", dtype=lower):
            output = function(arguments)
        cotangent = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output.dtype)
        leaves = [tensor for tensor in dict.fromkeys(arguments) if tensor is not None]
        results.append([output, *torch.autograd.grad(output, leaves, cotangent)])
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype
        exactness = 2 * torch.finfo(lower).eps
        torch.testing.assert_close(
            mine.float(), theirs.float(), rtol=4 * exactness, atol=exactness * float(theirs.detach().abs().max())
        )


def test_autocast_leaves_float64_alone_and_can_be_switched_off():
    arguments = make_arguments()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compute(arguments), compute(arguments))
        assert compute(arguments).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            single = make_arguments(dtype=torch.float32)
            assert compute(single).dtype == torch.float32


def test_autocast_keeps_the_fused_backward_where_nothing_is_cast():
    arguments = make_arguments(dtype=torch.float32, requires_grad=NAMES)
    hidden_states = arguments[0].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = compute([hidden_states, hidden_states, *arguments[2:]])
    assert output.grad_fn.name().endswith("BottleneckAdapter>")
    assert len(output.grad_fn.next_functions) == 5
