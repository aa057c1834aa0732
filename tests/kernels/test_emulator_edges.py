"""The tile kernels at their edges: sizes that end inside a vector, blocks without output, offsets of 64 bits."""

import numpy as np
import pytest
from emulator_cases import Case, check_backward, check_forward

PLANS = [(16, 1), (64, 1), (16, 4), (64, 2)]
# One tile's tokens: near the beginning, beyond 2^31 elements, beyond 2^32.
COLUMNS = 4096
FAR = [3, 4, 2**31 // COLUMNS + 5, 2**31 // COLUMNS + 8, 2**32 // COLUMNS + 2, 2**32 // COLUMNS + 77]


@pytest.mark.parametrize("bottleneck", [2, 18, 34, 66, 126])
@pytest.mark.parametrize(("row_tile", "cluster_size"), PLANS)
def test_bottlenecks_of_two_mod_four(emulator, bottleneck, row_tile, cluster_size):
    """Pairs lie inside or outside as a whole, quads do not. 20 tokens: the tensors themselves are aligned for quads."""
    case = Case(emulator, 20, 136, bottleneck)
    check_forward(case, residual=None, row_tile=row_tile, cluster_size=cluster_size)
    check_backward(case, add_grad_output=False, row_tile=row_tile, cluster_size=cluster_size)


@pytest.mark.parametrize(("columns", "padding"), [(77, 3), (15, 1), (257, 7)])
@pytest.mark.parametrize(("row_tile", "cluster_size"), PLANS)
def test_rows_that_end_inside_a_unit(emulator, columns, padding, row_tile, cluster_size):
    """Aligned rows, whose last 16 bytes hold NaN behind the last column."""
    case = Case(emulator, 21, columns, 16)
    strided = Case(emulator, 21, columns, 16, offset=padding)
    for name in ("wd", "wu", "u"):
        setattr(strided, name, getattr(case, name))
    launch = {"row_tile": row_tile, "cluster_size": cluster_size}
    check_forward(strided, residual="same", **launch)
    check_forward(strided, residual="other", **launch)
    check_backward(strided, add_grad_output=False, **launch)


@pytest.mark.parametrize("wanted", [(0, 1, 1, 1, 1), (0, 0, 1, 0, 0), (0, 0, 1, 1, 0)])
@pytest.mark.parametrize(("row_tile", "cluster_size"), [(16, 8), (64, 4), (16, 4)])
@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_no_grad_input_in_a_cluster(emulator, wanted, row_tile, cluster_size, order):
    """Nothing to write: a block may end while others still read its shared memory, and must not."""
    emulator.configure(order, greedy_blocks=True)
    case = Case(emulator, 20, 328, 24)
    wanted = tuple(map(bool, wanted))
    check_backward(case, add_grad_output=False, row_tile=row_tile, cluster_size=cluster_size, wanted=wanted)


def run_one_tile(emulator, case, tokens, num_tokens, launch):
    """Run forward and backward on `tokens` of `num_tokens`, whose rows the case holds; return all that comes out."""

    def spread(rows):
        matrix = emulator.sparse([num_tokens, rows.shape[1]], rows.dtype)
        matrix[tokens] = rows
        return matrix

    h, residual, dy, u = map(spread, (case.h, case.residual, case.dy, case.u))
    output, grad_input, pre_activation = (spread(np.zeros_like(x)) for x in (case.h, case.h, case.u))
    grads = [grad_input, case.empty(*case.wd.shape), case.empty(*case.bd.shape), case.empty(*case.wu.shape),
             case.empty(*case.bu.shape)]  # fmt: skip
    options = {"activation": "gelu", "scaling": 0.7, "far": tokens, **launch}
    emulator.forward(h, residual, case.wd, case.bd, case.wu, case.bu, output, pre_activation, **options)
    emulator.backward(dy, h, u, case.wd, case.wu, grads, add_grad_output=True, **options)
    return [output[tokens], pre_activation[tokens], grads[0][tokens], *grads[1:]]


@pytest.mark.parametrize(("row_tile", "cluster_size"), [(16, 8), (64, 8)])
def test_offsets_beyond_32_bits(emulator, row_tile, cluster_size):
    """Tokens of one tile that lie gigabytes apart give the bits of neighbours."""
    case = Case(emulator, len(FAR), COLUMNS, 8)
    for name in ("wd", "bd", "wu", "bu"):
        setattr(case, name, getattr(case, name)[None])
    launch = {"row_tile": row_tile, "cluster_size": cluster_size}
    near = run_one_tile(emulator, case, list(range(len(FAR))), len(FAR), launch)
    far = run_one_tile(emulator, case, FAR, FAR[-1] + 10, launch)
    for one, other in zip(near, far, strict=True):
        np.testing.assert_array_equal(one, other)
