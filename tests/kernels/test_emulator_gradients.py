"""The weight gradients of the tile path in the emulator: streamed (aligned rows, sm_90) or not, cut into ranges."""

import itertools

import numpy as np
import pytest
from emulator_cases import GRADIENTS, Case, GroupedCase, assert_close, assert_same_bits, check_backward, ref

WEIGHTS = (False, True, True, True, True)

# tokens, hidden_size, bottleneck_dim, multiprocessors. Stages of 32 tokens and steps of 16, windows of 256 columns, all
# padded sizes of the bottleneck and what lies beside them; as many ranges in a cluster as multiprocessors and tokens
# allow: 1, 2, 4 or 8, the last one short or without tokens.
STREAMED = [
    (1, 8, 1, 132), (15, 16, 16, 132), (16, 8, 17, 132), (17, 8, 31, 132), (31, 264, 32, 132), (33, 256, 33, 132),
    (64, 248, 64, 132), (65, 8, 65, 132), (48, 520, 100, 132), (40, 16, 128, 132), (300, 8, 8, 132), (257, 264, 24, 8),
    (256, 8, 64, 4), (520, 8, 128, 8), (1025, 8, 16, 16), (1030, 8, 5, 132), (700, 8, 8, 1),
]  # fmt: skip


def ranges_of(tokens, hidden, multiprocessors):
    """How many blocks a cluster of the streamed form has, by the rule of weight_gradient.cu."""
    windows = 2 * -(-hidden // 256)
    fitting = (r for r in (8, 4, 2) if windows * r <= multiprocessors and tokens >= 128 * r)
    return next(fitting, 1)


def test_cases_cover_every_cluster_size():
    """The list above has what it says."""
    assert {ranges_of(t, d, s) for t, d, _, s in STREAMED} == {1, 2, 4, 8}


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "multiprocessors"), STREAMED)
def test_streamed(emulator, tokens, hidden, bottleneck, multiprocessors):
    """Right, without partial sums or bank conflicts, on memory that begins or ends at the guard page."""
    for guard, dtype in (("end", "bfloat16"), ("begin", "float16")):
        emulator.configure(guard=guard)
        case = Case(emulator, tokens, hidden, bottleneck, dtype=dtype)
        emulator.take_counters()
        check_backward(case, wanted=WEIGHTS, row_tile=16, multiprocessors=multiprocessors)
        counters = emulator.take_counters()
        assert counters["launches"] == 2
        assert counters["bank_conflicts"] == 0


@pytest.mark.parametrize(("tokens", "multiprocessors"), [(12400, 6), (24800, 12)], ids=["blocks", "clusters of two"])
def test_several_clusters_for_a_window(emulator, tokens, multiprocessors):
    """Where no cluster of all ranges fits and many tokens are saved: three sets of partial sums, then their sum."""
    case = Case(emulator, tokens, 8, 5)
    emulator.take_counters()
    check_backward(case, wanted=WEIGHTS, row_tile=16, multiprocessors=multiprocessors)
    assert emulator.take_counters()["launches"] == 3


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck"), [(70, 264, 24), (300, 8, 16)])
def test_streamed_or_not_gives_the_same_bits(emulator, tokens, hidden, bottleneck):
    """One range of tokens: an element is the same sum, in the same order, whichever kernel has made it."""
    case = Case(emulator, tokens, hidden, bottleneck)
    streamed = case.backward(wanted=WEIGHTS, multiprocessors=1)
    if tokens < 256:
        assert_same_bits(streamed, case.backward(wanted=WEIGHTS, capability=80))
    shifted = Case(emulator, tokens, hidden, bottleneck, offset=8)
    for name in ("wd", "wu", "u"):
        setattr(shifted, name, getattr(case, name))
    assert_same_bits(streamed, shifted.backward(wanted=WEIGHTS, multiprocessors=1))


@pytest.mark.parametrize("wanted", [w for w in itertools.product([False, True], repeat=5) if any(w[1:])])
def test_every_subset_of_streamed_gradients(emulator, wanted):
    """A gradient that is not wanted changes no bit of the others, in a cluster too."""
    case = Case(emulator, 260, 16, 8)
    assert ranges_of(260, 16, 132) == 2
    for full, part in zip(case.backward(row_tile=16), case.backward(row_tile=16, wanted=wanted), strict=True):
        if part is not None:
            np.testing.assert_array_equal(full, part)


SCHEDULES = [*itertools.product(["forward", "reverse", "random"], [False, True], [False]), ("forward", False, True)]


@pytest.mark.parametrize(("tokens", "multiprocessors"), [(70, 132), (520, 132), (50, 1)])
def test_streamed_on_every_schedule(emulator, tokens, multiprocessors):
    """A ring of stages, a cluster that exchanges sums, a block that walks over items: a difference is a race."""
    results = []
    for order, eager, greedy in SCHEDULES:
        emulator.configure(order, eager, seed=len(results), greedy_blocks=greedy)
        case = Case(emulator, tokens, 264 if multiprocessors == 1 else 16, 24)
        results.append(case.backward(wanted=WEIGHTS, row_tile=16, multiprocessors=multiprocessors))
    for result in results[1:]:
        assert_same_bits(results[0], result)


def big_terms(case, tokens):
    """Give grad_up_weight[0, 0] the terms 2^30, -2^30 and 1 at three tokens: only in that order their sum is 1."""
    case.dy[...], case.u[...] = 0, 0
    for token, dy, u in zip(tokens, (32768.0, -32768.0, 1.0), (32768.0, 32768.0, 1.0), strict=True):
        case.dy[token, 0], case.u[token, 0] = ref.to_bits(np.array([dy, u]), case.dtype)
    return case


