"""The resident kernel on a GPU: tiles of 32 tokens, pinned, alone and in clusters of each size, against float64.

It serves rows that begin and end at multiples of 16 bytes, with the hidden states themselves as the residual, or none.
"""

import pytest
import torch
from cuda_cases import (
    HALVES,
    capability,
    check_forward,
    check_gradients,
    check_grouped,
    check_one_sort,
    check_rows_stay_alone,
    grouped,
    make_grouped,
    names_of,
    shifted,
    to_device,
)
from ops_cases import ACTIVATIONS, NAMES, WEIGHTS, arguments_of, compute, error, expect, gradients

# Blocks of a cluster, leading dimensions, hidden_size, bottleneck_dim: one token, tiles with a remainder, columns that
# end inside a block's share, odd bottlenecks, each padded bottleneck with few and with many columns a block.
SHAPES = (
    (1, (1,), 8, 1),
    (1, (2, 35), 136, 31),
    (2, (3, 5), 520, 17),
    (1, (67,), 296, 64),
    (2, (33,), 192, 33),
    (4, (65,), 520, 100),
    (8, (5,), 1032, 65),
)
# Tokens that give every cluster of the largest GPU several tiles, and shapes of the benchmarks: for a GPU only.
LARGE_SHAPES = ((1, (40007,), 512, 64), (2, (9001,), 1024, 128), (4, (5000,), 768, 48), (8, (6001,), 4096, 64))
GROUPED_SHAPES = ((1, (19,), 40, 7, 3), (2, (4, 33), 64, 16, 5), (4, (9,), 200, 128, 12), (1, (150,), 136, 48, 7))


def blocks_and_sizes(shape):
    return f"{shape[0]}-{names_of(shape[1:])}"


@pytest.fixture(autouse=True)
def clusters(device):
    if capability() < 90:
        pytest.skip("resident tiles need compute capability 9.0")


def problem(shape, **options):
    """Return arguments of a shape: sequential placement, or the branch alone where the number of tokens is odd."""
    _, leading, size, bottleneck_dim = shape
    layout = "bare" if leading[-1] % 2 else "sequential"
    return arguments_of(layout, leading, size, size, bottleneck_dim, **options)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES, ids=blocks_and_sizes)
def test_every_size_of_cluster(shape, dtype, device, pin):
    pin(f"tile:32x{shape[0]}")
    arguments = problem(shape, dtype=dtype)
    check_forward(compute, arguments, device)
    check_gradients(compute, arguments, device)
    without = problem(shape, dtype=dtype, without=("down_bias", "up_bias"))
    check_gradients(compute, without, device, activation="silu", scaling=-1.3)


@pytest.mark.parametrize("shape", LARGE_SHAPES, ids=blocks_and_sizes)
def test_several_tiles_a_cluster(shape, gpu, pin):
    pin(f"tile:32x{shape[0]}")
    arguments = problem(shape, dtype=torch.bfloat16)
    check_forward(compute, arguments, gpu)
    check_gradients(compute, arguments, gpu)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, device, pin):
    pin("tile:32x2")
    arguments = arguments_of("sequential", (33,), 40, 40, 17, dtype=torch.bfloat16)
    check_forward(compute, arguments, device, activation=activation)
    check_gradients(compute, arguments, device, activation=activation)


@pytest.mark.parametrize("blocks", [1, 2])
def test_rows_of_a_wider_tensor(blocks, device, pin):
    """Hidden states and gradients that lie between others, and weights that begin at an odd element."""
    pin(f"tile:32x{blocks}")
    arguments = to_device(arguments_of("bare", (70,), 64, 64, 16, dtype=torch.bfloat16), device)
    wanted = gradients(compute, arguments, torch.ones(70, 64, device=device).bfloat16())
    beside = torch.zeros(70, 128, dtype=torch.bfloat16, device=device)
    beside[:, 64:] = arguments[0].detach()
    moved = [beside[:, 64:].detach().requires_grad_(), None]
    moved += [shifted(tensor, device, True) for tensor in arguments[2:]]
    cotangent = torch.zeros(70, 192, device=device).bfloat16()
    cotangent[:, 64:128] = 1
    with torch.no_grad():
        assert torch.equal(compute(moved), compute(arguments))
    for name, gradient in gradients(compute, moved, cotangent[:, 64:128]).items():
        assert torch.equal(gradient, wanted[name]), name


