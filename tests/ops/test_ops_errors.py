"""Every wrong argument is refused in words, by the real kernels, the fake ones and under every transform alike."""

import pytest
import torch
from ops_cases import NAMES, compute, make_arguments
from ops_error_cases import CASES, TYPE, VALUE, call, right, zeros


@pytest.mark.parametrize("case", CASES)
def test_wrong_arguments(case):
    changes, kind, words = CASES[case]
    words = f"^bottleneck_adapter: {words}"
    with pytest.raises(kind, match=words):
        call(changes)
    with pytest.raises(kind, match=words):
        call(changes, lambda tensor: tensor.requires_grad_() if tensor.is_floating_point() else tensor)
    with pytest.raises(kind, match=words):
        call(changes, lambda tensor: tensor.to("meta"))


@pytest.mark.parametrize("case", ["input_size", "residual rows", "down_bias size", "activation", "up_weight dtype"])
def test_wrong_arguments_under_vmap(case):
    changes, kind, words = CASES[case]
    arguments = right()
    with pytest.raises(kind, match=words):
        torch.vmap(lambda bias: call({"up_bias": bias, **changes}, arguments=arguments))(zeros(2, 6))


def test_the_arguments_of_these_tests_are_right_otherwise():
    assert call({}).shape == (4, 6)


@pytest.mark.parametrize("name", NAMES[1:])
def test_tensors_on_different_devices(name):
    with pytest.raises(
        ValueError, match=r"bottleneck_adapter: \w+ must be on the device of hidden_states \(cpu\), got meta"
    ):
        call({name: right()[name].to("meta")})


def test_layouts_without_a_kernel_say_so():
    with pytest.raises(
        NotImplementedError,
        match="Could not run 'adapterx::bottleneck_adapter' with arguments from the 'SparseCPU' backend",
    ):
        call({"hidden_states": zeros(4, 8).to_sparse()})


def test_missing_and_mistyped_arguments():
    for name in ("hidden_states", "down_weight", "up_weight"):
        for requires_grad in (False, True):
            arguments = {**right(), name: None}
            arguments["up_bias"].requires_grad_(requires_grad)
            with pytest.raises(TypeError, match=f"^bottleneck_adapter: {name} must be a tensor, got None"):
                compute(arguments.values())
    with pytest.raises(RuntimeError, match="Expected a value of type 'str' for argument 'activation'"):
        compute(make_arguments(), activation=3)


BACKWARD_CASES = {
    "pre_activation absent": ((2, None), VALUE, "pre_activation must be given when .* is wanted, got None"),
    "up_weight absent": ((4, None), VALUE, "up_weight must be given when .* is wanted, got None"),
    "hidden_states absent": ((1, None), VALUE, "hidden_states must be given when grad_down_weight is wanted, got None"),
    "down_weight absent": ((3, None), VALUE, "down_weight must be given when grad_hidden_states is wanted, got None"),
    "grad_output columns": (
        (0, zeros(4, 5)),
        VALUE,
        r"up_weight must have as many rows as grad_output has columns \(5\)",
    ),
    "pre_activation rows": ((2, zeros(5, 3)), VALUE, "pre_activation must have the leading dimensions of grad_output"),
    "pre_activation columns": ((2, zeros(4, 2)), VALUE, "pre_activation must have the leading dimensions .* 3 columns"),
    "hidden_states rows": ((1, zeros(5, 8)), VALUE, "hidden_states must have the leading dimensions of grad_output"),
    "down_weight rows": ((3, zeros(2, 8)), VALUE, "down_weight must have as many rows as pre_activation has columns"),
    "dtype": (
        (1, zeros(4, 8, dtype=torch.float32)),
        TYPE,
        r"hidden_states must have the dtype of grad_output \(float64\)",
    ),
    "add_grad_output": (
        (7, True),
        VALUE,
        "down_weight must have as many columns as grad_output .* when add_grad_output",
    ),
    "activation": ((5, "mish"), VALUE, "activation must be one of"),
    "scaling": ((6, float("inf")), VALUE, "scaling must be finite"),
}


@pytest.mark.parametrize("case", BACKWARD_CASES)
def test_wrong_arguments_of_the_backward_operator(case):
    (index, value), kind, words = BACKWARD_CASES[case]
    arguments = [zeros(4, 6), zeros(4, 8), zeros(4, 3), zeros(3, 8), zeros(6, 3), "gelu", 0.7, False, [True] * 5]
    arguments[index] = value
    meta = [value.to("meta") if isinstance(value, torch.Tensor) else value for value in arguments]
    for tensors in (arguments, meta):
        with pytest.raises(kind, match=f"^bottleneck_adapter_backward: {words}"):
            torch.ops.adapterx.bottleneck_adapter_backward(*tensors)