def test_ranges_are_added_in_order(emulator):
    """By each block of a cluster, whichever owns the element."""
    case = Case(emulator, 512, 8, 40)
    assert ranges_of(512, 8, 8) == 4
    big_terms(case, (0, 130, 400))
    for column in range(1, 40):  # one element of each pair of accumulators
        case.u[:, column] = case.u[:, 0]
    gradient = case.backward(activation="relu", scaling=1.0, wanted=WEIGHTS, multiprocessors=8)[3]
    np.testing.assert_array_equal(ref.from_bits(gradient[0]), 1)


def test_no_number_spreads_to_other_sums(emulator):
    """An infinity in one column of a wide matrix, or of the narrow one, reaches the gradients of that column alone."""
    case = Case(emulator, 40, 40, 20)
    clean = case.backward(activation="relu", wanted=WEIGHTS)
    case.dy[3, 17], case.h[5, 18], case.u[7, 2] = (np.uint16(0x7F80),) * 3
    down, _, up, up_bias = case.backward(activation="relu", wanted=WEIGHTS)[1:]
    kept = np.arange(40) != 17
    np.testing.assert_array_equal(up_bias[kept], clean[4][kept])
    columns = np.arange(20) != 2
    np.testing.assert_array_equal(up[kept][:, columns], clean[3][kept][:, columns])
    assert np.isinf(ref.from_bits(up_bias[17]))
    del down


# ---- sorted tokens -------------------------------------------------------------------------------------------------

RANGE = 2048  # tokens that one block sums
SIZES = [
    ("one range each", [0, 1, 31, 32, 33, 0, 16, 64, 100], 16, 24),
    ("several windows", [20, 0, 70], 264, 16),
    ("at the limit", [RANGE - 1, RANGE, 5], 8, 8),
    ("beyond the limit", [RANGE + 1, 0, 3, 2 * RANGE + 40], 8, 8),
]


def grouped(emulator, sizes, hidden, bottleneck):
    """`sizes[g]` tokens pick adapter g, a few none, in random order."""
    indices = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), [-1] * 3])
    np.random.default_rng(7).shuffle(indices)
    return GroupedCase(emulator, len(indices), hidden, bottleneck, len(sizes), only=indices)


def run_grouped(case, wanted=WEIGHTS, activation="gelu", scaling=0.7, **launch):
    """Run the tile path; return the five gradients, None where not wanted."""
    shapes = ((case.tokens, case.hidden), case.wd.shape, case.bd.shape, case.wu.shape, case.bu.shape)
    gradients = [case.empty(*shape) if want else None for shape, want in zip(shapes, wanted, strict=True)]
    case.emulator.backward(
        case.dy, case.h if wanted[1] else None, case.u, case.wd, case.wu, gradients, activation=activation,
        scaling=scaling, add_grad_output=False, indices=case.indices, **{"row_tile": 64, "cluster_size": 1, **launch},
    )  # fmt: skip
    return gradients


@pytest.mark.parametrize(("sizes", "hidden", "bottleneck"), [s[1:] for s in SIZES], ids=[s[0] for s in SIZES])
@pytest.mark.parametrize("launch", [{"multiprocessors": 3}, {"capability": 80}], ids=["streamed", "not"])
def test_grouped(emulator, sizes, hidden, bottleneck, launch):
    """Right; an adapter of one range has the bits of the single adapter, one without tokens has zeros."""
    case = grouped(emulator, sizes, hidden, bottleneck)
    gradients = run_grouped(case, **launch)
    exact, eager = case.expected_groups_backward(None), case.expected_groups_backward(case.dtype)
    for name, actual, right, yardstick in list(zip(GRADIENTS, gradients, exact, eager, strict=True))[1:]:
        assert_close(actual, right, yardstick, 3, name)
    for group, size in enumerate(sizes):
        if not 0 < size <= 128:
            continue
        expected = case.single(group)[0].backward(add_grad_output=False, wanted=WEIGHTS, **launch)
        assert_same_bits([None if g is None else g[group] for g in gradients], expected)


def test_grouped_on_every_schedule(emulator):
    """Blocks that walk over several items each."""
    results = []
    for order, eager, greedy in SCHEDULES:
        emulator.configure(order, eager, seed=len(results), greedy_blocks=greedy)
        results.append(run_grouped(grouped(emulator, [0, 40, 33, 1, 20], 16, 8), multiprocessors=2))
    for result in results[1:]:
        assert_same_bits(results[0], result)


@pytest.mark.parametrize("wanted", [(0, 1, 1, 1, 1), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 1, 0, 0, 1)])
@pytest.mark.parametrize("launch", [{"multiprocessors": 3}, {"capability": 80}], ids=["streamed", "not"])
def test_grouped_subsets_with_partial_sums(emulator, wanted, launch):
    """Partial sums of what nobody wants take no place, and none is written."""
    case = grouped(emulator, [RANGE + 20, 0, 2], 8, 8)
    everything = run_grouped(case, **launch)
    for full, part in zip(everything, run_grouped(case, tuple(map(bool, wanted)), **launch), strict=True):
        if part is not None:
            np.testing.assert_array_equal(full, part)


@pytest.mark.parametrize("capability", [90, 80])
def test_sorted_ranges_are_added_in_order(emulator, capability):
    """An adapter of three ranges, behind one of one range."""
    case = GroupedCase(emulator, 2 * RANGE + 20, 8, 8, 2, only=1)
    case.indices[:5] = 0
    big_terms(case, (5, RANGE + 10, 2 * RANGE + 15))
    gradient = run_grouped(case, activation="relu", scaling=1.0, capability=capability)[3]
    assert ref.from_bits(gradient[1, 0, 0]) == 1
