"""The resident kernel (row_tile 32) on the host, against float64: several tiles a cluster, odd sizes, every schedule."""

import itertools

import numpy as np
import pytest
from emulator_cases import ACTIVATIONS, Case, check_backward, check_forward, ref

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
    check_backward(case, add_grad_output=False, row_tile=32, cluster_size=cluster_size)
