"""What must hold to the bit: an adapter whose up_proj is zero changes nothing, and padding is never seen."""

import pytest
import torch
from kernel_cases import CAPABILITIES, DTYPES, kernels, to_storage

WIDTHS = (64, 37)  # whole panels of columns, and a rest


def every_pattern(dtype):
    """Return all patterns of a 16-bit type; of the others all exponents with a few mantissas, both signs."""
    if dtype.itemsize == 2:
        return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    bits, mantissa = (31, 23) if dtype == torch.float32 else (63, 52)
    exponents = torch.arange(2 ** (bits - mantissa), dtype=torch.int64) << mantissa
    mantissas = torch.tensor([0, 1, 2, 12345, 1 << (mantissa - 1), (1 << mantissa) - 1])
    positive = (exponents[:, None] | mantissas).flatten()
    patterns = torch.cat([positive, positive | (-1 << bits)])
    return patterns.to(torch.int32 if bits == 31 else torch.int64).view(dtype)


def forward(tokens, residual, weights, capability, activation="identity", threads=1, indices=None):
    num_adapters = 0 if indices is None else len(weights[0])
    down_weight, down_bias, up_weight, up_bias = weights
    output = torch.empty(len(tokens), up_weight.shape[-2], dtype=tokens.dtype)
    sizes = (len(tokens), tokens.shape[1], output.shape[1], up_weight.shape[-1])
    problem = (str(tokens.dtype)[6:], activation, 1.0, sizes)
    stored = [to_storage(tensor) for tensor in (tokens, residual, down_weight, down_bias, up_weight, up_bias, output)]
    grouping = (None if indices is None else indices.numpy(), num_adapters)
    kernels.forward(*problem, *stored[:2], *grouping, *stored[2:], None, threads, capability)
    return output


def same_bits(got, expected):
    """Compare; NaN of any payload is NaN, and zero is zero: -0 + 0 is 0 in PyTorch too."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    equal = (got.view(integers) == expected.view(integers)) | (got.isnan() & expected.isnan())
    return bool((equal | ((got == 0) & (expected == 0))).all())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_whose_up_proj_is_zero_is_the_identity_on_every_residual(dtype, capability, width):
    dtype = getattr(torch, dtype)
    patterns = every_pattern(dtype)
    residual = patterns[: len(patterns) // width * width].reshape(-1, width)
    tokens = torch.randn(len(residual), width).to(dtype)
    weights = [torch.randn(5, width).to(dtype), torch.randn(5).to(dtype), torch.zeros(width, 5), torch.zeros(width)]
    weights = [weight.to(dtype) for weight in weights]
    stacks = [torch.stack([weight] * 2) for weight in weights]
    indices = torch.arange(len(tokens)) % 3 - 1
    assert same_bits(forward(tokens, residual, weights, capability), residual)
    assert same_bits(forward(tokens[:20], residual[:20], weights, capability), residual[:20])
    assert same_bits(forward(tokens, residual, stacks, capability, indices=indices), residual)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_infinite_input_does_not_meet_the_padding_of_the_bottleneck(dtype, capability):
    """Padded columns of a weight are zero, and zero times infinity is NaN: nothing may read what comes of them."""
    dtype = getattr(torch, dtype)
    for width, bottleneck_dim in ((16, 1), (37, 7), (64, 33)):
        tokens = torch.ones(40, width, dtype=dtype)
        tokens[3] = float("inf")
        weights = [torch.ones(bottleneck_dim, width), torch.zeros(bottleneck_dim), torch.ones(width, bottleneck_dim)]
        weights = [weight.to(dtype) for weight in (*weights, torch.zeros(width))]
        for count in (40, 20):
            output = forward(tokens[:count], torch.zeros(count, width, dtype=dtype), weights, capability)
            assert (output[3] == float("inf")).all(), (width, bottleneck_dim, count)
            assert output[[0, 1, 2, 4]].isfinite().all()


def test_every_pattern_is_every_pattern():
    assert len(every_pattern(torch.bfloat16)) == 2**16
    assert every_pattern(torch.float32).isnan().any()
    assert ((every_pattern(torch.float64).abs() < 2.0**-1022) & (every_pattern(torch.float64) != 0)).any()
