"""The CUDA kernels run on the host by the emulator, against float64: every kernel, odd shapes, every schedule."""

import itertools

import numpy as np
import pytest
from emulator_cases import ACTIVATIONS, GRADIENTS, WANTED, WANTED_IDS, Case, check_backward, check_forward, ref

# tokens, hidden_size, bottleneck_dim, row_tile, cluster_size. Primes, one row, sizes beside multiples, idle blocks
# (hidden 40 in a cluster of 8), rows that are aligned and rows that are not.
SHAPES = [
    (70, 256, 16, 64, 1),
    (1, 8, 8, 16, 1),
    (17, 37, 7, 16, 1),
    (65, 101, 33, 64, 2),
    (33, 96, 20, 64, 4),
    (5, 40, 24, 16, 8),
    (16, 520, 64, 16, 4),
    (66, 264, 48, 64, 2),
    (3, 130, 128, 16, 2),
    (64, 136, 100, 64, 1),
    (7, 1, 1, 16, 1),
    (3, 1416, 16, 16, 1),  # more chunks than stages: 8, 4 and 2 of them
    (20, 520, 128, 64, 1),
    (9, 1000, 100, 64, 1),
]
SHAPE_IDS = ["-".join(map(str, shape)) for shape in SHAPES]


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "row_tile", "cluster_size"), SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_forward_shapes(emulator, tokens, hidden, bottleneck, row_tile, cluster_size, dtype):
    """The branch alone, so that the residual hides nothing."""
    case = Case(emulator, tokens, hidden, bottleneck, dtype=dtype)
    check_forward(case, residual=None, row_tile=row_tile, cluster_size=cluster_size)


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "row_tile", "cluster_size"), SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_backward_shapes(emulator, tokens, hidden, bottleneck, row_tile, cluster_size, dtype):
    """All five gradients, without the added grad_output that would hide errors of grad_input."""
    case = Case(emulator, tokens, hidden, bottleneck, dtype=dtype)
    check_backward(case, add_grad_output=False, row_tile=row_tile, cluster_size=cluster_size)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(emulator, activation):
    """Forward and backward, in the precision that tells erf- from tanh-GELU least badly (float16)."""
    case = Case(emulator, 19, 72, 24, dtype="float16")
    check_forward(case, activation=activation, residual=None, row_tile=16)
    check_backward(case, activation=activation, add_grad_output=False, row_tile=16)


@pytest.mark.parametrize(
    ("residual", "down_bias", "up_bias", "save"),
    [*itertools.product(["same", "other", None], [True], [True, False], [True]), ("same", False, True, False)],
)
@pytest.mark.parametrize("cluster_size", [1, 2])
def test_optional_arguments(emulator, residual, down_bias, up_bias, save, cluster_size):
    """Null pointers, and a residual that is not the input (parallel placement)."""
    case = Case(emulator, 20, 136, 16)
    options = {"residual": residual, "down_bias": down_bias, "up_bias": up_bias}
    check_forward(case, **options, save=save, row_tile=64, cluster_size=cluster_size)


def test_separate_residual_equals_the_resident_tile(emulator):
    """The parallel placement reads the residual from memory; with equal values it gives equal bits."""
    case = Case(emulator, 70, 200, 40)
    case.residual[...] = case.h
    for cluster_size in (1, 4):
        same, _ = case.forward(residual="same", cluster_size=cluster_size)
        other, _ = case.forward(residual="other", cluster_size=cluster_size)
        np.testing.assert_array_equal(same, other)


@pytest.mark.parametrize("offset", [3, 8])
def test_strided_rows(emulator, offset):
    """Rows of hidden_states, residual and grad_output longer than their columns, aligned (8) or not (3)."""
    case = Case(emulator, 21, 80, 16)
    strided = Case(emulator, 21, 80, 16, offset=offset)
    for name in ("wd", "wu", "u"):
        setattr(strided, name, getattr(case, name))
    for residual in ("same", "other"):
        np.testing.assert_array_equal(case.forward(residual=residual)[0], strided.forward(residual=residual)[0])
    for plain, other in zip(case.backward(), strided.backward(), strict=True):
        np.testing.assert_array_equal(plain, other)


