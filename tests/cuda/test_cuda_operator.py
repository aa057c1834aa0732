"""The operator on a GPU: every path, forward and every gradient, against float64."""

import itertools

import pytest
import torch
from cuda_cases import (
    HALVES,
    LARGE_SHAPES,
    MANY_SHAPES_DTYPES,
    TILE_SHAPES,
    TILES,
    check_forward,
    check_gradients,
    check_rows_stay_alone,
    names_of,
    shifted,
    skip_what_does_not_fit,
    to_device,
)
from ops_cases import (
    ACTIVATIONS,
    LAYOUTS,
    NAMES,
    SHAPES,
    WEIGHTS,
    arguments_of,
    barely_positive,
    compute,
    copy_of,
    error,
    expect,
    gradients,
    layouts,
    make_arguments,
)

ALL_DTYPES = (torch.float64, torch.float32, *HALVES)


def square(shape):
    """Return leading dimensions, input_size, hidden_size and bottleneck_dim of a shape of the tiles."""
    return shape[0], shape[1], shape[1], shape[2]


@pytest.mark.parametrize("dtype", MANY_SHAPES_DTYPES)
@pytest.mark.parametrize("path", [*TILES, "cublas", "auto"])
@pytest.mark.parametrize("shape", TILE_SHAPES, ids=names_of)
def test_every_path_forward(shape, path, dtype, device, pin):
    pin(path)
    skip_what_does_not_fit(shape, path)
    check_forward(compute, make_arguments(*square(shape), dtype=dtype, without=("residual",)), device)
    check_forward(compute, arguments_of("sequential", *square(shape), dtype=dtype), device, activation="silu")
    bare = make_arguments(*square(shape), dtype=dtype, without=("down_bias", "up_bias"))
    check_forward(compute, bare, device, activation="relu", scaling=-1.3)


@pytest.mark.parametrize("dtype", MANY_SHAPES_DTYPES)
@pytest.mark.parametrize("path", [*TILES, "cublas", "auto"])
@pytest.mark.parametrize("shape", TILE_SHAPES, ids=names_of)
def test_every_path_backward(shape, path, dtype, device, pin):
    pin(path)
    skip_what_does_not_fit(shape, path)
    for layout in LAYOUTS:
        check_gradients(compute, arguments_of(layout, *square(shape), dtype=dtype), device)
    bare = arguments_of("bare", *square(shape), dtype=dtype, without=("down_bias", "up_bias"))
    check_gradients(compute, bare, device, activation="silu", scaling=-1.3)


