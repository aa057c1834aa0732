"""Problems for the operators on a GPU, and the rule that their results must obey."""

import os

import pytest
import torch
from ops_cases import WEIGHTS, compute, copy_of, error, expect, gradients, make_arguments

from adapterx import ops, reference

DEVICE = os.environ.get("ADAPTERX_TEST_DEVICE", "cuda")

# 16- and 64-row tiles, alone and in clusters up to the largest.
TILES = ("tile", "tile:16x1", "tile:16x2", "tile:16x8", "tile:64x1", "tile:64x4", "tile:64x8")
HALVES = (torch.bfloat16, torch.float16)
# For tests of many shapes: emulated, fp16 takes several times as long, and tests/kernels has it for shapes like these.
MANY_SHAPES_DTYPES = HALVES if DEVICE == "cuda" else HALVES[:1]

# Leading dimensions, hidden_size, bottleneck_dim: one row, odd sizes, rows that are not aligned, every padded
# bottleneck, tiles with a remainder, clusters of which some blocks have no column.
TILE_SHAPES = (
    ((1,), 8, 1),
    ((5,), 37, 7),
    ((2, 9), 64, 16),
    ((67,), 100, 31),
    ((130,), 136, 64),
    ((3, 5), 1032, 65),
    ((16,), 520, 128),
)
# The shapes of the benchmarks, and the widest that a cluster holds; too many operations for an emulator.
LARGE_SHAPES = (((1024,), 4096, 64), ((2, 1024), 768, 48), ((257,), 8192, 128), ((8,), 4096, 64))


def capability():
    """Return 10 * major + minor of the device, or of the one that is emulated."""
    if DEVICE == "cuda":
        major, minor = torch.cuda.get_device_capability()
        return 10 * major + minor
    return int(os.environ.get("ADAPTERX_EMULATED_CAPABILITY", "90"))


def skip_what_does_not_fit(shape, path):
    """Skip the widest shape where one block must hold it and has no more than 163 KiB."""
    if path.startswith("tile:") and path.endswith("x1") and shape[1] > 1000 and capability() < 90:
        pytest.skip("the tile does not fit into the shared memory of this device")


def names_of(shape):
    return "x".join(map(str, (*shape[0], *shape[1:])))


def to_device(arguments, device):
    """Return fresh leaves on the device; one tensor passed twice stays one tensor."""
    made = {}
    for tensor in arguments:
        if tensor is not None and id(tensor) not in made:
            made[id(tensor)] = tensor.detach().to(device, copy=True).requires_grad_(tensor.requires_grad)
    return [None if tensor is None else made[id(tensor)] for tensor in arguments]


def shifted(tensor, device, shift):
    """Return a leaf with the same values that begins at an odd element where that is wanted."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=device)
    memory = memory[1:] if shift else memory[:-1]
    return memory.copy_(tensor.detach().flatten()).view(tensor.shape).requires_grad_()


# Errors that count as none: what is left of a sum in another order.
FLOORS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}


def assert_as_exact_as_pytorch(actual, pytorch, exact, *, factor=2, what=""):
    """Compare with float64: at most `factor` times PyTorch's own error at this dtype on this device."""
    mine, theirs = error(actual.cpu(), exact.cpu()), error(pytorch.cpu(), exact.cpu())
    limit = factor * theirs + FLOORS[actual.dtype]
    assert mine <= limit, f"{what}: relative error {mine:.3e}, PyTorch's own is {theirs:.3e}"


def check_forward(operator, arguments, device, *, formula=expect, **options):
    """Run the operator on the device and compare its output with float64."""
    exact = formula(copy_of(arguments, torch.float64), **options).detach()
    tensors = to_device(arguments, device)
    with torch.no_grad():
        output = operator(tensors, **options)
        pytorch = formula(tensors, **options)
    assert output.dtype == arguments[0].dtype
    assert output.device.type == device
    assert output.shape == exact.shape
    assert output.is_contiguous()
    assert_as_exact_as_pytorch(output, pytorch, exact, what="output")


