"""The grouped CUDA kernels in the emulator: the sort of the tokens, the tile kernels, and the general kernels.

The tile kernels are held to the bits of a single adapter, the general ones ("segments") to float64.
"""

import itertools

import numpy as np
import pytest
from emulator_cases import ACTIVATIONS, FLOOR, GRADIENTS, WANTED, WANTED_IDS, Case, assert_close, ref

DTYPES = ("float32", "float64", "bfloat16", "float16")
FLOORS = {"float32": 2e-6, "float64": 2e-12, "bfloat16": FLOOR, "float16": FLOOR}


class GroupedCase(Case):
    """`groups` sets of weights in one tensor, and an index for each token."""

    def __init__(
        self, emulator, tokens, hidden, bottleneck, groups, *, input_size=None, dtype="bfloat16", only=None, offset=0
    ):
        super().__init__(emulator, tokens, hidden, bottleneck, dtype=dtype, offset=offset)
        rng = np.random.default_rng(5)
        self.groups, self.input_size = groups, input_size or hidden
        self.wd = self.put(rng.standard_normal((groups, bottleneck, self.input_size)) / np.sqrt(self.input_size))
        self.wu = self.put(rng.standard_normal((groups, hidden, bottleneck)) / np.sqrt(bottleneck))
        self.offset = 0  # biases and pre-activations have no strides
        self.bd = self.put(rng.standard_normal((groups, bottleneck)) * 0.3)
        self.bu = self.put(rng.standard_normal((groups, hidden)) * 0.3)
        self.u = self.put(rng.standard_normal((tokens, bottleneck)))
        self.offset = offset
        if self.input_size != hidden:
            self.h = self.put(rng.standard_normal((tokens, self.input_size)))
        self.indices = emulator.guarded([tokens], np.dtype("int64"))
        self.indices[...] = rng.integers(-1, groups, tokens) if only is None else only
        self.u[self.indices < 0] = 0

    def single(self, group):
        """The tokens of one group as a problem of its own, for the kernels without groups."""
        rows = self.indices == group
        case = Case(self.emulator, int(rows.sum()), self.hidden, self.bottleneck, dtype=self.dtype)
        for name in ("h", "residual", "dy", "u"):
            getattr(case, name)[...] = getattr(self, name)[rows]
        for name in ("wd", "wu", "bd", "bu"):
            getattr(case, name)[...] = getattr(self, name)[group]
        return case, rows

    def alone(self, group):
        """The tokens and weights of one group as a grouped problem with one adapter."""
        rows = self.indices == group
        case = GroupedCase(
            self.emulator, int(rows.sum()), self.hidden, self.bottleneck, 1, input_size=self.input_size,
            dtype=self.dtype, only=0,
        )  # fmt: skip
        for name in ("h", "residual", "dy", "u"):
            getattr(case, name)[...] = getattr(self, name)[rows]
        for name in ("wd", "wu", "bd", "bu"):
            getattr(case, name)[0] = getattr(self, name)[group]
        return case, rows

    def base(self, residual):
        """The tensor that the branch is added to."""
        return {"same": self.h, "other": self.residual, None: None}[residual]

    def segments_forward(
        self, *, activation="gelu", scaling=0.7, residual="other", down_bias=True, up_bias=True, save=True, row_tile=64
    ):
        """Run the general kernels; return the arrays (output, pre_activation or None)."""
        output = self.empty(self.tokens, self.hidden)
        u = self.empty(self.tokens, self.bottleneck) if save else None
        self.emulator.segments_forward(
            self.h, self.base(residual), self.wd, self.bd if down_bias else None, self.wu,
            self.bu if up_bias else None, output, u, activation=activation, scaling=scaling, indices=self.indices,
            row_tile=row_tile,
        )  # fmt: skip
        return output, u

    def segments_backward(
        self, *, activation="gelu", scaling=0.7, add_grad_output=False, wanted=(True,) * 5, row_tile=64
    ):
        """Run the general kernels; return the five gradients, None where not wanted."""
        shapes = ((self.tokens, self.input_size), self.wd.shape, self.bd.shape, self.wu.shape, self.bu.shape)
        gradients = [self.empty(*shape) if want else None for shape, want in zip(shapes, wanted, strict=True)]
        self.emulator.segments_backward(
            self.dy, self.h if wanted[1] else None, self.u, self.wd, self.wu, gradients, activation=activation,
            scaling=scaling, add_grad_output=add_grad_output, indices=self.indices, row_tile=row_tile,
        )  # fmt: skip
        return gradients

    def expected_groups_forward(
        self, dtype, *, activation="gelu", scaling=0.7, residual="other", down_bias=True, up_bias=True
    ):
        """Return (output, pre_activation) of the formula, one adapter after the other."""
        h, wd, bd, wu, bu = map(ref.from_bits, (self.h, self.wd, self.bd, self.wu, self.bu))
        base = None if residual is None else ref.from_bits(self.base(residual))
        output = np.zeros((self.tokens, self.hidden)) if base is None else base.copy()
        u = np.zeros((self.tokens, self.bottleneck))
        for group in range(self.groups):
            rows = self.indices == group
            output[rows], u[rows] = ref.forward(
                h[rows], None if base is None else base[rows], wd[group], bd[group] if down_bias else None, wu[group],
                bu[group] if up_bias else None, activation=activation, scaling=scaling, dtype=dtype,
            )  # fmt: skip
        return output, u

    def expected_groups_backward(self, dtype, *, activation="gelu", scaling=0.7, add_grad_output=False):
        """Return the five gradients of the formula, one adapter after the other."""
        dy, h, u, wd, wu = map(ref.from_bits, (self.dy, self.h, self.u, self.wd, self.wu))
        dh = dy.copy() if add_grad_output else np.zeros((self.tokens, self.input_size))
        gradients = [dh, *(np.zeros(x.shape) for x in (self.wd, self.bd, self.wu, self.bu))]
        for group in range(self.groups):
            rows = self.indices == group
            dh[rows], *parts = ref.backward(
                dy[rows], h[rows], u[rows], wd[group], wu[group], activation=activation, scaling=scaling,
                add_grad_output=add_grad_output, dtype=dtype,
            )  # fmt: skip
            for gradient, part in zip(gradients[1:], parts, strict=True):
                gradient[group] = part
        return gradients


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


