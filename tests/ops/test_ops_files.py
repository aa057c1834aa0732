"""Files that an earlier version has written: they load, and mean the same."""

import warnings
from pathlib import Path

import pytest
import torch
from ops_cases import copy_of, expect, make_arguments

# forward(h, w): the operator with residual h, all weights, "gelu", 0.7; then without residual and biases, "silu", -1.3.
FILE = Path(__file__).parent / "data" / "bottleneck_adapter_0.1.0.pt"


def load():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(FILE))


def formula(arguments):
    hidden_states, _, down_weight, down_bias, up_weight, up_bias = arguments
    first = expect([hidden_states, hidden_states, down_weight, down_bias, up_weight, up_bias])
    return expect([first, None, down_weight, None, up_weight, None], "silu", -1.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchscript_of_version_0_1_0(dtype):
    """Its calls have eight arguments: the ninth, adapter_indices, is absent."""
    arguments = make_arguments((3, 5), 12, 12, 4, dtype=dtype, requires_grad=("hidden_states", "down_weight"))
    twins = copy_of(arguments)
    output, exact = load()(arguments[0], arguments[2:]), formula(twins)
    torch.testing.assert_close(output, exact)
    output.sum().backward()
    exact.sum().backward()
    for mine, right in ((arguments[0], twins[0]), (arguments[2], twins[2])):
        torch.testing.assert_close(mine.grad, right.grad)
