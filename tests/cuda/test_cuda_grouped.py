"""The grouped operator on a GPU: tiles of 16 and 64 rows and segments, forward and every gradient, against float64."""

import itertools

import pytest
import torch
from cuda_cases import (
    HALVES,
    check_gradients,
    check_grouped,
    check_one_sort,
    expect_grouped,
    grouped,
    make_grouped,
    names_of,
    to_device,
)
from ops_cases import NAMES, WEIGHTS, error, gradients, make_arguments

from adapterx import ops

PATHS = ("auto", "tile", "tile:16x1", "tile:16x8", "tile:64x1", "tile:64x4", "segments")
# Leading dimensions, hidden_size, bottleneck_dim, adapters.
SHAPES = (
    ((1,), 8, 1, 1),
    ((19,), 37, 7, 3),
    ((4, 33), 64, 16, 5),
    ((150,), 136, 48, 7),
    ((3, 3), 136, 128, 12),  # more adapters than tokens
)
GENERAL_SHAPES = (((13,), 37, 21, 7, 3), ((5, 3), 24, 40, 16, 2), ((67,), 48, 48, 131, 4), ((131,), 65, 33, 17, 6))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=names_of)
def test_every_path(shape, path, dtype, device, pin):
    pin(path)
    leading, size, bottleneck_dim, groups = shape
    for prefix in range(1, len(leading) + 1):
        arguments, indices = make_grouped(
            leading, size, size, bottleneck_dim, groups, dtype=dtype, requires_grad=NAMES, prefix=prefix
        )
        arguments[1] = arguments[0] if prefix == 1 else None  # sequential placement, or the bare branch
        check_grouped(arguments, indices, device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("shape", GENERAL_SHAPES, ids=str)
def test_shapes_that_only_segments_serve(shape, dtype, device):
    arguments, indices = make_grouped(*shape, dtype=dtype, requires_grad=NAMES)
    check_grouped(arguments, indices, device, activation="silu", scaling=-1.3)
    for index, name in enumerate(NAMES):
        if name in ("residual", "down_bias", "up_bias"):
            arguments[index] = None
    check_grouped(arguments, indices, device)


@pytest.mark.parametrize("path", ["tile", "segments"])
def test_every_subset_of_gradients(path, device, pin):
    pin(path)
    names = ("hidden_states", *WEIGHTS)
    for wanted in itertools.product([False, True], repeat=len(names)):
        chosen = [name for name, flag in zip(names, wanted, strict=True) if flag]
        if chosen:
            arguments, indices = make_grouped((29,), 40, 40, 12, 3, dtype=torch.bfloat16, requires_grad=chosen)
            arguments[1] = arguments[0]
            check_gradients(grouped(indices.to(device)), arguments, device, formula=expect_grouped(indices))


@pytest.mark.parametrize("path", ["tile:16x1", "tile:64x1", "segments"])
def test_no_adapter_and_one_adapter_for_all(path, device, pin):
    pin(path)
    arguments, _ = make_grouped((70,), 64, 64, 16, 4, dtype=torch.bfloat16, requires_grad=NAMES)
    arguments = to_device(arguments, device)
    cotangent = torch.randn(70, 64, device=device).bfloat16()
    nobody = torch.full((70,), -1, device=device)
    assert torch.equal(grouped(nobody)(arguments), arguments[1])
    assert not grouped(nobody)([arguments[0], None, *arguments[2:]]).any()
    found = gradients(grouped(nobody), arguments, cotangent)
    assert torch.equal(found["residual"], cotangent)
    assert not any(found[name].any() for name in ("hidden_states", *WEIGHTS))
    everybody = torch.full((70,), 2, device=device)
    one = [*arguments[:2], *(weight[2] for weight in arguments[2:])]
    output = grouped(everybody)(arguments).detach()
    pin("auto")
    plain = ops.bottleneck_adapter(*one, activation="gelu", scaling=0.7).detach()
    pin(path)
    assert error(output, plain.double()) < 1e-2
    found = gradients(grouped(everybody), arguments, cotangent)
    assert not found["down_weight"][[0, 1, 3]].any()
    assert found["down_weight"][2].any()


@pytest.mark.parametrize("path", ["tile", "segments"])
def test_no_tokens(path, device, pin):
    pin(path)
    arguments, _ = make_grouped((0,), 16, 16, 4, 3, dtype=torch.bfloat16, requires_grad=NAMES)
    arguments = to_device(arguments, device)
    empty = torch.empty(0, dtype=torch.int64, device=device)
    found = gradients(grouped(empty), arguments, torch.empty(0, 16, dtype=torch.bfloat16, device=device))
    assert found["hidden_states"].shape == (0, 16)
    assert not any(found[name].any() for name in WEIGHTS)


@pytest.mark.parametrize("path", ["tile:16x1", "tile:64x1", "segments"])
@pytest.mark.parametrize("leading", [(3, 50), (300, 2)], ids=str)
def test_one_sort_for_many_calls(leading, path, device, pin):
    """The same bits as with plain indices, in both directions, for indices of sequences and of tokens."""
    pin(path)
    for prefix in (1, 2):
        arguments, indices = make_grouped(
            leading, 64, 64, 16, 4, dtype=torch.bfloat16, requires_grad=NAMES, prefix=prefix
        )
        check_one_sort(arguments, indices, device)


def test_gradcheck_and_gradgradcheck(device):
    arguments, indices = make_grouped((2, 3), 3, 4, 2, 3, dtype=torch.float64, requires_grad=NAMES)
    operator = grouped(indices.to(device))
    inputs = to_device(arguments, device)
    assert torch.autograd.gradcheck(lambda *tensors: operator(tensors), inputs)
    assert torch.autograd.gradgradcheck(lambda *tensors: operator(tensors), inputs)


def test_many_adapters(gpu):
    """The shape of the benchmark, and as many adapters as the sort has room for."""
    for groups in (64, 4096):
        sizes = (1024, 16) if groups == 64 else (64, 8)
        arguments, indices = make_grouped((4096,), sizes[0], *sizes, groups, dtype=torch.bfloat16)
        tensors, indices = to_device(arguments, gpu), indices.to(gpu)
        output = grouped(indices)(tensors)
        for adapter in (0, 1, groups - 1):
            rows = (indices == adapter).nonzero().squeeze(1)
            alone = [tensors[0][rows], tensors[1][rows], *(weight[adapter] for weight in tensors[2:])]
            expected = ops.bottleneck_adapter(*alone, activation="gelu", scaling=0.7)
            assert error(output[rows], expected.double()) < 1e-2


def test_too_many_adapters_are_refused_in_words(device, pin):
    pin("auto")
    weights = make_arguments((2,), 4, 4, 1, dtype=torch.bfloat16)
    many = [weight.expand(4097, *weight.shape).contiguous() for weight in weights[2:]]
    arguments = to_device([weights[0], weights[1], *many], device)
    with pytest.raises(ValueError, match="down_weight must be for at most 4096 adapters on CUDA, got 4097"):
        grouped(torch.zeros(2, dtype=torch.int64, device=device))(arguments)
