"""Every wrong argument is refused in words, by the real kernels, the fake ones and under every transform alike."""

import pytest
import torch
from ops_cases import ACTIVATIONS, NAMES, compute, make_arguments

VALUE, TYPE = ValueError, TypeError


def zeros(*sizes, dtype=torch.float64):
    return torch.zeros(sizes, dtype=dtype)


# Arguments are (4, 8) -> 6 through 3. Each case: what is replaced, the error and its words.
CASES = {
    "no dimension": ({"hidden_states": zeros()}, VALUE, "hidden_states must have at least one dimension, got"),
    "no columns": (
        {"hidden_states": zeros(4, 0)},
        VALUE,
        r"hidden_states must have at least one column, got shape \[4, 0\]",
    ),
    "integers": (
        {"hidden_states": zeros(4, 8, dtype=torch.int64)},
        TYPE,
        "hidden_states must have dtype float32, float64, bfloat16 or float16, got int64",
    ),
    "complex": (
        {"hidden_states": zeros(4, 8, dtype=torch.complex64)},
        TYPE,
        "hidden_states must have dtype .*, got complex64",
    ),
    "float8": (
        {"hidden_states": zeros(4, 8, dtype=torch.float8_e4m3fn)},
        TYPE,
        "hidden_states must have dtype .*, got float8_e4m3fn",
    ),
    "input_size": (
        {"hidden_states": zeros(4, 7)},
        VALUE,
        r"down_weight must have as many columns as hidden_states \(7\), got shape \[3, 8\]",
    ),
    "residual columns": (
        {"residual": zeros(4, 8)},
        VALUE,
        r"residual must have the leading dimensions of hidden_states .* and 6 columns \(hidden_size\), got \[4, 8\]",
    ),
    "residual rows": ({"residual": zeros(5, 6)}, VALUE, r"residual must have the leading dimensions .*, got \[5, 6\]"),
    "residual broadcast": (
        {"residual": zeros(1, 6)},
        VALUE,
        r"residual must have the leading dimensions .*, got \[1, 6\]",
    ),
    "residual dimensions": (
        {"residual": zeros(2, 2, 6)},
        VALUE,
        r"residual must have the leading dimensions .*, got \[2, 2, 6\]",
    ),
    "residual without dimensions": (
        {"residual": zeros()},
        VALUE,
        r"residual must have the leading dimensions .*, got \[\]",
    ),
    "down_weight dimensions": (
        {"down_weight": zeros(24)},
        VALUE,
        r"down_weight must have shape \(bottleneck_dim, input_size\), got \[24\]",
    ),
    "down_weight transposed": (
        {"down_weight": zeros(8, 3)},
        VALUE,
        r"down_weight must have as many columns as hidden_states \(8\), got shape \[8, 3\]",
    ),
    "down_weight empty": ({"down_weight": zeros(0, 8)}, VALUE, "down_weight must have at least one row and one column"),
    "down_bias size": (
        {"down_bias": zeros(6)},
        VALUE,
        r"down_bias must have shape \(bottleneck_dim,\) = \(3,\), got \[6\]",
    ),
    "down_bias dimensions": (
        {"down_bias": zeros(1, 3)},
        VALUE,
        r"down_bias must have shape \(bottleneck_dim,\) = \(3,\), got \[1, 3\]",
    ),
    "up_weight size": (
        {"up_weight": zeros(6, 4)},
        VALUE,
        r"up_weight must have as many columns as down_weight has rows \(3\), got shape \[6, 4\]",
    ),
    "up_weight dimensions": (
        {"up_weight": zeros(6, 3, 1)},
        VALUE,
        r"up_weight must have shape \(hidden_size, bottleneck_dim\), got \[6, 3, 1\]",
    ),
    "up_weight empty": ({"up_weight": zeros(0, 3)}, VALUE, "up_weight must have at least one row and one column"),
    "up_bias size": ({"up_bias": zeros(3)}, VALUE, r"up_bias must have shape \(hidden_size,\) = \(6,\), got \[3\]"),
    "up_bias dimensions": ({"up_bias": zeros()}, VALUE, r"up_bias must have shape \(hidden_size,\) = \(6,\), got \[\]"),
    "activation": ({"activation": "GELU"}, VALUE, f"activation must be one of {', '.join(ACTIVATIONS)}, got 'GELU'"),
    "no activation": ({"activation": ""}, VALUE, "activation must be one of .*, got ''"),
    "scaling infinite": ({"scaling": float("inf")}, VALUE, "scaling must be finite, got inf"),
    "scaling not a number": ({"scaling": float("nan")}, VALUE, "scaling must be finite, got -?nan"),
    **{
        f"{name} dtype": (
            {name: make_arguments((4,), 8, 6, 3, dtype=torch.float32)[index]},
            TYPE,
            rf"{name} must have the dtype of hidden_states \(float64\), got float32",
        )
        for index, name in enumerate(NAMES)
        if index > 0
    },
}


def right():
    return dict(zip(NAMES, make_arguments((4,), 8, 6, 3), strict=True))


def call(changes, transform=lambda tensor: tensor, arguments=None):
    named = {name: changes.get(name, tensor) for name, tensor in (arguments or right()).items()}
    arguments = [transform(tensor) for tensor in named.values()]
    return compute(arguments, changes.get("activation", "gelu"), changes.get("scaling", 0.7))


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