@pytest.mark.parametrize("wanted", WANTED, ids=WANTED_IDS)
def test_every_subset_of_gradients(emulator, wanted):
    """A gradient that is not wanted changes no bit of the others."""
    case = Case(emulator, 18, 48, 12)
    everything = case.backward(row_tile=16)
    for full, part in zip(everything, case.backward(row_tile=16, wanted=wanted), strict=True):
        if part is not None:
            np.testing.assert_array_equal(full, part)


@pytest.mark.parametrize("cluster_size", [2, 4, 8])
@pytest.mark.parametrize("row_tile", [16, 64])
def test_weight_gradients_alone_in_clusters(emulator, row_tile, cluster_size):
    """Blocks that need no middle for a second product end when they have finished their share of the rows."""
    case = Case(emulator, 67, 200, 24)
    launch = {"row_tile": row_tile, "cluster_size": cluster_size}
    everything, weights = case.backward(**launch), case.backward(**launch, wanted=(False, *[True] * 4))
    for full, part in zip(everything[1:], weights[1:], strict=True):
        np.testing.assert_array_equal(full, part)


@pytest.mark.parametrize(("hidden", "capability"), [(64, 90), (64, 80), (63, 90)])
def test_gradients_cost_only_what_is_wanted(emulator, hidden, capability):
    """grad_input alone is one launch; weight gradients of frozen inputs skip the second product."""
    case = Case(emulator, 32, hidden, 16)
    counts = {}
    for name, wanted in {"input": (1, 0, 0, 0, 0), "weights": (0, 1, 1, 1, 1), "all": (1,) * 5}.items():
        emulator.take_counters()
        case.backward(wanted=tuple(map(bool, wanted)), capability=capability)
        counts[name] = emulator.take_counters()
    assert counts["input"]["launches"] == 1
    assert counts["weights"]["launches"] == counts["all"]["launches"] == 2  # one range: no partial sums
    assert counts["weights"]["mma"] < counts["all"]["mma"]


def test_sequential_backward_adds_grad_output(emulator):
    """grad_input gains grad_output, rounded once."""
    case = Case(emulator, 35, 72, 8)
    check_backward(case, add_grad_output=True, cluster_size=2)


def test_long_token_ranges(emulator):
    """Several ranges of tokens, each of several pipeline stages, added in order."""
    case = Case(emulator, 1100, 24, 8)
    emulator.take_counters()
    check_backward(case, row_tile=64, wanted=(False, True, True, True, True), capability=80)
    assert emulator.take_counters()["launches"] == 3


def test_large_hidden_size_in_a_cluster(emulator):
    """4096 columns over eight blocks; device memory is read once: the copies are the inputs, no more."""
    case = Case(emulator, 16, 4096, 64)
    emulator.take_counters()
    check_forward(case, row_tile=16, cluster_size=8)
    counters = emulator.take_counters()
    assert counters["copied_bytes"] == case.h.nbytes + case.wd.nbytes + case.wu.nbytes
    assert counters["bank_conflicts"] == 0


@pytest.mark.parametrize("bottleneck", [16, 32, 64, 128])
@pytest.mark.parametrize("row_tile", [16, 64])
def test_no_bank_conflicts(emulator, bottleneck, row_tile):
    """The padding of rows in shared memory does its work for every size."""
    case = Case(emulator, 32, 256, bottleneck)
    case.forward(row_tile=row_tile)
    case.backward(row_tile=row_tile)
    assert emulator.take_counters()["bank_conflicts"] == 0


