"""The door of the CUDA kernels (csrc/kernels/cuda/adapter.h): two calls serve a problem, whichever path they take."""

import pytest
from emulator_cases import Case, GroupedCase, assert_close, assert_same_bits

OPTIONS = {"activation": "gelu", "scaling": 0.7}


def forward(case, pin, indices=None, order=None):
    """Return the path, and (output, pre_activation)."""
    results = case.empty(case.tokens, case.hidden), case.empty(case.tokens, case.bottleneck)
    tensors = (case.h, case.h, case.wd, case.bd, case.wu, case.bu, *results)
    return case.emulator.door_forward(*tensors, **OPTIONS, indices=indices, sorted=order, pin=pin), results


def backward(case, pin, indices=None, wanted=(True,) * 5, order=None):
    """Return the path, and the gradients."""
    shapes = (case.h.shape, case.wd.shape, case.bd.shape, case.wu.shape, case.bu.shape)
    gradients = [case.empty(*shape) if want else None for shape, want in zip(shapes, wanted, strict=True)]
    path = case.emulator.door_backward(
        case.dy, case.h, case.u, case.wd, case.wu, gradients, **OPTIONS, add_grad_output=True, indices=indices,
        sorted=order, pin=pin,
    )  # fmt: skip
    return path, gradients


def check(results, exact, eager):
    for i, (actual, right, yardstick) in enumerate(zip(results, exact, eager, strict=True)):
        assert_close(actual, right, yardstick, 3, f"result {i}")


@pytest.mark.parametrize(
    ("dtype", "pin", "path"),
    [
        ("bfloat16", "", "tile"),
        ("bfloat16", "auto", "tile"),
        ("float16", "tile:16x2", "tile"),
        ("bfloat16", "cublas", "cublas"),
        ("float32", "", "cublas"),
    ],
)
def test_one_adapter(emulator, dtype, pin, path):
    case = Case(emulator, 37, 72, 24, dtype=dtype)
    taken, results = forward(case, pin)
    assert taken == path
    check(results, case.expected_forward(None, **OPTIONS), case.expected_forward(dtype, **OPTIONS))
    taken, results = backward(case, pin)
    assert taken == path
    check(results, case.expected_backward(None, **OPTIONS), case.expected_backward(dtype, **OPTIONS))


@pytest.mark.parametrize(
    ("dtype", "pin", "path"),
    [("bfloat16", "", "tile"), ("bfloat16", "segments", "segments"), ("float64", "", "segments")],
)
def test_several_adapters(emulator, dtype, pin, path):
    case = GroupedCase(emulator, 61, 72, 24, 3, dtype=dtype)
    taken, results = forward(case, pin, case.indices)
    assert taken == path
    same = {"residual": "same", **OPTIONS}
    check(results, case.expected_groups_forward(None, **same), case.expected_groups_forward(dtype, **same))
    taken, results = backward(case, pin, case.indices)
    assert taken == path
    added = {"add_grad_output": True, **OPTIONS}
    check(results, case.expected_groups_backward(None, **added), case.expected_groups_backward(dtype, **added))


@pytest.mark.parametrize("tokens", [61, 600])
def test_one_sort_for_many_calls(emulator, tokens):
    """Whatever the tiles of the kernels, and in both directions: the same bits, and no launch for the order."""
    case = GroupedCase(emulator, tokens, 72, 24, 3)
    order = emulator.door_sort(case.indices, num_adapters=3)
    before = order.copy()
    sort_launches = emulator.take_counters()["launches"]
    assert sort_launches == (1 if tokens <= 256 else 3)
    for pin in ("tile:16x1", "tile:64x1", "segments"):
        for run in (forward, backward):
            expected = run(case, pin, case.indices)
            alone = emulator.take_counters()["launches"]
            assert_same_bits(run(case, pin, case.indices, order=order)[1], expected[1])
            assert emulator.take_counters()["launches"] == alone - sort_launches
    assert (order == before).all()


@pytest.mark.parametrize("pin", ["tile", "cublas"])
def test_a_plan_depends_on_what_is_wanted(emulator, pin):
    """A gradient that is not wanted is not written, and the others have the same bits."""
    case = Case(emulator, 37, 72, 24)
    _, every = backward(case, pin)
    for wanted in ((True, False, False, False, False), (False, True, False, False, True)):
        _, some = backward(case, pin, wanted=wanted)
        assert_same_bits(every, some)


SIZES = {"size": 64, "bottleneck_dim": 16}


def test_a_workspace_grows_with_the_tokens_and_a_plain_tile_needs_none(emulator):
    assert emulator.door_plan(num_tokens=100, **SIZES) == (0, "")
    small, large = (emulator.door_plan(num_tokens=n, num_adapters=2, **SIZES)[0] for n in (100, 1000))
    assert 0 < small < large


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_tokens": 9, "num_adapters": 4097}, "down_weight must be for at most 4096 adapters on CUDA, got 4097"),
        (
            {"num_tokens": 2**31, "num_adapters": 2},
            "hidden_states must have fewer than 2^31 tokens on CUDA, got 2147483648",
        ),
        (
            {"num_tokens": 2**31 - 1, "num_adapters": 2},
            "hidden_states must have at most 134211584 tokens for 2 adapters on CUDA, got 2147483647",
        ),
        (
            {"num_tokens": 9, "pin": "segments"},
            "ADAPTERX_CUDA_PATH must name a path that serves this call, got 'segments': "
            "it serves the grouped form only",
        ),
        (
            {"num_tokens": 9, "num_adapters": 2, "pin": "cublas"},
            "ADAPTERX_CUDA_PATH must name a path that serves this call, got 'cublas': "
            "cuBLASLt does not serve the grouped form",
        ),
    ],
)
def test_limits_are_refused_in_words(emulator, arguments, words):
    assert emulator.door_plan(**arguments, **SIZES)[1] == words


@pytest.mark.parametrize("cluster_size", [0, 3, 5, 6, 7, 9, 16])
def test_clusters_are_powers_of_two(emulator, cluster_size):
    words = emulator.door_plan(num_tokens=9, pin=f"tile:16x{cluster_size}", **SIZES)[1]
    assert words.endswith("a cluster_size of 1, 2, 4 or 8")


def test_the_last_number_of_tokens_that_the_words_allow_is_served(emulator):
    assert emulator.door_plan(num_tokens=134211584, num_adapters=2, **SIZES)[1] == ""
    assert emulator.door_plan(num_tokens=134211584 + 2048, num_adapters=2, **SIZES)[1] != ""


def test_a_sum_alone_hears_no_pin(emulator):
    """Without a bottleneck only the gradient of up_bias can be wanted."""
    assert emulator.door_plan(num_tokens=9, size=64, bottleneck_dim=0, pin="tile:64x1")[1] == ""
