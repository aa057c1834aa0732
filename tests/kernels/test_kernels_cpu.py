"""The torch-free CPU kernels against NumPy in float64, for every dtype, activation and instruction set."""

import dataclasses
import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from kernel_build import ROOT
from kernel_cases import (
    ACTIVATIONS,
    CAPABILITIES,
    DTYPES,
    FLOOR,
    GRADIENTS,
    kernels,
    relative_error,
    to_storage,
    value_and_derivative,
)

from adapterx import reference


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the kernels, sizes in elements."""

    num_tokens: int
    input_size: int
    hidden_size: int
    bottleneck_dim: int
    dtype: str = "float32"
    activation: str = "gelu"
    scaling: float = 0.75
    residual: str = "same"  # "same": hidden_states itself, "other", "none"
    down_bias: bool = True
    up_bias: bool = True
    row_gap: int = 0  # elements between the end of a row and the next
    threads: int = 1
    capability: str = CAPABILITIES[0]

    @property
    def sizes(self):
        return (self.num_tokens, self.input_size, self.hidden_size, self.bottleneck_dim)


def make_inputs(case, seed=0):
    """Return torch tensors of the case's dtype, rows spaced by `row_gap` and the gap filled with NaN."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def rows(columns):
        room = torch.full((case.num_tokens, columns + case.row_gap), float("nan"), dtype=torch.float64)
        room[:, :columns] = torch.randn(case.num_tokens, columns, generator=generator, dtype=torch.float64)
        return room.to(dtype)[:, :columns]

    def weight(*shape):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1])).to(dtype)

    hidden_states = rows(case.input_size)
    return {
        "hidden_states": hidden_states,
        "residual": {"same": hidden_states, "other": rows(case.hidden_size), "none": None}[case.residual],
        "down_weight": weight(case.bottleneck_dim, case.input_size),
        "down_bias": weight(case.bottleneck_dim) if case.down_bias else None,
        "up_weight": weight(case.hidden_size, case.bottleneck_dim),
        "up_bias": weight(case.hidden_size) if case.up_bias else None,
        "grad_output": rows(case.hidden_size),
    }


def run_kernels(case, inputs, wanted=GRADIENTS):
    """Run forward and backward; return every result as a float64 array."""
    dtype = getattr(torch, case.dtype)
    arrays = {name: None if tensor is None else to_storage(tensor) for name, tensor in inputs.items()}

    def room(*shape):
        return torch.full(shape, float("nan"), dtype=dtype)

    results = {
        "output": room(case.num_tokens, case.hidden_size),
        "pre_activation": room(case.num_tokens, case.bottleneck_dim),
        "grad_input": room(case.num_tokens, case.input_size),
        "grad_down_weight": room(case.bottleneck_dim, case.input_size),
        "grad_down_bias": room(case.bottleneck_dim),
        "grad_up_weight": room(case.hidden_size, case.bottleneck_dim),
        "grad_up_bias": room(case.hidden_size),
    }
    problem = (case.dtype, case.activation, case.scaling, case.sizes)
    tokens = [arrays[name] for name in ("hidden_states", "residual")]
    weights = [arrays[name] for name in ("down_weight", "down_bias", "up_weight", "up_bias")]
    outputs = [to_storage(results[name]) for name in ("output", "pre_activation")]
    kernels.forward(*problem, *tokens, None, 0, *weights, *outputs, case.threads, case.capability)
    gradients = [to_storage(results[name]) if name in wanted else None for name in GRADIENTS]
    hidden_states = arrays["hidden_states"] if "grad_down_weight" in wanted else None
    kernels.backward(
        *problem, arrays["grad_output"], hidden_states, outputs[1], None, 0, arrays["down_weight"], arrays["up_weight"],
        case.residual == "same", *gradients, case.threads, case.capability,
    )  # fmt: skip
    kept = ("output", "pre_activation", *wanted)
    return {name: results[name] for name in kept}


def run_torch(case, inputs, dtype):
    """The same results from PyTorch's formula and autograd at `dtype`."""
    tensors = {n: None if t is None else t.to(dtype).clone().requires_grad_() for n, t in inputs.items()}
    if case.residual == "same":
        tensors["residual"] = tensors["hidden_states"]
    output_gradient = tensors.pop("grad_output").detach()
    pre_activation = torch.nn.functional.linear(tensors["hidden_states"], tensors["down_weight"], tensors["down_bias"])
    output = reference.bottleneck_adapter(**tensors, activation=case.activation, scaling=case.scaling)
    sources = {
        name: tensors[name.removeprefix("grad_").replace("input", "hidden_states")]
        for name in GRADIENTS
        if tensors[name.removeprefix("grad_").replace("input", "hidden_states")] is not None
    }
    gradients = torch.autograd.grad(output, list(sources.values()), output_gradient)
    return {
        "output": output.detach(),
        "pre_activation": pre_activation.detach(),
        **dict(zip(sources, gradients, strict=True)),
    }