def assert_same_bits(left, right):
    """Compare lists of arrays; None stands for a gradient that was not wanted."""
    for first, second in zip(left, right, strict=True):
        if first is not None and second is not None:
            np.testing.assert_array_equal(first, second)


# ---- the sort ------------------------------------------------------------------------------------------------------


# tokens, groups: none, one, one block of 256 and just more, fewer and more groups than threads, several blocks each.
@pytest.mark.parametrize(
    ("tokens", "groups"),
    [(0, 3), (1, 1), (5, 4096), (256, 3), (257, 1), (257, 255), (3000, 2), (700, 256), (700, 300), (9000, 40)],
)
@pytest.mark.parametrize("row_tile", [16, 64])
def test_sort(emulator, tokens, groups, row_tile):
    """The order is that of a stable sort; tiles and ranges cover it, group by group, and the tables are long enough."""
    rng = np.random.default_rng(tokens)
    indices = emulator.guarded([tokens], np.dtype("int64"))
    indices[...] = np.minimum(rng.integers(-1, groups, tokens), rng.integers(-1, groups, tokens))
    order, tiles, ranges, first_range = emulator.group_tokens(indices, num_groups=groups, row_tile=row_tile)
    keys = np.where(indices < 0, groups, indices)
    np.testing.assert_array_equal(order, np.argsort(keys, kind="stable"))
    for table, size, last in ((tiles, row_tile, groups), (ranges, 2048, groups - 1)):
        expected, begin = [], 0
        for group in range(last + 1):
            end = begin + int((keys == group).sum())
            expected += [
                (-1 if group == groups else group, first, min(first + size, end)) for first in range(begin, end, size)
            ]
            begin = end
        assert [tuple(map(int, row)) for row in table[: len(expected)]] == expected
        assert (table[len(expected) :, 0] == -2).all()
    if tokens:
        counts = np.bincount([row[0] for row in ranges if row[0] >= 0], minlength=groups)
        np.testing.assert_array_equal(first_range, np.concatenate([[0], np.cumsum(counts)]))


@pytest.mark.parametrize(("tokens", "groups"), [(70, 3), (2000, 3), (600, 300)])
def test_sort_on_every_schedule(emulator, tokens, groups):
    """A difference is a race."""
    indices = emulator.guarded([tokens], np.dtype("int64"))
    indices[...] = np.arange(tokens) ** 2 % (groups + 1) - 1
    results = []
    for order in ("forward", "reverse", "random"):
        emulator.configure(order)
        results.append(emulator.group_tokens(indices, num_groups=groups, row_tile=16))
    for result in results[1:]:
        assert_same_bits(results[0], result)


