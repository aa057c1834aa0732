"""The general grouped CUDA kernels ("segments") in the emulator, against float64: every dtype and any sizes."""

import itertools

import numpy as np
import pytest
from emulator_cases import (
    ACTIVATIONS,
    FLOOR,
    GRADIENTS,
    WANTED,
    WANTED_IDS,
    GroupedCase,
    assert_close,
    assert_same_bits,
    ref,
)

DTYPES = ("float32", "float64", "bfloat16", "float16")
FLOORS = {"float32": 2e-6, "float64": 2e-12, "bfloat16": FLOOR, "float16": FLOOR}


def check_segments_forward(case, *, save=True, row_tile=64, **options):
    """Run and compare the output and the saved pre-activation."""
    output, u = case.segments_forward(**options, save=save, row_tile=row_tile)
    exact, exact_u = case.expected_groups_forward(None, **options)
    eager, eager_u = case.expected_groups_forward(case.dtype, **options)
    assert_close(output, exact, eager, 2, "output", FLOORS[case.dtype])
    if save:
        assert_close(u, exact_u, eager_u, 2, "pre_activation", FLOORS[case.dtype])


def check_segments_backward(case, *, wanted=(True,) * 5, row_tile=64, **options):
    """Run and compare all gradients that are wanted."""
    gradients = case.segments_backward(**options, wanted=wanted, row_tile=row_tile)
    exact, eager = case.expected_groups_backward(None, **options), case.expected_groups_backward(case.dtype, **options)
    for name, actual, right, yardstick in zip(GRADIENTS, gradients, exact, eager, strict=True):
        if actual is not None:
            assert_close(actual, right, yardstick, 2 if name == "grad_input" else 3, name, FLOORS[case.dtype])


# tokens, input_size, hidden_size, bottleneck_dim, groups: one token, primes, more bottleneck columns than a window,
# more than one window both ways, more adapters than tokens, tiles with few and with many tokens.
SEGMENTS = [
    (1, 8, 8, 1, 1),
    (1, 37, 37, 7, 3),
    (70, 72, 72, 16, 3),
    (131, 65, 33, 131, 4),
    (40, 24, 40, 200, 5),
    (67, 130, 130, 20, 1),
    (9, 5, 3, 2, 70),
    (200, 96, 160, 64, 2),
]
SEGMENT_IDS = ["-".join(map(str, shape)) for shape in SEGMENTS]
SEGMENT_ARGUMENTS = ("tokens", "input_size", "hidden", "bottleneck", "groups")


@pytest.mark.parametrize(SEGMENT_ARGUMENTS, SEGMENTS, ids=SEGMENT_IDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_forward(emulator, tokens, input_size, hidden, bottleneck, groups, dtype):
    """The branch alone, so that the residual hides nothing."""
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, input_size=input_size, dtype=dtype)
    check_segments_forward(case, residual=None)


@pytest.mark.parametrize(SEGMENT_ARGUMENTS, SEGMENTS, ids=SEGMENT_IDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_backward(emulator, tokens, input_size, hidden, bottleneck, groups, dtype):
    """All five gradients."""
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, input_size=input_size, dtype=dtype)
    check_segments_backward(case)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_activations(emulator, activation, dtype):
    """Forward and backward with every activation."""
    case = GroupedCase(emulator, 33, 24, 12, 3, dtype=dtype)
    check_segments_forward(case, activation=activation, residual=None)
    check_segments_backward(case, activation=activation)


@pytest.mark.parametrize("residual", ["same", "other", None])
@pytest.mark.parametrize(
    ("down_bias", "up_bias", "save"), [(True, True, True), (False, True, False), (True, False, True)]
)
@pytest.mark.parametrize("hidden", [37, 72])
def test_segments_optional_arguments(emulator, hidden, residual, down_bias, up_bias, save):
    """Null pointers, and the input as the residual, with rows that are aligned and rows that are not."""
    case = GroupedCase(emulator, 29, hidden, 9, 3, dtype="float32")
    check_segments_forward(case, residual=residual, down_bias=down_bias, up_bias=up_bias, save=save)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("only", "groups"), [(-1, 3), (2, 4), (0, 1)])
def test_segments_without_some_adapters(emulator, dtype, only, groups):
    """Tokens without adapter keep their base exactly; adapters that no token picked have zero gradients."""
    case = GroupedCase(emulator, 21, 40, 8, groups, dtype=dtype, only=only)
    case.indices[3] = -1
    case.u[3] = 0
    none = case.indices < 0
    for residual in ("same", "other", None):
        output, u = case.segments_forward(residual=residual)
        base = np.zeros_like(output) if residual is None else case.base(residual)
        np.testing.assert_array_equal(output[none], base[none])
        assert not u[none].any()
    for add_grad_output in (True, False):
        gradients = case.segments_backward(add_grad_output=add_grad_output)
        np.testing.assert_array_equal(gradients[0][none], case.dy[none] * add_grad_output)
        for group in set(range(groups)) - {only}:
            assert not any(gradient[group].any() for gradient in gradients[1:])
        check_segments_backward(case, add_grad_output=add_grad_output)