def numpy_reference(case, inputs):
    """The forward pass written out in NumPy float64, independent of PyTorch's formula."""
    values = {n: None if t is None else t.double().numpy() for n, t in inputs.items()}
    u = values["hidden_states"] @ values["down_weight"].T
    if case.down_bias:
        u = u + values["down_bias"]
    activated = value_and_derivative(case.activation, u)[0]
    branch = activated @ values["up_weight"].T
    if case.up_bias:
        branch = branch + values["up_bias"]
    base = 0 if case.residual == "none" else values["residual"]
    return {"output": torch.from_numpy(base + case.scaling * branch), "pre_activation": torch.from_numpy(u)}


def check(case, wanted=GRADIENTS):
    """Assert every result is within twice (weights: three times) PyTorch's own error at that dtype."""
    inputs = make_inputs(case)
    got = run_kernels(case, inputs, wanted)
    expected = run_torch(case, inputs, torch.float64) | numpy_reference(case, inputs)
    own = run_torch(case, inputs, getattr(torch, case.dtype))
    for name, value in got.items():
        if name not in expected:
            continue  # gradient of a bias that is absent
        factor = 3 if name.endswith("weight") else 2
        error, limit = relative_error(value, expected[name]), factor * relative_error(own[name], expected[name])
        # A handful of numbers can be rounded luckily by PyTorch: the rule needs a sample.
        few = value.numel() < 64 or case.num_tokens < 8 or min(case.sizes) < 2
        floor = max(FLOOR[case.dtype], 8 * torch.finfo(value.dtype).eps if few else 0)
        assert error <= max(limit, floor), (name, error, limit, case)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_activation_and_instruction_set(dtype, activation, capability):
    check(Case(37, 61, 61, 19, dtype=dtype, activation=activation, capability=capability, residual="none"))
    check(Case(37, 64, 64, 16, dtype=dtype, activation=activation, capability=capability, threads=2))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bottleneck_dim", [1, 7, 48, 130])