@pytest.mark.parametrize(("row_tile", "cluster_size"), [(16, 1), (64, 1), (16, 4), (64, 2)])
def test_every_schedule_gives_the_same_bits(emulator, row_tile, cluster_size):
    """Whatever the order of blocks, warps and lanes, whenever copies happen: a difference is a race."""
    case = Case(emulator, 40, 328, 24)
    results = []
    schedules = itertools.product(["forward", "reverse", "random"], [False, True], [False, True])
    for order, eager, greedy in schedules:
        if greedy and cluster_size == 1:
            continue
        emulator.configure(order, eager, seed=len(results), greedy_blocks=greedy)
        options = {"row_tile": row_tile, "cluster_size": cluster_size}
        results.append([*case.forward(residual="other", **options), *case.backward(**options)])
    for result in results[1:]:
        for first, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "row_tile", "cluster_size"), SHAPES, ids=SHAPE_IDS)
def test_nothing_before_the_first_element(emulator, tokens, hidden, bottleneck, row_tile, cluster_size):
    """The guard page before the tensors, in place of the one behind them: no access at negative indices."""
    emulator.configure(guard="begin")
    case = Case(emulator, tokens, hidden, bottleneck)
    case.forward(residual="other", row_tile=row_tile, cluster_size=cluster_size)
    case.backward(row_tile=row_tile, cluster_size=cluster_size)


def test_no_tokens(emulator):
    """No tokens: nothing to compute, and the weights' gradients are zero."""
    case = Case(emulator, 0, 32, 8)
    case.forward()
    gradients = case.backward()
    for gradient in gradients[1:]:
        assert not gradient.any()


def test_infinities_and_nans_stay_in_their_rows(emulator):
    """A row of NaN leaves the other rows as they were."""
    case = Case(emulator, 20, 64, 16, dtype="float16")
    clean, _ = case.forward(activation="relu")
    case.h[7] = np.nan
    dirty, _ = case.forward(activation="relu")
    assert np.isnan(dirty[7]).all()
    np.testing.assert_array_equal(np.delete(clean, 7, 0), np.delete(dirty, 7, 0))


def test_an_infinite_input_does_not_meet_the_padding_of_the_bottleneck(emulator):
    """Padded columns of a weight are zero, and zero times infinity is NaN: nothing may read what comes of them."""
    for (hidden, bottleneck), (row_tile, cluster_size) in itertools.product(
        ((16, 1), (37, 7), (64, 33)), ((16, 1), (64, 1), (16, 2))
    ):
        launch = {"row_tile": row_tile, "cluster_size": cluster_size}
        case = Case(emulator, 20, hidden, bottleneck, dtype="float16")
        for name in ("h", "dy", "wd", "wu", "u"):
            getattr(case, name)[...] = 1
        for name in ("h", "dy"):
            getattr(case, name)[3] = np.inf
        output, u = case.forward(activation="identity", residual=None, down_bias=False, up_bias=False, **launch)
        (grad_input, *_) = case.backward(activation="identity", wanted=(True, *[False] * 4), **launch)
        for result in (output, u, grad_input):
            assert (result[3] == np.inf).all(), (hidden, bottleneck, launch)
            assert np.isfinite(np.delete(result, 3, 0)).all()


def test_relu_that_is_off_lets_no_infinity_through(emulator):
    """Where relu is off its gradient is zero, whatever stands behind it."""
    for row_tile, cluster_size in ((16, 1), (64, 1), (16, 2)):
        case = Case(emulator, 20, 64, 16, dtype="float16")
        case.wu[:, 5], case.u[:, 5] = np.inf, -1
        gradients = case.backward(activation="relu", row_tile=row_tile, cluster_size=cluster_size)
        for name, gradient in zip(GRADIENTS, gradients, strict=True):
            assert np.isfinite(gradient).all(), name
        assert not gradients[1][5].any()
        assert gradients[2][5] == 0