def test_segments_ignore_what_nobody_picked(emulator):
    """NaN in an unused adapter, and in the pre-activation of a token without adapter, reaches no result."""
    case = GroupedCase(emulator, 30, 24, 8, 4, dtype="float32")
    case.indices[case.indices == 2] = -1
    clean = [*case.segments_forward(), *case.segments_backward()]
    for array in (case.wd, case.wu, case.bd, case.bu):
        array[2] = np.nan
    case.u[case.indices < 0] = np.nan
    case.h[case.indices < 0] = np.nan
    case.dy[case.indices < 0] = np.nan
    assert_same_bits(clean, [*case.segments_forward(), *case.segments_backward()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [3, 8])
def test_segments_strided_rows(emulator, dtype, offset):
    """Rows longer than their columns, aligned (8) or not (3), give the bits of contiguous rows."""
    case = GroupedCase(emulator, 45, 48, 16, 3, dtype=dtype)
    strided = GroupedCase(emulator, 45, 48, 16, 3, dtype=dtype, offset=offset)
    for name in ("wd", "wu", "u"):
        setattr(strided, name, getattr(case, name))
    assert strided.h.strides[0] > case.h.strides[0]
    for residual in ("same", "other"):
        assert_same_bits(case.segments_forward(residual=residual), strided.segments_forward(residual=residual))
    assert_same_bits(case.segments_backward(add_grad_output=True), strided.segments_backward(add_grad_output=True))


@pytest.mark.parametrize("wanted", WANTED, ids=WANTED_IDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_segments_every_subset_of_gradients(emulator, wanted, dtype):
    """A gradient that is not wanted changes no bit of the others."""
    case = GroupedCase(emulator, 41, 70, 12, 3, dtype=dtype)
    assert_same_bits(case.segments_backward(), case.segments_backward(wanted=wanted))


def test_segments_cost_only_what_is_wanted(emulator):
    """Launches and copies of the subsets; one more launch sorts the tokens."""
    case = GroupedCase(emulator, 100, 192, 16, 2, dtype="float32", only=0)
    cost = {}
    for name in ("10000", "01000", "00100", "00010", "00001", "11111"):
        emulator.take_counters()
        case.segments_backward(wanted=tuple(digit == "1" for digit in name))
        counters = emulator.take_counters()
        cost[name] = (counters["launches"] - 1, counters["copied_bytes"])
    assert {name: launches for name, (launches, _) in cost.items()} == {
        "10000": 2, "01000": 3, "00100": 3, "00010": 3, "00001": 2, "11111": 4,
    }  # fmt: skip
    assert cost["00001"][1] == case.dy.nbytes  # a bias gradient alone reads grad_output once
    assert cost["00010"][1] == case.dy.nbytes + 3 * case.u.nbytes  # a window of 64 columns needs all of the activation
    assert cost["00100"][1] < cost["01000"][1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_gradient_of_the_up_bias_needs_no_bottleneck(emulator, dtype):
    """It is a sum of grad_output alone: the bits are those that a call with all tensors gives."""
    case = GroupedCase(emulator, 30, 70, 8, 3, dtype=dtype)
    everything = case.segments_backward()
    gradients = [*(None for _ in range(4)), case.empty(3, 70)]
    emulator.segments_backward(
        case.dy, None, case.empty(30, 0), case.empty(3, 0, 70), case.empty(3, 70, 0), gradients, activation="gelu",
        scaling=0.7, add_grad_output=False, indices=case.indices,
    )  # fmt: skip
    np.testing.assert_array_equal(gradients[4], everything[4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_do_not_depend_on_the_other_tokens(emulator, dtype):
    """Each adapter's tokens and gradients have the bits of a problem with this adapter alone."""
    case = GroupedCase(emulator, 150, 70, 20, 3, input_size=40, dtype=dtype)
    case.indices[:5], case.indices[5:] = 2, np.arange(145) % 2  # many tokens of two adapters, five of the third
    outputs, gradients = case.segments_forward(), case.segments_backward()
    for group in range(3):
        alone, rows = case.alone(group)
        assert_same_bits([output[rows] for output in outputs], alone.segments_forward())
        expected = alone.segments_backward()
        np.testing.assert_array_equal(gradients[0][rows], expected[0])
        assert_same_bits([gradient[group] for gradient in gradients[1:]], [array[0] for array in expected[1:]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_few_and_many_tokens_give_the_same_bits(emulator, dtype):
    """A token's results do not depend on how many share its tile."""
    case = GroupedCase(emulator, 64, 70, 20, 1, dtype=dtype, only=0)
    many = [*case.segments_forward(), case.segments_backward(wanted=(True, False, False, False, False))[0]]
    case.indices[16:] = -1
    few = [*case.segments_forward(), case.segments_backward(wanted=(True, False, False, False, False))[0]]
    assert_same_bits([array[:16] for array in many], [array[:16] for array in few])


def test_segments_serve_smaller_tiles(emulator):
    """A sort for tiles of 16 tokens is served too, with the same bits for each token."""
    case = GroupedCase(emulator, 90, 40, 12, 2, dtype="float32")
    assert_same_bits(case.segments_forward(), case.segments_forward(row_tile=16))
    assert_same_bits(case.segments_backward(), case.segments_backward(row_tile=16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_segments_several_ranges(emulator, dtype):
    """More tokens of one adapter than a range holds: partial sums, added in order."""
    case = GroupedCase(emulator, 4700, 12, 5, 2, dtype=dtype)
    case.indices[...] = np.arange(4700) % 9 // 8 - (np.arange(4700) % 11 == 0)  # most tokens pick adapter 0
    assert (case.indices == 0).sum() > 2048
    check_segments_backward(case, wanted=(False, True, True, True, True))


def test_segments_add_ranges_in_order(emulator):
    """Three ranges contribute 2^24, 1 and -2^24 to a bias gradient: in order the sum is 0, any other way it is 1."""
    case = GroupedCase(emulator, 3 * 2048, 4, 4, 1, dtype="float32", only=0)
    case.dy[...] = 0
    case.dy[[5, 3000, 5000], 0] = 2.0**24, 1.0, -(2.0**24)
    gradient = case.segments_backward(scaling=1.0, wanted=(False, False, False, False, True))[4]
    assert gradient[0, 0] == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_every_schedule_gives_the_same_bits(emulator, dtype):
    """Whatever the order of warps and lanes, whenever copies happen: a difference is a race."""
    case = GroupedCase(emulator, 90, 136, 72, 2, input_size=40, dtype=dtype)
    results = []
    for order, eager in itertools.product(["forward", "reverse", "random"], [False, True]):
        emulator.configure(order, eager, seed=len(results))
        results.append([*case.segments_forward(), *case.segments_backward()])
    for result in results[1:]:
        assert_same_bits(results[0], result)


@pytest.mark.parametrize(SEGMENT_ARGUMENTS, SEGMENTS, ids=SEGMENT_IDS)
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_segments_access_nothing_before_the_first_element(
    emulator, tokens, input_size, hidden, bottleneck, groups, dtype
):
    """The guard page before the tensors, in place of the one behind them."""
    emulator.configure(guard="begin")
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, input_size=input_size, dtype=dtype)
    case.segments_forward()
    case.segments_backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_no_tokens(emulator, dtype):
    """No tokens: nothing to compute, and the weights' gradients are zero."""
    case = GroupedCase(emulator, 0, 32, 8, 3, input_size=24, dtype=dtype)
    case.segments_forward()
    for gradient in case.segments_backward()[1:]:
        assert not gradient.any()


def test_segments_nan_stays_in_its_row(emulator):
    """A row of NaN leaves the other rows as they were, and the gradients of the other adapters."""
    case = GroupedCase(emulator, 50, 40, 12, 2, dtype="float16")
    clean, clean_gradients = case.segments_forward()[0], case.segments_backward()
    row = int(np.flatnonzero(case.indices == 1)[0])
    case.h[row] = case.dy[row] = np.nan
    dirty, gradients = case.segments_forward()[0], case.segments_backward()
    assert np.isnan(dirty[row]).all()
    np.testing.assert_array_equal(np.delete(clean, row, 0), np.delete(dirty, row, 0))
    np.testing.assert_array_equal(np.delete(clean_gradients[0], row, 0), np.delete(gradients[0], row, 0))
    assert_same_bits([gradient[0] for gradient in clean_gradients[1:]], [gradient[0] for gradient in gradients[1:]])


@pytest.mark.parametrize("bottleneck", [16, 100])
def test_segments_have_no_bank_conflicts(emulator, bottleneck):
    """The padding of the windows in shared memory does its work for both orientations."""
    case = GroupedCase(emulator, 70, 136, bottleneck, 2)
    case.segments_forward()
    case.segments_backward()
    counters = emulator.take_counters()
    assert counters["mma"] > 0
    assert counters["bank_conflicts"] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_let_no_infinity_through_a_relu_that_is_off(emulator, dtype):
    """Where relu is off its gradient is zero, whatever stands behind it."""
    case = GroupedCase(emulator, 20, 24, 8, 2, dtype=dtype)
    case.wu[..., 5], case.u[:, 5] = ref.to_bits(np.array(np.inf), dtype), ref.to_bits(np.array(-1.0), dtype)
    gradients = case.segments_backward(activation="relu", add_grad_output=True)
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        assert np.isfinite(ref.from_bits(gradient)).all(), name
    assert not gradients[1][:, 5].any()