# The last two meet the conditions of more of cuBLASLt's epilogues: a bottleneck that is a multiple of 8, scaling 1.
@pytest.mark.parametrize(("bottleneck_dim", "scaling"), [(17, 0.7), (16, 0.7), (16, 1.0)])
@pytest.mark.parametrize("path", ["tile:16x1", "tile:64x1", "cublas"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, path, bottleneck_dim, scaling, device, pin):
    pin(path)
    arguments = arguments_of("bare", (33,), 40, 40, bottleneck_dim, dtype=torch.bfloat16)
    check_forward(compute, arguments, device, activation=activation, scaling=scaling)
    check_gradients(compute, arguments, device, activation=activation, scaling=scaling)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("path", ["auto", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_that_only_the_general_path_serves(shape, path, dtype, device, pin):
    """By cuBLASLt, and as where it refuses the products."""
    pin(path)
    for layout in ("parallel", "bare"):
        arguments = arguments_of(layout, *shape, dtype=dtype)
        check_forward(compute, arguments, device, scaling=-1.3)
        check_gradients(compute, arguments, device, scaling=-1.3)


@pytest.mark.parametrize("path", ["auto", "cublas"])
@pytest.mark.parametrize("shape", LARGE_SHAPES, ids=names_of)
def test_the_shapes_of_the_benchmarks(shape, path, gpu, pin):
    pin(path)
    leading, size, _ = shape
    if (leading, size) == ((257,), 8192) and path == "cublas":
        pytest.skip("the same products as at 4096")
    arguments = arguments_of("bare", *square(shape), dtype=torch.bfloat16)
    check_forward(compute, arguments, gpu)
    check_gradients(compute, arguments, gpu)


def test_tf32_only_where_pytorch_allows_it(gpu):
    arguments = to_device(make_arguments((512,), 512, 512, 64, dtype=torch.float32, without=("residual",)), gpu)
    exact = expect([None if tensor is None else tensor.double() for tensor in arguments])
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert error(compute(arguments), exact) < 2e-6
        torch.set_float32_matmul_precision("high")
        assert error(compute(arguments), exact) <= 2 * error(expect(arguments), exact) + 2e-6
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("path", ["tile", "cublas"])
@pytest.mark.parametrize("sequential", [True, False])
def test_every_subset_of_gradients(sequential, path, device, pin):
    pin(path)
    names = ("hidden_states", *WEIGHTS) if sequential else NAMES
    for wanted in itertools.product([False, True], repeat=len(names)):
        chosen = [name for name, flag in zip(names, wanted, strict=True) if flag]
        if chosen:
            layout = "sequential" if sequential else "parallel"
            arguments = arguments_of(layout, (37,), 40, 40, 12, dtype=torch.bfloat16, requires_grad=chosen)
            check_gradients(compute, arguments, device)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_and_gradgradcheck(activation, device):
    """In float64, which cuBLAS serves."""
    for layout in LAYOUTS if activation == "gelu" else ("parallel",):
        arguments = to_device(arguments_of(layout, (2, 2), 3, 3, 2), device)
        inputs = [tensor for index, tensor in enumerate(arguments) if tensor is not None and index != 1]

        def function(hidden_states, *rest, layout=layout, residual=arguments[1]):
            base = hidden_states if layout == "sequential" else residual
            return compute([hidden_states, base, *rest], activation)

        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("path", ["tile:64x1", "tile:16x8", "cublas"])
@pytest.mark.parametrize("layout", layouts())
def test_layouts_of_rows(layout, path, device, pin):
    pin(path)
    hidden_states = layouts()[layout].bfloat16()
    size = hidden_states.shape[-1]
    weights = make_arguments((), size, size, 5, dtype=torch.bfloat16)[2:]
    hidden_states = layout_on(device, hidden_states)
    weights = to_device(weights, device)
    for residual in (hidden_states, hidden_states.clone().flip(0), None):
        exact = expect([None if t is None else t.double() for t in (hidden_states, residual, *weights)])
        output = compute([hidden_states, residual, *weights])
        assert output.is_contiguous()
        assert error(output, exact) <= 2 * error(expect([hidden_states, residual, *weights]), exact) + 1e-5


def layout_on(device, tensor):
    """Return the tensor on the device with its strides."""
    moved = torch.empty(0, dtype=tensor.dtype, device=device).set_(tensor.untyped_storage().to(device=device))
    view = moved.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return torch._neg_view(view) if tensor.is_neg() else view


@pytest.mark.parametrize(
    ("path", "dtype"), [("tile", torch.bfloat16), ("cublas", torch.bfloat16), ("cublas", torch.float32)], ids=str
)
def test_gradients_of_strided_and_broadcast_cotangents(path, dtype, device, pin):
    """The tile kernels read rows wherever they lie; cuBLASLt may choose another kernel, which adds in another order."""
    pin(path)
    arguments = to_device(arguments_of("sequential", (20,), 48, 48, 9, dtype=dtype), device)
    wide = torch.randn(20, 96, device=device).to(dtype)
    by_columns = torch.randn(48, 20, device=device).to(dtype).t()
    for cotangent in (wide[:, 48:], wide[:1, :48].expand(20, 48), by_columns):
        actual = gradients(compute, arguments, cotangent)
        wanted = gradients(compute, arguments, cotangent.contiguous())
        for name, gradient in actual.items():
            if path == "cublas":
                assert error(gradient, wanted[name].double()) < (1e-2 if dtype == torch.bfloat16 else 1e-5), name
            else:
                assert torch.equal(gradient, wanted[name]), name


@pytest.mark.parametrize("path", ["auto", "tile", "cublas"])
def test_no_tokens(path, device, pin):
    pin(path)
    for leading in ((0,), (3, 0)):
        arguments = to_device(arguments_of("sequential", leading, 16, 16, 4, dtype=torch.bfloat16), device)
        output = compute(arguments)
        assert output.shape == (*leading, 16)
        found = torch.autograd.grad(output, [arguments[0], *arguments[2:]], torch.ones_like(output))
        assert found[0].shape == (*leading, 16)
        assert not any(gradient.any() for gradient in found[1:])


def test_unaligned_memory(device, pin):
    """Rows that begin at an odd element: neither 16-byte loads nor tensor cores may assume otherwise."""
    for path in ("tile:64x1", "tile:16x8", "cublas"):
        pin(path)
        arguments = arguments_of("bare", (19,), 64, 64, 16, dtype=torch.bfloat16)
        aligned = to_device(arguments, device)
        unaligned = [None if tensor is None else shifted(tensor, device, True) for tensor in aligned]
        assert unaligned[0].data_ptr() % 16 == 2
        cotangent = torch.randn(19, 64, device=device).bfloat16()
        wanted, actual = gradients(compute, aligned, cotangent), gradients(compute, unaligned, cotangent)
        with torch.no_grad():
            assert error(compute(unaligned), compute(aligned).double()) < 1e-2, path
        for name, gradient in wanted.items():
            assert error(actual[name], gradient.double()) < 1e-2, (path, name)


@pytest.mark.parametrize("scaling", [0.7, 1.0])
@pytest.mark.parametrize("path", ["tile:64x1", "tile:16x8", "cublas"])
@pytest.mark.parametrize("name", NAMES)
def test_one_unaligned_tensor_alone(name, path, scaling, device, pin):
    """Such as the bias of one of several adapters in one tensor: what the other arguments promise, it does not."""
    pin(path)
    arguments = to_device(arguments_of("parallel", (130,), 64, 64, 16, dtype=torch.bfloat16), device)
    index = NAMES.index(name)
    tensors = [shifted(tensor, device, i == index) for i, tensor in enumerate(arguments)]
    assert tensors[index].data_ptr() % 16 == 2
    cotangent = torch.randn(130, 64, device=device).bfloat16()
    for activation in ("gelu", "gelu_tanh"):
        exact = expect([tensor.detach().double() for tensor in arguments], activation, scaling)
        assert error(compute(tensors, activation, scaling).detach(), exact) < 1e-2
        wanted = gradients(compute, arguments, cotangent, activation=activation, scaling=scaling)
        actual = gradients(compute, tensors, cotangent, activation=activation, scaling=scaling)
        for other, gradient in wanted.items():
            assert error(actual[other], gradient.double()) < 1e-2, other


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_one_adapter_of_a_stack(activation, dtype, device, pin):
    """Its weights and biases begin wherever those of the adapters before it end."""
    pin("cublas")
    arguments = arguments_of("parallel", (33,), 64, 64, 17, dtype=dtype)
    tensors = to_device(arguments, device)
    for index in range(2, 6):
        stacked = torch.stack([tensors[index].detach()] * 2)
        tensors[index] = stacked[1].requires_grad_()
    assert tensors[NAMES.index("down_bias")].data_ptr() % 16 != 0
    exact = gradients(expect, copy_of(arguments, torch.float64), torch.ones(33, 64).double(), activation=activation)
    found = gradients(compute, tensors, torch.ones(33, 64, dtype=dtype, device=device), activation=activation)
    limit = 2e-2 if dtype in HALVES else 1e-5
    for name, gradient in found.items():
        assert error(gradient.cpu(), exact[name]) < limit, name


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("path", ["tile:64x1", "tile:16x8", "cublas"])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_product_is_not_rounded_before_its_bias_is_added(aligned, path, dtype, device, pin):
    """Unaligned operands take the epilogue that adds the bias away from cuBLASLt."""
    pin(path)
    arguments, cotangent = barely_positive(dtype), torch.ones(3, 16, dtype=dtype)
    exact = gradients(expect, copy_of(arguments, torch.float64), cotangent.double(), activation="relu")
    tensors = [None if tensor is None else shifted(tensor, device, not aligned) for tensor in arguments]
    for name, gradient in gradients(compute, tensors, cotangent.to(device), activation="relu").items():
        assert error(gradient.cpu(), exact[name]) < 1e-2, name


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("path", ["tile:64x1", "cublas"])
@pytest.mark.parametrize("shape", [((340,), 23, 1), ((239,), 55, 1), ((340,), 24, 8), ((1000,), 1024, 1)], ids=names_of)
def test_bias_gradients_beside_narrow_products(shape, path, dtype, device, pin):
    pin(path)
    check_gradients(compute, arguments_of("bare", *square(shape), dtype=dtype), device, scaling=1.0)


def test_rows_of_infinities_and_nans_stay_alone(device, pin):
    for path, activation in (("tile:64x1", "relu"), ("tile:16x1", "relu"), ("cublas", "relu"), ("cublas", "gelu_tanh")):
        pin(path)
        arguments = to_device(make_arguments((70,), 64, 64, 16, dtype=torch.bfloat16), device)
        check_rows_stay_alone(arguments, activation, what=path)
