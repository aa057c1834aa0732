"""Wrong arguments of the operator, and the words that refuse them."""

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