@pytest.mark.parametrize(("tokens", "launches"), [(256, 1), (257, 3)])
def test_sort_of_few_tokens_is_one_launch(emulator, tokens, launches):
    """Decoding cannot wait for three."""
    indices = emulator.guarded([tokens], np.dtype("int64"))
    indices[...] = 0
    emulator.take_counters()
    emulator.group_tokens(indices, num_groups=2, row_tile=16)
    assert emulator.take_counters()["launches"] == launches


@pytest.mark.parametrize("groups", [0, 4097])
def test_sort_limits_of_groups(emulator, groups):
    """More groups than the scan's shared memory holds are refused."""
    indices = emulator.guarded([4], np.dtype("int64"))
    indices[...] = -1
    with pytest.raises(RuntimeError, match="invalid argument"):
        emulator.group_tokens(indices, num_groups=groups, row_tile=16)


def test_index_out_of_range_is_a_device_side_assertion(emulator):
    """An index that names no adapter stops the launch, with words, instead of reading other memory."""
    words = "grouped_bottleneck_adapter: adapter_indices must be -1 or the number of an adapter"
    for index in (3, -2, 1 << 40, -(1 << 40), 1 << 32):
        case = GroupedCase(emulator, 5, 16, 8, 3, only=0)
        case.indices[4] = index
        with pytest.raises(emulator.EmulatorError, match=f"grouping.cu:[0-9]+: group_tokens: Assertion `{words}`"):
            case.segments_forward()


# ---- the tile kernels ----------------------------------------------------------------------------------------------

GROUPED = [(70, 72, 16, 3, 16, 1, None), (300, 40, 8, 5, 64, 2, None), (33, 37, 7, 40, 16, 2, None),
           (20, 64, 24, 2, 64, 1, 1), (9, 24, 8, 3, 16, 1, -1)]  # fmt: skip
TILE_ARGUMENTS = ("tokens", "hidden", "bottleneck", "groups", "row_tile", "cluster_size", "only")


@pytest.mark.parametrize(TILE_ARGUMENTS, GROUPED)
@pytest.mark.parametrize("residual", ["same", "other", None])
def test_tile_forward(emulator, tokens, hidden, bottleneck, groups, row_tile, cluster_size, only, residual):
    """Each token's output has the bits that its adapter alone gives it; no adapter leaves the residual."""
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, only=only)
    output, u = case.empty(tokens, hidden), case.empty(tokens, bottleneck)
    base = case.base(residual)
    launch = {"row_tile": row_tile, "cluster_size": cluster_size}
    emulator.forward(
        case.h, base, case.wd, case.bd, case.wu, case.bu, output, u, activation="gelu", scaling=0.7, **launch,
        indices=case.indices,
    )  # fmt: skip
    for group in range(groups):
        single, rows = case.single(group)
        expected, expected_u = single.forward(residual=residual, **launch)
        np.testing.assert_array_equal(output[rows], expected)
        np.testing.assert_array_equal(u[rows], expected_u)
    none = case.indices < 0
    np.testing.assert_array_equal(output[none], np.zeros_like(output)[none] if base is None else base[none])
    assert not u[none].any()


@pytest.mark.parametrize(TILE_ARGUMENTS, GROUPED)
@pytest.mark.parametrize("add_grad_output", [True, False])
def test_tile_backward(emulator, tokens, hidden, bottleneck, groups, row_tile, cluster_size, only, add_grad_output):
    """grad_input has the bits of the single adapters; the weight gradients are theirs, zero for unused adapters."""
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, only=only)
    shapes = ((tokens, hidden), case.wd.shape, case.bd.shape, case.wu.shape, case.bu.shape)
    gradients = [case.empty(*shape) for shape in shapes]
    launch = {"row_tile": row_tile, "cluster_size": cluster_size, "add_grad_output": add_grad_output}
    emulator.backward(
        case.dy, case.h, case.u, case.wd, case.wu, gradients, activation="gelu", scaling=0.7, **launch,
        indices=case.indices,
    )  # fmt: skip
    for group in range(groups):
        single, rows = case.single(group)
        expected = single.backward(**launch)
        np.testing.assert_array_equal(gradients[0][rows], expected[0])
        for actual, right in zip(gradients[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(actual[group], right)
    none = case.indices < 0
    np.testing.assert_array_equal(gradients[0][none], case.dy[none] * add_grad_output)


# ---- the general kernels -------------------------------------------------------------------------------------------

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
