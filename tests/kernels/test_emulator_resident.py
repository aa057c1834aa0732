"""The resident kernel (row_tile 32) on the host against float64: several tiles a cluster, odd sizes, all schedules."""

import itertools

import numpy as np
import pytest
from emulator_cases import (
    ACTIVATIONS,
    Case,
    GroupedCase,
    check_backward,
    check_forward,
    check_grouped_backward,
    check_grouped_forward,
    ref,
)

# tokens, hidden_size, bottleneck_dim, cluster_size. The emulated device runs three clusters at once, so 7 tiles are
# walked over in turns; slices that are full (512, 256) or not, one token, tails, a last block with few columns.
SHAPES = [
    (1, 8, 1, 1),
    (33, 72, 7, 1),
    (290, 136, 24, 2),
    (100, 512, 64, 1),
    (200, 264, 33, 1),
    (70, 528, 48, 2),
    (40, 1032, 64, 4),
    (64, 200, 100, 1),
    (97, 520, 128, 4),
    (50, 1024, 32, 8),
]
SHAPE_IDS = ["-".join(map(str, shape)) for shape in SHAPES]


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "cluster_size"), SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_forward_shapes(emulator, tokens, hidden, bottleneck, cluster_size, dtype):
    """The branch alone, so that the residual hides nothing."""
    case = Case(emulator, tokens, hidden, bottleneck, dtype=dtype)
    check_forward(case, residual=None, row_tile=32, cluster_size=cluster_size)


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "cluster_size"), SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_backward_shapes(emulator, tokens, hidden, bottleneck, cluster_size, dtype):
    """All five gradients, without the added grad_output that would hide errors of grad_input."""
    case = Case(emulator, tokens, hidden, bottleneck, dtype=dtype)
    check_backward(
        case, add_grad_output=False, row_tile=32, cluster_size=cluster_size, multiprocessors=3 * cluster_size
    )


GROUPED = [(70, 72, 16, 3, 1, None), (300, 40, 8, 5, 2, None), (90, 520, 33, 40, 2, None), (64, 64, 24, 2, 1, 1),
           (9, 24, 8, 3, 1, -1), (40, 264, 100, 2, 2, None)]  # fmt: skip


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "groups", "cluster_size", "only"), GROUPED)
@pytest.mark.parametrize("residual", ["same", None])
def test_grouped_forward(emulator, tokens, hidden, bottleneck, groups, cluster_size, only, residual):
    """Each token's output has the bits that its adapter alone gives it; no adapter leaves the residual."""
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, only=only)
    check_grouped_forward(case, residual, row_tile=32, cluster_size=cluster_size)


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "groups", "cluster_size", "only"), GROUPED)
@pytest.mark.parametrize("add_grad_output", [True, False])
def test_grouped_backward(emulator, tokens, hidden, bottleneck, groups, cluster_size, only, add_grad_output):
    """grad_input has the bits of the single adapters; the weight gradients are theirs, zero for unused adapters."""
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, only=only)
    launch = {"row_tile": 32, "cluster_size": cluster_size, "multiprocessors": 3 * cluster_size}
    check_grouped_backward(case, add_grad_output, **launch)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(emulator, activation):
    """Forward and backward, in the precision that tells erf- from tanh-GELU least badly (float16)."""
    case = Case(emulator, 39, 72, 24, dtype="float16")
    check_forward(case, activation=activation, residual=None, row_tile=32)
    check_backward(case, activation=activation, add_grad_output=False, row_tile=32, multiprocessors=1)


@pytest.mark.parametrize(
    ("residual", "down_bias", "up_bias", "save"),
    [*itertools.product(["same", None], [True, False], [True, False], [True, False])],
)
def test_optional_arguments(emulator, residual, down_bias, up_bias, save):
    """Null pointers."""
    case = Case(emulator, 40, 136, 16)
    options = {"residual": residual, "down_bias": down_bias, "up_bias": up_bias}
    check_forward(case, **options, save=save, row_tile=32, cluster_size=2)


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("eager_copies", [True, False])
def test_schedules(emulator, order, eager_copies):
    """A difference is a race: several tiles for each cluster, more than there are stages."""
    case = Case(emulator, 32 * 3 * 9 + 5, 72, 64)
    wide = Case(emulator, 32 * 3 * 3 + 5, 1032, 64)
    emulator.configure("forward", False)
    expected = [
        (*c.forward(row_tile=32, cluster_size=n), *c.backward(row_tile=32, cluster_size=n, multiprocessors=3 * n))
        for c, n in ((case, 1), (wide, 8))
    ]
    emulator.configure(order, eager_copies, seed=7)
    for (c, n), right in zip(((case, 1), (wide, 8)), expected, strict=True):
        actual = (
            *c.forward(row_tile=32, cluster_size=n),
            *c.backward(row_tile=32, cluster_size=n, multiprocessors=3 * n),
        )
        for one, other in zip(actual, right, strict=True):
            np.testing.assert_array_equal(one, other)


def test_no_bank_conflicts_and_no_byte_read_twice(emulator):
    """Hidden states are read once; rows in shared memory are padded."""
    case = Case(emulator, 200, 1024, 64)
    emulator.take_counters()
    case.forward(row_tile=32, cluster_size=2)
    counters = emulator.take_counters()
    assert counters["copied_bytes"] == case.h.nbytes
    assert counters["bank_conflicts"] == 0


def test_the_weight_gradients_may_prepare_themselves_meanwhile(emulator):
    """Each thread of their kernel waits, and lets the next one begin; those of this kernel only let it begin."""
    case = Case(emulator, 200, 264, 64)
    emulator.take_counters()
    case.backward(row_tile=32, cluster_size=1, multiprocessors=3)
    counters = emulator.take_counters()
    assert counters["dependents_launches"] > counters["dependency_waits"] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_token_that_is_not_finite_spoils_no_other(emulator, bad):
    """Also not tokens of later tiles, which lie in the same place; columns that a block lacks stay zero."""
    case = Case(emulator, 32 * 3 * 8, 136, 24)
    clean = case.forward(row_tile=32, cluster_size=2)[0].copy()
    case.h[5] = ref.to_bits(np.full(136, bad), case.dtype)
    spoilt = case.forward(row_tile=32, cluster_size=2)[0]
    np.testing.assert_array_equal(np.delete(clean, 5, 0), np.delete(spoilt, 5, 0))


@pytest.mark.parametrize("bottleneck", [24, 33])
def test_padding_makes_no_nan(emulator, bottleneck):
    """An infinite input makes infinite sums, but what a relu clears stays finite, as in the formula."""
    case = Case(emulator, 4, 72, bottleneck)
    case.h[1, 3] = ref.to_bits(np.array(np.inf), case.dtype)
    case.wd[:, 3] = ref.to_bits(np.full(bottleneck, -1.0), case.dtype)  # every pre-activation is -inf
    output, _ = case.forward(activation="relu", row_tile=32)
    finite = np.isfinite(ref.from_bits(output))
    assert finite[1].sum() == 71
    assert not finite[1, 3]
