"""Gradients of the operator, of every order: against the reference and by finite differences."""

import io

import pytest
import torch
from ops_cases import (
    ACTIVATIONS,
    LAYOUTS,
    NAMES,
    SHAPES,
    WEIGHTS,
    arguments_of,
    barely_positive,
    compute,
    copy_of,
    error,
    expect,
    gradients,
    make_arguments,
)

from adapterx import ops


def assert_same_gradients(arguments, cotangent, **options):
    actual = gradients(compute, arguments, cotangent, **options)
    wanted = gradients(expect, arguments, cotangent, **options)
    assert actual.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(actual[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_of_every_shape(shape, layout):
    if layout == "sequential":
        shape = (shape[0], shape[1], shape[1], shape[3])
    for without in ((), ("down_bias", "up_bias")):
        arguments = arguments_of(layout, *shape, without=without)
        cotangent = torch.randn(*shape[0], shape[2], dtype=torch.float64)
        assert_same_gradients(arguments, cotangent, activation="gelu", scaling=-1.3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_in_float32(activation):
    arguments = make_arguments((67,), 40, 24, 13, dtype=torch.float32, requires_grad=NAMES)
    cotangent = torch.randn(67, 24)
    exact = gradients(expect, copy_of(arguments, torch.float64), cotangent.double(), activation=activation)
    for name, gradient in gradients(compute, arguments, cotangent, activation=activation).items():
        assert error(gradient, exact[name]) < 2e-6, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_low_precision_gradients_are_at_most_twice_as_inexact_as_pytorchs(shape, dtype):
    arguments = arguments_of("bare", *shape, dtype=dtype)
    cotangent = torch.randn(*shape[0], shape[2]).to(dtype)
    exact = gradients(expect, copy_of(arguments, torch.float64), cotangent.double())
    pytorch = gradients(expect, arguments, cotangent)
    for name, gradient in gradients(compute, arguments, cotangent).items():
        factor = 3 if name in WEIGHTS else 2
        assert gradient.dtype == dtype
        assert error(gradient, exact[name]) <= factor * error(pytorch[name], exact[name]) + 1e-5, name


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_is_not_rounded_before_its_bias_is_added(dtype, activation):
    """Else nothing is left of the sum, and the kink of the activation stops the gradient."""
    arguments, cotangent = barely_positive(dtype), torch.ones(3, 16, dtype=dtype)
    exact = gradients(expect, copy_of(arguments, torch.float64), cotangent.double(), activation=activation)
    for name, gradient in gradients(compute, arguments, cotangent, activation=activation).items():
        assert error(gradient, exact[name]) < 1e-2, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_and_gradgradcheck(activation, layout):
    arguments = arguments_of(layout, (2, 2), 3, 3 if layout == "sequential" else 4, 2)
    inputs = [
        tensor for index, tensor in enumerate(arguments) if tensor is not None and (index != 1 or layout == "parallel")
    ]

    def function(hidden_states, *rest):
        residual = {"parallel": rest[0], "sequential": hidden_states, "bare": None}[layout]
        return compute([hidden_states, residual, *(rest[1:] if layout == "parallel" else rest)], activation)

    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_batched_grad=True)


def test_gradgradcheck_without_biases():
    arguments = make_arguments((3,), 3, 4, 2, without=("down_bias", "up_bias"), requires_grad=NAMES)

    def function(hidden_states, residual, down_weight, up_weight):
        return compute([hidden_states, residual, down_weight, None, up_weight, None])

    inputs = [tensor for tensor in arguments if tensor is not None]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_the_scripted_operator(activation, layout):
    scripted = torch.jit.script(ops.bottleneck_adapter)
    arguments = arguments_of(layout, (3,), 3, 3, 2)
    inputs = [tensor for index, tensor in enumerate(arguments) if index != 1]

    def function(hidden_states, *rest):
        residual = {"parallel": arguments[1], "sequential": hidden_states, "bare": None}[layout]
        return scripted(hidden_states, residual, *rest, activation=activation, scaling=0.7)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_scripted_operator_survives_a_file_and_differentiates():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(ops.bottleneck_adapter), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    arguments = make_arguments((5,), 6, 4, 3, requires_grad=NAMES)
    cotangent = torch.randn(5, 4, dtype=torch.float64)

    def run(tensors):
        return loaded(*tensors, activation="silu", scaling=0.7, adapter_indices=None)  # a file keeps no defaults

    wanted = gradients(compute, arguments, cotangent, activation="silu")
    for name, gradient in gradients(run, arguments, cotangent).items():
        assert torch.equal(gradient, wanted[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_derivatives_where_only_some_arguments_require_gradients(layout):
    for names in (("hidden_states",), WEIGHTS, ("down_weight", "up_bias"), ("hidden_states", "residual", "up_weight")):
        arguments = arguments_of(layout, (4,), 5, 5, 3, requires_grad=names)
        results = []
        for function in (compute, expect):
            output = function(arguments, "tanh")
            leaves = [t for t in dict.fromkeys(arguments) if t is not None and t.requires_grad]
            first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
            penalty = sum(gradient.square().sum() for gradient in first)
            second = torch.autograd.grad(penalty, leaves, create_graph=True)
            third = torch.autograd.grad(sum(gradient.square().sum() for gradient in second), leaves)
            results.append([*first, *second, *third])
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_training_operator_differentiates_both_outputs():
    arguments = make_arguments((4,), 5, 6, 3, requires_grad=NAMES)
    output, pre_activation = torch.ops.adapterx.bottleneck_adapter_train(*arguments, "gelu", 0.7)
    theirs = torch.nn.functional.linear(arguments[0], arguments[2], arguments[3])
    torch.testing.assert_close(pre_activation, theirs)
    torch.testing.assert_close(output, expect(arguments))
    inputs = [tensor for index, tensor in enumerate(arguments) if index not in (1, 4, 5)]
    for mine, wanted in zip(
        torch.autograd.grad(pre_activation.square().sum(), inputs, retain_graph=True),  # no gradient of `output`
        torch.autograd.grad(theirs.square().sum(), inputs, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)
    for mine, wanted in zip(
        torch.autograd.grad(pre_activation.sum() + output.sum(), inputs),
        torch.autograd.grad(theirs.sum() + expect(arguments).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("add_grad_output", [False, True])
def test_backward_operator_differentiates(add_grad_output):
    grad_output, hidden_states = torch.randn(2, 4, 5, dtype=torch.float64).unbind()
    pre_activation = torch.randn(4, 3, dtype=torch.float64)
    down_weight, up_weight = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    inputs = [
        t.requires_grad_() for t in (grad_output.clone(), hidden_states.clone(), pre_activation, down_weight, up_weight)
    ]

    def function(*tensors):
        return torch.ops.adapterx.bottleneck_adapter_backward(*tensors, "gelu", 0.7, add_grad_output, [True] * 5)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("cotangent", ["broadcast", "strided rows", "transposed", "columns apart"])
def test_layouts_of_the_incoming_gradient(cotangent):
    gradient = {
        "broadcast": torch.ones((), dtype=torch.float64).expand(6, 8),
        "strided rows": torch.randn(6, 16, dtype=torch.float64)[:, 8:],
        "transposed": torch.randn(8, 6, dtype=torch.float64).t(),
        "columns apart": torch.randn(6, 16, dtype=torch.float64)[:, ::2],
    }[cotangent]
    for layout in LAYOUTS:
        assert_same_gradients(arguments_of(layout, (6,), 8, 8, 4), gradient)


def test_strided_hidden_states_and_weights():
    leaves = [torch.randn(5, 7, 24, dtype=torch.float64), torch.randn(24, 4, dtype=torch.float64)]
    results = []
    for function in (compute, expect):
        wide, weight = (leaf.clone().requires_grad_() for leaf in leaves)
        hidden_states = wide.transpose(0, 1)[..., 8:16]
        torch.manual_seed(0)
        rest = make_arguments((7, 5), 8, 8, 4)[3:]
        function([hidden_states, hidden_states, weight[:8].t(), *rest]).square().sum().backward()
        results.append((wide.grad, weight.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_no_tokens_give_zero_gradients():
    arguments = make_arguments((0,), 6, 5, 3, requires_grad=NAMES)
    compute(arguments).sum().backward()
    for name, tensor in zip(NAMES, arguments, strict=True):
        assert tensor.grad.shape == tensor.shape
        if name in WEIGHTS:
            assert not tensor.grad.any()


def test_backward_is_deterministic():
    arguments = make_arguments((301,), 64, 64, 24, dtype=torch.float32, requires_grad=NAMES)
    cotangent = torch.randn(301, 64)
    first = gradients(compute, arguments, cotangent)
    for _ in range(3):
        again = gradients(compute, arguments, cotangent)
        assert all(torch.equal(first[name], again[name]) for name in NAMES)


def test_many_training_steps_follow_the_reference():
    start = make_arguments((16,), 12, 12, 4, requires_grad=WEIGHTS)
    target = torch.randn(16, 12, dtype=torch.float64)
    results = []
    for function in (compute, expect):
        arguments = copy_of(start)
        optimizer = torch.optim.AdamW(arguments[2:], lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (function(arguments) - target).square().mean().backward()
            optimizer.step()
        results.append(arguments)
    for mine, theirs, before in zip(*results, start, strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.requires_grad == (not torch.equal(mine, before))