def test_plans(emulator):
    """The plan fits the device and uses clusters only where they exist."""
    sm_90, sm_80 = (90, 227 * 1024), (80, 163 * 1024)

    def plan(tokens, hidden, bottleneck, device, dtype="bfloat16", **options):
        return emulator.plan_tile(
            dtype=dtype, tokens=tokens, hidden_size=hidden, bottleneck_dim=bottleneck, capability=device[0],
            shared_memory=device[1], **options,
        )  # fmt: skip

    for device, sizes in itertools.product((sm_90, sm_80), itertools.product((8, 16384), (768, 8192), (16, 128))):
        row_tile, cluster_size, shared = plan(*sizes, device)
        assert row_tile in (0, 16, 32, 64)
        assert row_tile == 0 or shared <= device[1]
        assert cluster_size == 1 or device is sm_90
    assert plan(16384, 4096, 64, sm_90, num_adapters=64)[:2] == (32, 8)
    assert plan(8, 4096, 64, sm_90, num_adapters=4)[:2] == (16, 8)
    assert plan(16384, 768, 64, sm_80)[:2] == (64, 1)
    assert plan(16384, 8192, 64, sm_80)[0] == 0
    assert plan(16, 64, 129, sm_90)[0] == 0
    assert plan(16, 64, 16, sm_90, "float32")[0] == 0
    assert plan(16, 64, 16, (75, 64 * 1024))[0] == 0


# ---- element-wise kernels ------------------------------------------------------------------------------------------

ROW_SHAPES = [(1, 1), (5, 7), (3, 64), (70, 48), (257, 8), (2, 1030)]
DTYPES = ["float32", "float64", "bfloat16", "float16"]
UNIT = {"float32": 2.0**-22, "float64": 2.0**-40, "bfloat16": 2.0**-8, "float16": 2.0**-10}


def assert_rounded(actual, exact, dtype, what, scale=None):
    """Within one unit in the last place of the result, or of `scale` where terms cancel."""
    scale = np.maximum(np.abs(exact), 1.0) if scale is None else np.maximum(scale, 1.0)
    worst = np.max(np.abs(ref.from_bits(actual) - exact) / scale)
    assert worst <= UNIT[dtype], f"{what}: {worst:.2e} > {UNIT[dtype]:.2e}"


class Rows:
    """Random matrices for the element-wise kernels."""

    def __init__(self, emulator, shape, dtype):
        self.emulator, self.dtype = emulator, dtype
        rng = np.random.default_rng(1)
        self.x, self.u, self.residual = (self.put(rng.standard_normal(shape)) for _ in range(3))
        self.bias = self.put(rng.standard_normal(shape[1]))

    def put(self, values):
        """Copy to guarded memory."""
        array = self.empty(values.shape)
        array[...] = ref.to_bits(values, self.dtype)
        return array

    def empty(self, shape):
        """Guarded memory filled with NaN."""
        return self.emulator.guarded(list(shape), np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype))


@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_activation(emulator, shape, dtype):
    """Both results, with and without bias, out of place and in place."""
    rows = Rows(emulator, shape, dtype)
    for bias, activation in ((rows.bias, "gelu"), (None, "silu")):
        u = ref.from_bits(rows.x) + (0 if bias is None else ref.from_bits(bias))
        activated, pre_activation = rows.empty(shape), rows.empty(shape)
        emulator.bias_activation(rows.x, bias, activated, pre_activation, activation=activation)
        assert_rounded(activated, ref.activate(activation, u), dtype, "activated", np.abs(u))
        assert_rounded(pre_activation, u, dtype, "pre_activation")
        in_place = rows.put(ref.from_bits(rows.x))
        emulator.bias_activation(in_place, bias, in_place, None, activation=activation)
        np.testing.assert_array_equal(in_place, activated)


