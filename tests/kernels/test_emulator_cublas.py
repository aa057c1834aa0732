"""The cuBLASLt path where cuBLASLt refuses: fewer promises, no epilogue, and in the end a kernel of our own."""

import numpy as np
import pytest
from emulator_cases import FLOOR, GRADIENTS, Case, assert_close, assert_same_bits

REFUSALS = ("none", "workspace", "products")
FLOORS = {"float32": 2e-6, "float64": 2e-12, "bfloat16": FLOOR, "float16": FLOOR}


@pytest.fixture
def plant(emulator):
    yield emulator.plant_refusal
    emulator.plant_refusal("none")


def forward(case, activation="gelu", residual="same", *, biases=True, pin="cublas"):
    base = {"same": case.h, "other": case.residual, None: None}[residual]
    results = case.empty(case.tokens, case.hidden), case.empty(case.tokens, case.bottleneck)
    tensors = (case.h, base, case.wd, case.bd if biases else None, case.wu, case.bu if biases else None, *results)
    case.emulator.door_forward(*tensors, activation=activation, scaling=0.7, pin=pin)
    return results


def backward(case, activation="gelu", add_grad_output=True):
    shapes = (case.h.shape, case.wd.shape, case.bd.shape, case.wu.shape, case.bu.shape)
    gradients = [case.empty(*shape) for shape in shapes]
    tensors = (case.dy, case.h, case.u, case.wd, case.wu, gradients)
    options = {"activation": activation, "scaling": 0.7, "add_grad_output": add_grad_output, "pin": "cublas"}
    case.emulator.door_backward(*tensors, **options)
    return gradients


def check(results, exact, eager, names, dtype):
    for actual, right, yardstick, name in zip(results, exact, eager, names, strict=True):
        assert_close(actual, right, yardstick, 3, name, FLOORS[dtype])


def case_of(emulator, sizes, dtype):
    """Return a case whose rows of tokens are one element longer than their columns."""
    case = Case(emulator, *sizes, dtype=dtype)
    wide = Case(emulator, *sizes, dtype=dtype, offset=1)
    case.h, case.residual, case.dy = wide.h, wide.residual, wide.dy
    return case


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
# Tiles with a remainder in each direction, one token, one column, and what bfloat16 has an auxiliary epilogue for.
@pytest.mark.parametrize("sizes", [(37, 40, 17), (1, 33, 5), (300, 19, 1), (35, 48, 16)])
def test_whatever_is_refused_is_served(sizes, dtype, refusal, emulator, plant):
    plant(refusal)
    case = case_of(emulator, sizes, dtype)
    for activation, base, added in (("gelu_tanh", "same", True), ("relu", "other", False), ("identity", None, True)):
        options = {"activation": activation, "scaling": 0.7, "residual": base}
        expected = case.expected_forward(None, **options), case.expected_forward(dtype, **options)
        check(forward(case, activation, base), *expected, ("output", "pre_activation"), dtype)
        options = {"activation": activation, "scaling": 0.7, "add_grad_output": added}
        expected = case.expected_backward(None, **options), case.expected_backward(dtype, **options)
        check(backward(case, activation, added), *expected, GRADIENTS, dtype)


def test_alignments_without_a_bias(emulator):
    """The auxiliary matrix may then be the one that is aligned least."""
    case = Case(emulator, 3, 16, 8)
    options = {"activation": "gelu_tanh", "scaling": 0.7, "down_bias": False, "up_bias": False}
    expected = case.expected_forward(None, **options), case.expected_forward("bfloat16", **options)
    check(forward(case, "gelu_tanh", biases=False), *expected, ("output", "pre_activation"), "bfloat16")


def test_without_cublas_no_product_is_asked_of_it(emulator, plant):
    case = Case(emulator, 37, 40, 16)
    pinned = forward(case, "gelu_tanh", biases=False, pin="plain")
    plant("products")
    assert_same_bits(pinned, forward(case, "gelu_tanh", biases=False))
    plant("none")
    assert launches(emulator, lambda: forward(case, "gelu_tanh", pin="plain")) == 4  # with its biases


def launches(emulator, run):
    emulator.take_counters()
    run()
    return emulator.take_counters()["launches"]


@pytest.mark.parametrize(
    ("refusal", "forward_launches", "backward_launches"),
    [
        ("none", 2, 4),  # scaled bias and activation; activation, its gradient in two stages, and one column sum more
        ("epilogues", 4, 4),  # and the bias that becomes the addend, and the one that follows the residual
        ("alignment", 4, 4),
        ("workspace", 4, 4),
        ("products", 6, 8),  # and the products
        ("launches", 6, 8),
    ],
)
def test_our_own_product_comes_last(refusal, forward_launches, backward_launches, emulator, plant):
    """The fake's products are no launches: what is counted are kernels of our own."""
    plant(refusal)
    case = Case(emulator, 37, 40, 16)
    assert launches(emulator, lambda: forward(case)) == forward_launches
    assert launches(emulator, lambda: backward(case)) == backward_launches + 1


def test_our_own_product_keeps_the_last_digits_of_long_sums(emulator, plant):
    """Over the tokens: one running sum in fp32 would lose some of them."""
    plant("products")
    case = Case(emulator, 8192, 16, 16, dtype="float32")
    found = backward(case, "identity")[GRADIENTS.index("grad_up_weight")]
    exact = 0.7 * case.dy.astype(np.float64).T @ case.u.astype(np.float64)
    running = np.zeros((16, 16), np.float32)
    for row, activated in zip(case.dy, case.u, strict=True):
        running += np.outer(row, activated)
    assert np.linalg.norm(found - exact) < 0.6 * np.linalg.norm(np.float32(0.7) * running - exact)
