"""Grouped adapters in the emulator: the sort of the tokens; the tile kernels, held to the bits of a single adapter."""

import numpy as np
import pytest
from emulator_cases import GroupedCase, assert_same_bits, check_grouped_backward, check_grouped_forward

# ---- the sort ------------------------------------------------------------------------------------------------------


# Indices, groups, tokens of each index: none, one, 256 indices and just more, fewer and more groups than threads and
# than fit beside few indices, several blocks each.
SORTS = [
    (0, 3, 1),
    (1, 1, 1),
    (5, 4096, 1),
    (200, 2000, 1),
    (256, 3, 1),
    (257, 1, 1),
    (257, 255, 1),
    (3000, 2, 1),
    (700, 256, 1),
    (700, 300, 1),
    (9000, 40, 1),
    (1, 1, 300),
    (3, 5, 129),
    (256, 40, 17),
    (257, 40, 17),
]


@pytest.mark.parametrize(("count", "groups", "each"), SORTS)
@pytest.mark.parametrize("row_tile", [16, 32, 64])
def test_sort(emulator, count, groups, each, row_tile):
    """The order is that of a stable sort; tiles and ranges cover it, group by group, and the tables are long enough."""
    rng = np.random.default_rng(count)
    tokens = count * each
    indices = emulator.guarded([count], np.dtype("int64"))
    indices[...] = np.minimum(rng.integers(-1, groups, count), rng.integers(-1, groups, count))
    options = {"num_adapters": groups, "row_tile": row_tile, "tokens_each": each}
    order, tiles, ranges, first_range = emulator.sort_tokens(indices, **options)
    keys = np.repeat(np.where(indices < 0, groups, indices), each)
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


@pytest.mark.parametrize(("count", "groups", "each"), [(70, 3, 1), (2000, 3, 1), (600, 300, 1), (200, 300, 7)])
def test_sort_on_every_schedule(emulator, count, groups, each):
    """A difference is a race."""
    indices = emulator.guarded([count], np.dtype("int64"))
    indices[...] = np.arange(count) ** 2 % (groups + 1) - 1
    results = []
    for order in ("forward", "reverse", "random"):
        emulator.configure(order)
        results.append(emulator.sort_tokens(indices, num_adapters=groups, row_tile=16, tokens_each=each))
    for result in results[1:]:
        assert_same_bits(results[0], result)


@pytest.mark.parametrize(
    ("count", "groups", "each", "launches"),
    [(256, 2, 1, 1), (257, 2, 1, 3), (8, 2, 2048, 1), (256, 3000, 1, 1), (5, 4096, 1, 3)],
)
def test_sort_of_few_indices_is_one_launch(emulator, count, groups, each, launches):
    """Decoding cannot wait for three, and the sequences of a batch are few, however long."""
    indices = emulator.guarded([count], np.dtype("int64"))
    indices[...] = 0
    emulator.take_counters()
    emulator.sort_tokens(indices, num_adapters=groups, row_tile=16, tokens_each=each)
    assert emulator.take_counters()["launches"] == launches


@pytest.mark.parametrize("groups", [0, 4097])
def test_sort_limits_of_groups(emulator, groups):
    """More groups than the scan's shared memory holds are refused."""
    indices = emulator.guarded([4], np.dtype("int64"))
    indices[...] = -1
    with pytest.raises(RuntimeError, match="invalid argument"):
        emulator.sort_tokens(indices, num_adapters=groups, row_tile=16)


def test_index_out_of_range_is_a_device_side_assertion(emulator):
    """An index that names no adapter stops the launch, with words, instead of reading other memory."""
    words = "bottleneck_adapter: adapter_indices must be -1 or the number of an adapter"
    for index in (3, -2, 1 << 40, -(1 << 40), 1 << 32):
        case = GroupedCase(emulator, 5, 16, 8, 3, only=0)
        case.indices[4] = index
        with pytest.raises(emulator.EmulatorError, match=f"sort_tokens.cu:[0-9]+: sort_tokens: Assertion `{words}`"):
            case.segments_forward()


# ---- the tile kernels ----------------------------------------------------------------------------------------------

GROUPED = [(70, 72, 16, 3, 16, 1, None), (300, 40, 8, 5, 64, 2, None), (33, 37, 7, 40, 16, 2, None),
           (20, 64, 24, 2, 64, 1, 1), (9, 24, 8, 3, 16, 1, -1), (40, 72, 32, 3, 16, 2, None),
           (40, 72, 64, 3, 64, 1, None), (40, 72, 128, 3, 16, 1, None)]  # fmt: skip
TILE_ARGUMENTS = ("tokens", "hidden", "bottleneck", "groups", "row_tile", "cluster_size", "only")


@pytest.mark.parametrize(TILE_ARGUMENTS, GROUPED)
@pytest.mark.parametrize("residual", ["same", "other", None])
def test_tile_forward(emulator, tokens, hidden, bottleneck, groups, row_tile, cluster_size, only, residual):
    """Each token's output has the bits that its adapter alone gives it; no adapter leaves the residual."""
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, only=only)
    check_grouped_forward(case, residual, row_tile=row_tile, cluster_size=cluster_size)


@pytest.mark.parametrize(TILE_ARGUMENTS, GROUPED)
@pytest.mark.parametrize("add_grad_output", [True, False])
def test_tile_backward(emulator, tokens, hidden, bottleneck, groups, row_tile, cluster_size, only, add_grad_output):
    """grad_input has the bits of the single adapters; the weight gradients are theirs, zero for unused adapters."""
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, only=only)
    check_grouped_backward(case, add_grad_output, row_tile=row_tile, cluster_size=cluster_size)