@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_residual(emulator, shape, dtype):
    """With every combination of null pointers; the output may be the branch."""
    rows = Rows(emulator, shape, dtype)
    for bias, residual in itertools.product((rows.bias, None), (rows.residual, None)):
        parts = [0 if x is None else ref.from_bits(x) for x in (residual, bias)]
        exact = parts[0] + 0.3 * (ref.from_bits(rows.x) + parts[1])
        output = rows.put(ref.from_bits(rows.x))
        emulator.scaled_residual(output, bias, residual, output, scaling=0.3)
        assert_rounded(output, exact, dtype, "output", np.abs(parts[0]) + np.abs(exact))
        exact = np.broadcast_to(parts[0] + 0.3 * parts[1], shape)
        emulator.scaled_residual(None, bias, residual, output, scaling=0.3)
        assert_rounded(output, exact, dtype, "output", np.abs(parts[0]) + np.abs(exact))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activation_gradient(emulator, activation, dtype):
    """Gradient and bias gradient for every activation; the derivative has no closed form in the reference."""
    shape = (200, 24) if activation == "gelu" else (7, 9)
    rows = Rows(emulator, shape, dtype)
    gradient, grad_bias = rows.empty(shape), rows.empty(shape[1:])
    emulator.activation_gradient(rows.u, rows.x, gradient, grad_bias, activation=activation, scaling=0.7)
    exact = 0.7 * ref.derivative(activation, ref.from_bits(rows.u)) * ref.from_bits(rows.x)
    tolerance = dtype if dtype != "float64" else "float32"  # the reference differentiates numerically
    assert_rounded(gradient, exact, tolerance, "gradient")
    stored = ref.from_bits(gradient).sum(0)
    assert_rounded(grad_bias, stored, dtype, "grad_bias", np.abs(ref.from_bits(gradient)).sum(0))
    only = rows.empty(shape)
    emulator.activation_gradient(rows.u, rows.x, only, None, activation=activation, scaling=0.7)
    np.testing.assert_array_equal(only, gradient)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_a_relu_that_is_off(emulator, dtype):
    """It is zero, whatever stands behind it."""
    rows = Rows(emulator, (5, 7), dtype)
    u, x = rows.put(np.full((5, 7), -1.0)), rows.put(np.full((5, 7), np.inf))
    gradient = rows.empty((5, 7))
    emulator.activation_gradient(u, x, gradient, None, activation="relu", scaling=0.7)
    assert not gradient.any()


@pytest.mark.parametrize("shape", [*ROW_SHAPES, (0, 5), (1000, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_column_sum(emulator, shape, dtype):
    """Column sums, contiguous and of strided rows."""
    rows = Rows(emulator, shape, dtype)
    sums = rows.empty(shape[1:])
    emulator.column_sum(rows.x, sums, scaling=0.3)
    exact = 0.3 * ref.from_bits(rows.x).sum(0)
    size = np.abs(ref.from_bits(rows.x)).sum(0)
    assert_rounded(sums, exact, dtype, "sums", size)
    wide = rows.empty((shape[0], shape[1] + 5))
    wide[:, : shape[1]] = rows.x
    strided = rows.empty(shape[1:])
    emulator.column_sum(wide[:, : shape[1]], strided, scaling=0.3)
    assert_rounded(strided, exact, dtype, "strided sums", size)


# ---- the emulator itself -------------------------------------------------------------------------------------------


def test_sixteen_bit_floats_are_exact(emulator):
    """The host twins of the conversions, against NumPy: every half, and floats on and beside rounding ties."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits.view(np.float16)
    np.testing.assert_array_equal(emulator.half_float(bits), halves.astype(np.float32))
    finite = np.sort(halves[np.isfinite(halves)].astype(np.float32))
    ties = (finite[1:] + finite[:-1]) / 2
    values = np.concatenate([finite, ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, np.float32(-9e9))])
    values = np.append(values, np.float32([65519.9, 65520.0, 1e9, -1e9, np.inf, -np.inf]))
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(emulator.half_bits(values).view(np.float16), expected)
    np.testing.assert_array_equal(emulator.bfloat16_bits(values), ref.to_bits(values, "bfloat16"))


def test_access_past_the_end_is_an_error(emulator):
    """A kernel that reads past its input is stopped with a message, and the next launch works."""
    rows = Rows(emulator, (4, 33), "float32")
    short = rows.put(np.zeros((3, 33)))
    with pytest.raises(emulator.EmulatorError, match="memory access out of range"):
        emulator.scaled_residual(rows.x, None, short, rows.empty((4, 33)), scaling=1.0)
    test_scaled_residual(emulator, (3, 64), "float32")


def test_launch_limits_are_checked(emulator):
    """A tile that does not fit in shared memory cannot be launched."""
    case = Case(emulator, 16, 4096, 16)
    with pytest.raises(emulator.EmulatorError, match="shared memory must fit"):
        case.forward(row_tile=64, cluster_size=1)