@pytest.mark.parametrize("width", [1, 13, 384])
def test_odd_sizes(width, bottleneck_dim, dtype, capability):
    for num_tokens in (1, 2, 5, 101):
        check(Case(num_tokens, width, width, bottleneck_dim, dtype=dtype, capability=capability))
    check(Case(29, width, 23, bottleneck_dim, dtype=dtype, capability=capability, residual="other", row_gap=3))
    check(Case(29, 71, width, bottleneck_dim, dtype=dtype, capability=capability, residual="none", row_gap=1))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_blocks_long_depth_and_panels(dtype, capability):
    check(Case(331, 523, 523, 65, dtype=dtype, capability=capability, threads=3))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_combination_of_absent_arguments(dtype, capability):
    for residual, down_bias, up_bias in itertools.product(("same", "other", "none"), (False, True), (False, True)):
        check(
            Case(11, 33, 33, 5, dtype, residual=residual, down_bias=down_bias, up_bias=up_bias, capability=capability)
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_subset_of_gradients_gives_the_same_bits(dtype):
    case = Case(61, 45, 45, 9, dtype, threads=2)
    inputs = make_inputs(case)
    everything = run_kernels(case, inputs)
    for count in range(len(GRADIENTS)):
        for wanted in itertools.combinations(GRADIENTS, count):
            for name, value in run_kernels(case, inputs, wanted).items():
                assert torch.equal(value, everything[name]), (wanted, name)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_repeat_bit_for_bit_and_rows_do_not_depend_on_threads(dtype, capability):
    runs = {}
    for threads in (1, 2, 3):
        case = Case(211, 96, 96, 24, dtype, threads=threads, capability=capability)
        inputs = make_inputs(case)
        runs[threads] = run_kernels(case, inputs)
        for name, value in run_kernels(case, inputs).items():
            assert torch.equal(value, runs[threads][name]), (name, threads)
        for name in ("output", "pre_activation", "grad_input"):
            assert torch.equal(runs[threads][name], runs[1][name]), (name, threads)
        check(case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_other_rows(dtype):
    case = Case(131, 80, 80, 20, dtype, threads=2)
    inputs = make_inputs(case)
    all_rows = run_kernels(case, inputs, ("grad_input",))
    for begin, end in ((0, 1), (5, 12), (90, 131)):
        some = {name: value[begin:end] if value is not None and name in
                ("hidden_states", "residual", "grad_output") else value for name, value in inputs.items()}  # fmt: skip
        part = run_kernels(dataclasses.replace(case, num_tokens=end - begin), some, ("grad_input",))
        for name, value in part.items():
            assert torch.equal(value, all_rows[name][begin:end]), (name, begin)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_tokens_give_zero_weight_gradients(dtype):
    case = Case(0, 12, 12, 3, dtype)
    results = run_kernels(case, make_inputs(case))
    for name in GRADIENTS[1:]:
        assert torch.count_nonzero(results[name]) == 0, name
        assert not results[name].isnan().any(), name


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_conversions_round_to_nearest_even(dtype, capability):
    """The identity adapter with a zero branch converts every value to float and back."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(getattr(torch, dtype))
    values = bits[bits.isfinite() & ((bits == 0) | (bits.abs() >= torch.finfo(bits.dtype).tiny))]
    case = Case(1, values.numel(), values.numel(), 1, dtype, "identity", 1.0, down_bias=False, up_bias=False,
                capability=capability)  # fmt: skip
    inputs = make_inputs(case) | {"hidden_states": values[None], "residual": values[None]}
    inputs["up_weight"] = torch.zeros_like(inputs["up_weight"])
    inputs["down_weight"] = torch.zeros_like(inputs["down_weight"])
    assert torch.equal(run_kernels(case, inputs, ())["output"], values[None])
    # bias_gradient = the sum of two rows: rounding of exact float sums, PyTorch's conversion is the judge.
    generator = torch.Generator().manual_seed(1)
    case = dataclasses.replace(case, num_tokens=2, input_size=4096, hidden_size=4096)
    inputs = make_inputs(case)
    rows = (
        torch.randint(0, 1 << 16, (2, 4096), generator=generator, dtype=torch.int32).to(torch.uint16).view(bits.dtype)
    )
    rows = torch.where(rows.isfinite() & (rows.abs() > 1e-3), rows, torch.ones_like(rows))
    inputs["grad_output"] = rows
    got = run_kernels(case, inputs, ("grad_up_bias",))["grad_up_bias"]
    assert torch.equal(got, (rows[0].float() + rows[1].float()).to(rows.dtype))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_derivatives_are_accurate_to_a_few_ulp(activation, capability):
    """Width-one weights of value one expose the activation itself."""
    points = torch.cat([torch.linspace(-30, 30, 4001), torch.logspace(-30, 37, 300), -torch.logspace(-30, 37, 300)])
    points = points.float()
    case = Case(points.numel(), 1, 1, 1, "float32", activation, 1.0, "none", False, False, capability=capability)
    inputs = make_inputs(case)
    inputs |= {"hidden_states": points[:, None], "down_weight": torch.ones(1, 1), "up_weight": torch.ones(1, 1)}
    inputs["grad_output"] = torch.ones(points.numel(), 1)
    got = run_kernels(case, inputs, ("grad_input",))
    exact = points.double().requires_grad_()
    value = reference.ACTIVATIONS[activation](exact)
    (derivative,) = torch.autograd.grad(value.sum(), exact)
    for name, expected in (("output", value.detach()), ("grad_input", derivative)):
        # Beside the value's own size, errors count against the size of the parts that cancel in it (x and 1).
        scale = expected.abs() + (1e-1 * points.double().abs().clamp(max=1) if name == "output" else 0.5)
        worst = ((got[name][:, 0].double() - expected).abs() / scale).max().item()
        assert worst < (8 if name == "output" else 16) * 2**-23, (name, worst)


def test_an_unknown_capability_is_refused():
    with pytest.raises(ValueError, match="capability must be available here, got sse9"):
        run_kernels(dataclasses.replace(Case(1, 1, 1, 1), capability="sse9"), make_inputs(Case(1, 1, 1, 1)))


@pytest.mark.parametrize("wanted", [*CAPABILITIES, "sse9"])
def test_the_environment_lowers_the_instruction_set(wanted):
    code = "from kernel_build import build_kernel_module as b; print(b().cpu_capability())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests" / "support",
        env=os.environ | {"ADAPTERX_CPU_CAPABILITY": wanted}, capture_output=True, text=True,
    )  # fmt: skip
    if wanted in CAPABILITIES:
        assert done.stdout.strip() == wanted
    else:
        assert "ADAPTERX_CPU_CAPABILITY must be avx512_bf16, avx512, avx2 or baseline, got sse9" in done.stderr