def test_the_same_bits_every_time(device, pin):
    """Sums over warps and blocks have one order, however the blocks of a cluster run."""
    for blocks in (1, 2):
        pin(f"tile:32x{blocks}")
        arguments = to_device(arguments_of("sequential", (130,), 136, 136, 31, dtype=torch.bfloat16), device)
        cotangent = torch.randn(130, 136, device=device).bfloat16()
        first = gradients(compute, arguments, cotangent)
        for _ in range(20 if device == "cuda" else 2):
            for name, gradient in gradients(compute, arguments, cotangent).items():
                assert torch.equal(gradient, first[name]), name


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_rows_of_infinities_and_nans_stay_alone(activation, device, pin):
    pin("tile:32x2")
    arguments = to_device(arguments_of("sequential", (70,), 64, 64, 16, dtype=torch.bfloat16), device)
    arguments = [tensor.detach() for tensor in arguments]
    arguments[1] = arguments[0]
    check_rows_stay_alone(arguments, activation)


@pytest.mark.parametrize(
    ("leading", "size", "bottleneck_dim", "layout", "words"),
    [
        ((9,), 36, 4, "bare", "hidden_size must be a multiple of 8"),
        ((9,), 1032, 4, "bare", "hidden_size must be at most 512 columns a block"),
        ((9,), 520, 65, "bare", "256 where bottleneck_dim is over 64"),
        ((9,), 16, 4, "bare", "each block of a resident tile must have columns"),
        ((9,), 64, 4, "parallel", "no residual but hidden_states"),
    ],
)
def test_what_it_does_not_serve_is_refused_in_words(leading, size, bottleneck_dim, layout, words, device, pin):
    pin("tile:32x2" if size < 1000 else "tile:32x1")
    arguments = to_device(arguments_of(layout, leading, size, size, bottleneck_dim, dtype=torch.bfloat16), device)
    with pytest.raises(ValueError, match=f"^bottleneck_adapter: ADAPTERX_CUDA_PATH must name a path.*{words}"):
        compute(arguments)


# The grouped form


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", GROUPED_SHAPES, ids=blocks_and_sizes)
def test_many_adapters(shape, dtype, device, pin):
    blocks, leading, size, bottleneck_dim, groups = shape
    pin(f"tile:32x{blocks}")
    for prefix in range(1, len(leading) + 1):
        arguments, indices = make_grouped(
            leading, size, size, bottleneck_dim, groups, dtype=dtype, requires_grad=NAMES, prefix=prefix
        )
        arguments[1] = arguments[0] if prefix == 1 else None
        check_grouped(arguments, indices, device)


@pytest.mark.parametrize("layout", ["sequential", "bare"])
def test_tokens_without_an_adapter(layout, device, pin):
    """Alone, and between others: they keep their residual, and no gradient comes from them."""
    pin("tile:32x2")
    arguments, _ = make_grouped((70,), 64, 64, 16, 4, dtype=torch.bfloat16, requires_grad=NAMES)
    arguments[1] = arguments[0] if layout == "sequential" else None
    arguments = to_device(arguments, device)
    cotangent = torch.randn(70, 64, device=device).bfloat16()
    nobody = torch.full((70,), -1, device=device)
    output = grouped(nobody)(arguments)
    assert torch.equal(output, arguments[0]) if layout == "sequential" else not output.any()
    found = gradients(grouped(nobody), arguments, cotangent)
    assert torch.equal(found["hidden_states"], cotangent if layout == "sequential" else torch.zeros_like(cotangent))
    assert not any(found[name].any() for name in WEIGHTS)
    everybody = torch.full((70,), 2, device=device)
    one = [*arguments[:2], *(weight[2] for weight in arguments[2:])]
    assert torch.equal(grouped(everybody)(arguments), compute(one))


@pytest.mark.parametrize("leading", [(3, 50), (300, 2)], ids=str)
def test_one_sort_for_many_calls(leading, device, pin):
    pin("tile:32x1")
    arguments, indices = make_grouped(leading, 64, 64, 16, 4, dtype=torch.bfloat16, requires_grad=NAMES, prefix=1)
    arguments[1] = arguments[0]
    check_one_sort(arguments, indices, device)


def test_many_adapters_and_many_tiles(gpu, pin):
    """The weights change while tiles of other adapters are on their way."""
    pin("tile:32x8")
    arguments, indices = make_grouped((16384,), 4096, 4096, 64, 64, dtype=torch.bfloat16)
    arguments[1] = arguments[0]
    tensors, indices = to_device(arguments, gpu), indices.to(gpu)
    output = grouped(indices)(tensors)
    for adapter in (0, 1, 63):
        rows = (indices == adapter).nonzero().squeeze(1)
        alone = tensors[0][rows]
        exact = expect([alone.double(), alone.double(), *(weight[adapter].double() for weight in tensors[2:])])
        assert error(output[rows], exact) < 1e-2
    assert torch.equal(output[indices < 0], tensors[0][indices < 0])