def check_gradients(operator, arguments, device, *, formula=expect, **options):
    """Differentiate on the device and compare every gradient with float64."""
    exact_arguments = copy_of(arguments, torch.float64)
    cotangent = torch.randn_like(formula(exact_arguments, **options)).to(arguments[0].dtype)
    exact = gradients(formula, exact_arguments, cotangent.double(), **options)
    tensors, cotangent = to_device(arguments, device), cotangent.to(device)
    actual = gradients(operator, tensors, cotangent, **options)
    pytorch = gradients(formula, tensors, cotangent, **options)
    assert actual.keys() == exact.keys()
    for name, gradient in actual.items():
        assert gradient.dtype == cotangent.dtype
        assert gradient.shape == exact[name].shape
        factor = 3 if name in WEIGHTS else 2
        assert_as_exact_as_pytorch(gradient, pytorch[name], exact[name], factor=factor, what=name)


def check_rows_stay_alone(arguments, activation, *, what=""):
    """Spoil two rows of the hidden states, of tensors on the device, and compare the bits of all others."""
    clean = compute(arguments, activation)
    arguments[0][7], arguments[0][69] = float("nan"), float("inf")
    dirty = compute(arguments, activation)
    assert dirty[7].isnan().all()
    others = [row for row in range(70) if row not in (7, 69)]
    assert torch.equal(dirty[others], clean[others]), what


# The grouped form


def make_grouped(
    leading, input_size, hidden_size, bottleneck_dim, num_adapters, *, dtype, requires_grad=(), prefix=None
):
    """Draw tensors with a dimension of adapters, and indices for the first `prefix` leading dimensions (all of them).

    Some tokens pick no adapter, and one adapter is picked by no token.
    """
    tokens = make_arguments(leading, input_size, hidden_size, bottleneck_dim)[:2]
    # The tokens of each adapter would be drawn and thrown away: with 4096 adapters that is 16 GB and a minute.
    drawn = [make_arguments((), input_size, hidden_size, bottleneck_dim)[2:] for _ in range(num_adapters)]
    weights = [torch.stack(tensors) for tensors in zip(*drawn, strict=True)]
    names = ("hidden_states", "residual", *WEIGHTS)
    tensors = [
        tensor.to(dtype).requires_grad_(name in requires_grad)
        for name, tensor in zip(names, [*tokens, *weights], strict=True)
    ]
    indices = torch.randint(-1, num_adapters, leading[:prefix])
    return tensors, indices.masked_fill(indices == num_adapters // 2, -1) if num_adapters > 2 else indices


def grouped(indices):
    """Return the operator with these indices as a function of the six tensors."""

    def run(tensors, activation="gelu", scaling=0.7):
        hidden_states, residual, *weights = tensors
        options = {"activation": activation, "scaling": scaling, "adapter_indices": indices}
        return ops.bottleneck_adapter(hidden_states, residual, *weights, **options)

    return run


def expect_grouped(indices):
    """Return the formula of the grouped form with these indices as a function of the six tensors."""

    def run(tensors, activation="gelu", scaling=0.7):
        hidden_states, residual, *weights = tensors
        own = indices.to(hidden_states.device)
        options = {"activation": activation, "scaling": scaling, "adapter_indices": own}
        return reference.bottleneck_adapter(hidden_states, residual, *weights, **options)

    return run


def check_grouped(arguments, indices, device, **options):
    """Compare output and gradients with the formula, which loops over the adapters."""
    operator, formula = grouped(indices.to(device)), expect_grouped(indices)
    check_forward(operator, arguments, device, formula=formula, **options)
    check_gradients(operator, arguments, device, formula=formula, **options)


def check_one_sort(arguments, indices, device):
    """Compare the bits with plain indices and with sorted ones, in both directions."""
    arguments, indices = to_device(arguments, device), indices.to(device)
    leading, hidden_size = arguments[0].shape[:-1], arguments[0].shape[-1]
    order = ops.sort_tokens(indices, leading.numel(), len(arguments[2]))
    cotangent = torch.randn(*leading, hidden_size, device=device).to(arguments[0].dtype)
    assert torch.equal(grouped(order)(arguments), grouped(indices)(arguments))
    expected = gradients(grouped(indices), arguments, cotangent)
    for name, gradient in gradients(grouped(order), arguments, cotangent).items():
        assert torch.equal(gradient, expected[name]), name


needs_memory = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 40 << 30,
    reason="needs 40 GiB of device memory",
)
