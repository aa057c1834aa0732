"""The grouped CPU kernels against NumPy in float64 token by token, and against the ungrouped kernels bit by bit."""

import itertools

import pytest
import torch
from grouped_kernel_cases import (
    PICKS,
    ROWS,
    WEIGHTS,
    Case,
    check,
    check_against_ungrouped,
    make_inputs,
    numpy_reference,
    run_kernels,
)
from kernel_cases import ACTIVATIONS, CAPABILITIES, DTYPES, GRADIENTS, relative_error


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_activation_and_instruction_set(dtype, activation, capability):
    check(Case(71, 61, 37, 19, dtype=dtype, activation=activation, capability=capability, residual="none"))
    check(Case(71, 64, 64, 16, dtype=dtype, activation=activation, capability=capability, threads=2))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pick", PICKS)
def test_every_way_to_pick_adapters(pick, dtype, capability):
    for num_tokens, groups, threads in ((1, 3, 2), (2, 2, 2), (33, 4, 3), (150, 70, 7), (330, 3, 1), (331, 4, 3)):
        case = Case(num_tokens, 72, 72, 24, groups, pick, dtype, threads=threads, capability=capability)
        check_against_ungrouped(case, *check(case))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bottleneck_dim", [1, 7, 24, 48, 130])
@pytest.mark.parametrize("width", [1, 13, 391])
def test_odd_sizes(width, bottleneck_dim, dtype, capability):
    shape = (width, width, bottleneck_dim)
    check(Case(5, *shape, dtype=dtype, capability=capability))
    case = Case(101, *shape, 3, dtype=dtype, capability=capability, threads=2)
    check_against_ungrouped(case, *check(case))
    case = Case(61, width, 23, bottleneck_dim, 2, "mixed", dtype, residual="other", row_gap=3, capability=capability)
    check_against_ungrouped(case, *check(case))
    check(Case(61, 71, width, bottleneck_dim, 2, "mixed", dtype, residual="none", row_gap=1, capability=capability))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_blocks_long_depth_and_panels(dtype, capability):
    """Adapters of several blocks and of one, beside each other, with several chunks of depth in both passes."""
    for pick, row_gap in (("mixed", 0), ("scattered", 2), ("lopsided", 1)):
        case = Case(431, 640, 584, 80, 3, pick, dtype, residual="other", row_gap=row_gap, threads=2,
                    capability=capability)  # fmt: skip
        check_against_ungrouped(case, *check(case))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_combination_of_absent_arguments(dtype, capability):
    choices = itertools.product(("same", "other", "none"), (False, True), (False, True), (20, 50))
    for residual, down_bias, up_bias, num_tokens in choices:
        case = Case(num_tokens, 33, 33, 5, 3, "scattered", dtype, residual=residual, down_bias=down_bias,
                    up_bias=up_bias, capability=capability)  # fmt: skip
        inputs, got = check(case)
        assert torch.equal(run_kernels(case, inputs, pre_activation=False)["output"], got["output"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pick", ["mixed", "lopsided"])
def test_every_subset_of_gradients_gives_the_same_bits(pick, dtype):
    case = Case(161, 45, 45, 9, 4, pick, dtype, threads=3)
    inputs = make_inputs(case)
    everything = run_kernels(case, inputs)
    for count in range(len(GRADIENTS)):
        for wanted in itertools.combinations(GRADIENTS, count):
            for name, value in run_kernels(case, inputs, wanted).items():
                assert torch.equal(value, everything[name]), (wanted, name)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pick", ["runs", "scattered", "mixed", "lopsided"])
def test_results_repeat_bit_for_bit_and_rows_do_not_depend_on_threads(pick, dtype, capability):
    first = None
    for threads in (1, 2, 3, 7):
        case = Case(401, 96, 80, 32, 4, pick, dtype, residual="other", threads=threads, capability=capability)
        inputs, got = check(case)
        for name, value in run_kernels(case, inputs).items():
            assert torch.equal(value, got[name]), (name, threads)
        first = first or got
        for name in ROWS:
            assert torch.equal(got[name], first[name]), (name, threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pick", ["scattered", "few"])
def test_thousands_of_adapters(pick, dtype):
    """Most have no token: their gradients are zero, whichever thread they belong to."""
    for threads in (1, 3):
        case = Case(77, 12, 12, 3, 3000, pick, dtype, threads=threads)
        inputs, got = check(case)
        unused = torch.isin(torch.arange(case.num_adapters), inputs["adapter_indices"], invert=True)
        assert unused.sum() > 2900
        for name in GRADIENTS[1:]:
            assert torch.count_nonzero(got[name][unused]) == 0, name
            assert not got[name].isnan().any(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_tokens_give_zero_weight_gradients(dtype):
    case = Case(0, 12, 12, 3, 4, dtype=dtype)
    results = run_kernels(case, make_inputs(case))
    for name in GRADIENTS[1:]:
        assert torch.count_nonzero(results[name]) == 0, name
        assert not results[name].isnan().any(), name


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nobody_picks_where_there_is_nothing_to_pick(capability):
    case = Case(50, 12, 12, 3, 0, "none", capability=capability)
    inputs = make_inputs(case)
    got = run_kernels(case, inputs)
    assert torch.equal(got["output"], inputs["residual"])
    assert torch.equal(got["grad_input"], inputs["grad_output"])


@pytest.mark.parametrize("num_tokens", [1, 24, 25, 96, 97, 480, 1000])
def test_any_division_of_one_adapter_among_threads(num_tokens):
    """Alone, and between neighbours too small to be cut."""
    for threads in (2, 5, 16):
        for groups in (1, 3):
            case = Case(num_tokens + 2 * (groups > 1), 16, 16, 8, groups, threads=threads)
            inputs = make_inputs(case)
            inputs["adapter_indices"].fill_(groups // 2)
            if groups > 1:
                inputs["adapter_indices"][0], inputs["adapter_indices"][-1] = 2, 0
            for name in WEIGHTS:
                inputs[name] = torch.nan_to_num(inputs[name], nan=0.25)
            got, expected = run_kernels(case, inputs), numpy_reference(case, inputs)
            for name, value in got.items():
                assert relative_error(value, expected[name]) < 1e-5, (name, case)
