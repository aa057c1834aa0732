"""The CUDA kernels run on the host by the emulator, against float64: every kernel, odd shapes, every schedule."""

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests" / "emulator"
# ADAPTERX_SANITIZE=1 builds with AddressSanitizer and UndefinedBehaviorSanitizer; Python then needs
# LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" and ASAN_OPTIONS=detect_leaks=0.
SANITIZE = os.environ.get("ADAPTERX_SANITIZE") == "1"
BUILD = ROOT / "build" / ("emulator_sanitized" if SANITIZE else "emulator")
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "leaky_relu", "identity")
FLOOR = 1e-5


def load_module(name, path):
    """Import the file `path` as module `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ref = load_module("numpy_reference", SOURCE / "numpy_reference.py")


@pytest.fixture(scope="session")
def built_emulator():
    """Build the module with CMake and Ninja; a build that fails is a failure, a missing tool a reason to skip."""
    pybind11 = pytest.importorskip("pybind11")
    pytest.importorskip("cmake", reason="the emulator is built with cmake")
    pytest.importorskip("ninja", reason="the emulator is built with ninja")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("the emulator is built with a C++ compiler")
    tools = Path(sys.executable).parent
    configure = [
        tools / "cmake", "-S", SOURCE, "-B", BUILD, "-GNinja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}",
        f"-DCMAKE_PREFIX_PATH={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}",
        "-DPYBIND11_FINDPYTHON=ON", f"-DADAPTERX_SANITIZE={'ON' if SANITIZE else 'OFF'}",
    ]  # fmt: skip
    for command in (configure, [tools / "cmake", "--build", BUILD]):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return load_module("adapterx_emulator", BUILD / f"adapterx_emulator{suffix}")


@pytest.fixture
def emulator(built_emulator):
    """Give each test the default schedule and counters at zero."""
    built_emulator.configure()
    built_emulator.take_counters()
    return built_emulator


class Case:
    """Random tensors of one problem, in guarded memory, with their float64 values."""

    def __init__(self, emulator, tokens, hidden, bottleneck, *, dtype="bfloat16", seed=0, offset=0):
        self.emulator, self.dtype = emulator, dtype
        self.tokens, self.hidden, self.bottleneck = tokens, hidden, bottleneck
        rng = np.random.default_rng(seed)
        self.offset = offset
        self.h = self.put(rng.standard_normal((tokens, hidden)))
        self.residual = self.put(rng.standard_normal((tokens, hidden)))
        self.dy = self.put(rng.standard_normal((tokens, hidden)))
        self.wd = self.put(rng.standard_normal((bottleneck, hidden)) / np.sqrt(hidden))
        self.wu = self.put(rng.standard_normal((hidden, bottleneck)) / np.sqrt(bottleneck))
        self.bd = self.put(rng.standard_normal(bottleneck) * 0.3)
        self.bu = self.put(rng.standard_normal(hidden) * 0.3)
        self.u = self.put(rng.standard_normal((tokens, bottleneck)))

    def put(self, values):
        """Copy to guarded memory at the dtype; rows of matrices may be `offset` elements longer than their columns."""
        bits = ref.to_bits(values, self.dtype)
        shape = list(bits.shape)
        if self.offset and len(shape) == 2:
            shape[1] += self.offset
        array = self.emulator.guarded(shape, bits.dtype)[..., : values.shape[-1]]
        array[...] = bits
        return array

    def empty(self, *shape):
        """Guarded memory filled with NaN."""
        return self.emulator.guarded(list(shape), np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype))

    def forward(self, *, activation="gelu", scaling=0.7, residual="same", down_bias=True, up_bias=True, save=True,
                row_tile=64, cluster_size=1):  # fmt: skip
        """Run the kernel; return the arrays (output, pre_activation or None)."""
        output = self.empty(self.tokens, self.hidden)
        u = self.empty(self.tokens, self.bottleneck) if save else None
        base = {"same": self.h, "other": self.residual, None: None}[residual]
        self.emulator.forward(
            self.h, base, self.wd, self.bd if down_bias else None, self.wu, self.bu if up_bias else None, output, u,
            activation=activation, scaling=scaling, row_tile=row_tile, cluster_size=cluster_size,
        )  # fmt: skip
        return output, u

    def expected_forward(self, dtype, *, activation="gelu", scaling=0.7, residual="same", down_bias=True, up_bias=True):
        """Return (output, pre_activation) of the formula."""
        base = {"same": self.h, "other": self.residual, None: None}[residual]
        values = [None if x is None else ref.from_bits(x) for x in (self.h, base, self.wd, self.bd, self.wu, self.bu)]
        values[3] = values[3] if down_bias else None
        values[5] = values[5] if up_bias else None
        return ref.forward(*values, activation=activation, scaling=scaling, dtype=dtype)

    def backward(self, *, activation="gelu", scaling=0.7, add_grad_output=True, wanted=(True,) * 5, row_tile=64,
                 cluster_size=1):  # fmt: skip
        """Run the kernels; return the five gradients, None where not wanted."""
        t, d, m = self.tokens, self.hidden, self.bottleneck
        shapes = ((t, d), (m, d), (m,), (d, m), (d,))
        gradients = [self.empty(*shape) if want else None for shape, want in zip(shapes, wanted, strict=True)]
        self.emulator.backward(
            self.dy, self.h if wanted[1] else None, self.u, self.wd, self.wu, *gradients, activation=activation,
            scaling=scaling, add_grad_output=add_grad_output, row_tile=row_tile, cluster_size=cluster_size,
        )  # fmt: skip
        return gradients

    def expected_backward(self, dtype, *, activation="gelu", scaling=0.7, add_grad_output=True):
        """Return the five gradients of the formula."""
        values = [ref.from_bits(x) for x in (self.dy, self.h, self.u, self.wd, self.wu)]
        return ref.backward(
            *values, activation=activation, scaling=scaling, add_grad_output=add_grad_output, dtype=dtype
        )


def assert_close(actual, exact, eager, factor, what):
    """The rule: at most `factor` times as far from float64 as the formula rounded at every step."""
    error = ref.relative_error(ref.from_bits(actual), exact)
    allowed = factor * ref.relative_error(eager, exact) + FLOOR
    assert error <= allowed, f"{what}: error {error:.2e}, allowed {allowed:.2e}"


def check_forward(case, **options):
    """Run and compare the output and the saved pre-activation."""
    launch = {key: options.pop(key) for key in ("row_tile", "cluster_size", "save") if key in options}
    output, u = case.forward(**options, **launch)
    exact, exact_u = case.expected_forward(None, **options)
    eager, eager_u = case.expected_forward(case.dtype, **options)
    assert_close(output, exact, eager, 2, "output")
    if u is not None:
        assert_close(u, exact_u, eager_u, 2, "pre_activation")
    return output, u


def check_backward(case, **options):
    """Run and compare all gradients that are wanted."""
    launch = {key: options.pop(key) for key in ("row_tile", "cluster_size", "wanted") if key in options}
    gradients = case.backward(**options, **launch)
    names = ("grad_input", "grad_down_weight", "grad_down_bias", "grad_up_weight", "grad_up_bias")
    exact, eager = case.expected_backward(None, **options), case.expected_backward(case.dtype, **options)
    for name, actual, right, yardstick in zip(names, gradients, exact, eager, strict=True):
        if actual is not None:
            assert_close(actual, right, yardstick, 2 if name == "grad_input" else 3, name)
    return gradients


# tokens, hidden_size, bottleneck_dim, row_tile, cluster_size. Primes, one row, sizes beside multiples, idle blocks
# (hidden 40 in a cluster of 8), rows that are aligned and rows that are not.
SHAPES = [
    (70, 256, 16, 64, 1),
    (1, 8, 8, 16, 1),
    (17, 37, 7, 16, 1),
    (65, 101, 33, 64, 2),
    (33, 96, 20, 64, 3),
    (5, 40, 24, 16, 8),
    (16, 520, 64, 16, 4),
    (66, 264, 48, 64, 2),
    (3, 130, 128, 16, 2),
    (64, 136, 100, 64, 1),
    (7, 1, 1, 16, 1),
]
SHAPE_IDS = ["-".join(map(str, shape)) for shape in SHAPES]


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "row_tile", "cluster_size"), SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_forward_shapes(emulator, tokens, hidden, bottleneck, row_tile, cluster_size, dtype):
    """The branch alone, so that the residual hides nothing."""
    case = Case(emulator, tokens, hidden, bottleneck, dtype=dtype)
    check_forward(case, residual=None, row_tile=row_tile, cluster_size=cluster_size)


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "row_tile", "cluster_size"), SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_backward_shapes(emulator, tokens, hidden, bottleneck, row_tile, cluster_size, dtype):
    """All five gradients, without the added grad_output that would hide errors of grad_input."""
    case = Case(emulator, tokens, hidden, bottleneck, dtype=dtype)
    check_backward(case, add_grad_output=False, row_tile=row_tile, cluster_size=cluster_size)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(emulator, activation):
    """Forward and backward, in the precision that tells erf- from tanh-GELU least badly (float16)."""
    case = Case(emulator, 19, 72, 24, dtype="float16")
    check_forward(case, activation=activation, residual=None, row_tile=16)
    check_backward(case, activation=activation, add_grad_output=False, row_tile=16)


@pytest.mark.parametrize(
    ("residual", "down_bias", "up_bias", "save"),
    [*itertools.product(["same", "other", None], [True], [True, False], [True]), ("same", False, True, False)],
)
@pytest.mark.parametrize("cluster_size", [1, 2])
def test_optional_arguments(emulator, residual, down_bias, up_bias, save, cluster_size):
    """Null pointers, and a residual that is not the input (parallel placement)."""
    case = Case(emulator, 20, 136, 16)
    options = {"residual": residual, "down_bias": down_bias, "up_bias": up_bias}
    check_forward(case, **options, save=save, row_tile=64, cluster_size=cluster_size)


def test_separate_residual_equals_the_resident_tile(emulator):
    """The parallel placement reads the residual from memory; with equal values it gives equal bits."""
    case = Case(emulator, 70, 200, 40)
    case.residual[...] = case.h
    for cluster_size in (1, 4):
        same, _ = case.forward(residual="same", cluster_size=cluster_size)
        other, _ = case.forward(residual="other", cluster_size=cluster_size)
        np.testing.assert_array_equal(same, other)


@pytest.mark.parametrize("offset", [3, 8])
def test_strided_rows(emulator, offset):
    """Rows of hidden_states, residual and grad_output longer than their columns, aligned (8) or not (3)."""
    case = Case(emulator, 21, 80, 16)
    strided = Case(emulator, 21, 80, 16, offset=offset)
    for name in ("wd", "wu", "u"):
        setattr(strided, name, getattr(case, name))
    for residual in ("same", "other"):
        np.testing.assert_array_equal(case.forward(residual=residual)[0], strided.forward(residual=residual)[0])
    for plain, other in zip(case.backward(), strided.backward(), strict=True):
        np.testing.assert_array_equal(plain, other)


WANTED = [wanted for wanted in itertools.product([True, False], repeat=5) if any(wanted)]


@pytest.mark.parametrize("wanted", WANTED, ids=["".join("01"[w] for w in wanted) for wanted in WANTED])
def test_every_subset_of_gradients(emulator, wanted):
    """A gradient that is not wanted changes no bit of the others."""
    case = Case(emulator, 18, 48, 12)
    everything = case.backward(row_tile=16)
    for full, part in zip(everything, case.backward(row_tile=16, wanted=wanted), strict=True):
        if part is not None:
            np.testing.assert_array_equal(full, part)


def test_gradients_cost_only_what_is_wanted(emulator):
    """grad_input alone is one launch; weight gradients of frozen inputs skip the second product."""
    case = Case(emulator, 32, 64, 16)
    counts = {}
    for name, wanted in {"input": (1, 0, 0, 0, 0), "weights": (0, 1, 1, 1, 1), "all": (1,) * 5}.items():
        emulator.take_counters()
        case.backward(wanted=tuple(map(bool, wanted)))
        counts[name] = emulator.take_counters()
    assert counts["input"]["launches"] == 1
    assert counts["weights"]["launches"] == counts["all"]["launches"] == 3
    assert counts["weights"]["mma"] < counts["all"]["mma"]


def test_sequential_backward_adds_grad_output(emulator):
    """grad_input gains grad_output, rounded once."""
    case = Case(emulator, 35, 72, 8)
    check_backward(case, add_grad_output=True, cluster_size=2)


def test_long_token_ranges(emulator):
    """Several ranges of tokens, each of several pipeline stages, added in order."""
    case = Case(emulator, 1100, 24, 8)
    check_backward(case, row_tile=64, wanted=(False, True, True, True, True))


def test_large_hidden_size_in_a_cluster(emulator):
    """4096 columns over eight blocks; device memory is read once: the copies are the inputs, no more."""
    case = Case(emulator, 16, 4096, 64)
    emulator.take_counters()
    check_forward(case, row_tile=16, cluster_size=8)
    counters = emulator.take_counters()
    assert counters["copied_bytes"] == case.h.nbytes + case.wd.nbytes + case.wu.nbytes
    assert counters["bank_conflicts"] == 0


@pytest.mark.parametrize("bottleneck", [16, 32, 64, 128])
@pytest.mark.parametrize("row_tile", [16, 64])
def test_no_bank_conflicts(emulator, bottleneck, row_tile):
    """The padding of rows in shared memory does its work for every size."""
    case = Case(emulator, 32, 256, bottleneck)
    case.forward(row_tile=row_tile)
    case.backward(row_tile=row_tile)
    assert emulator.take_counters()["bank_conflicts"] == 0


@pytest.mark.parametrize(("row_tile", "cluster_size"), [(16, 1), (64, 1), (16, 4), (64, 2)])
def test_every_schedule_gives_the_same_bits(emulator, row_tile, cluster_size):
    """Whatever the order of warps and lanes, whenever copies happen: a difference is a race."""
    case = Case(emulator, 40, 328, 24)
    results = []
    for order, eager in itertools.product(["forward", "reverse", "random"], [False, True]):
        emulator.configure(order, eager, seed=len(results))
        options = {"row_tile": row_tile, "cluster_size": cluster_size}
        results.append([*case.forward(residual="other", **options), *case.backward(**options)])
    for result in results[1:]:
        for first, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "row_tile", "cluster_size"), SHAPES, ids=SHAPE_IDS)
def test_nothing_before_the_first_element(emulator, tokens, hidden, bottleneck, row_tile, cluster_size):
    """The guard page before the tensors, in place of the one behind them: no access at negative indices."""
    emulator.configure(guard="begin")
    case = Case(emulator, tokens, hidden, bottleneck)
    case.forward(residual="other", row_tile=row_tile, cluster_size=cluster_size)
    case.backward(row_tile=row_tile, cluster_size=cluster_size)


def test_no_tokens(emulator):
    """No tokens: nothing to compute, and the weights' gradients are zero."""
    case = Case(emulator, 0, 32, 8)
    case.forward()
    gradients = case.backward()
    for gradient in gradients[1:]:
        assert not gradient.any()


def test_infinities_and_nans_stay_in_their_rows(emulator):
    """A row of NaN leaves the other rows as they were."""
    case = Case(emulator, 20, 64, 16, dtype="float16")
    clean, _ = case.forward(activation="relu")
    case.h[7] = np.nan
    dirty, _ = case.forward(activation="relu")
    assert np.isnan(dirty[7]).all()
    np.testing.assert_array_equal(np.delete(clean, 7, 0), np.delete(dirty, 7, 0))


def test_plans(emulator):
    """The plan fits the device and uses clusters only where they exist."""
    sm_90, sm_80 = (90, 227 * 1024), (80, 163 * 1024)

    def plan(tokens, hidden, bottleneck, device, dtype="bfloat16"):
        return emulator.plan_tile(
            dtype=dtype, tokens=tokens, hidden_size=hidden, bottleneck_dim=bottleneck, capability=device[0],
            shared_memory=device[1],
        )  # fmt: skip

    row_tile, cluster_size, shared = plan(16384, 4096, 64, sm_90)
    assert (row_tile, cluster_size) == (64, 8)
    assert 2 * (shared + 1024) <= 228 * 1024  # two blocks on an SM, each with 1 KiB reserved
    assert plan(8, 4096, 64, sm_90)[:2] == (16, 8)
    assert plan(16384, 8192, 128, sm_90)[0] == 64
    assert plan(16384, 768, 64, sm_80)[:2] == (64, 1)
    assert plan(16384, 8192, 64, sm_80)[0] == 0
    assert plan(16, 64, 129, sm_90)[0] == 0
    assert plan(16, 64, 16, sm_90, "float32")[0] == 0
    assert plan(16, 64, 16, (75, 64 * 1024))[0] == 0


# ---- grouped: each token picks one of several adapters, or none ----------------------------------------------------


class GroupedCase(Case):
    """`groups` sets of weights in one tensor, and an index for each token."""

    def __init__(self, emulator, tokens, hidden, bottleneck, groups, *, dtype="bfloat16", only=None):
        super().__init__(emulator, tokens, hidden, bottleneck, dtype=dtype)
        rng = np.random.default_rng(5)
        self.groups = groups
        self.wd = self.put(rng.standard_normal((groups, bottleneck, hidden)) / np.sqrt(hidden))
        self.wu = self.put(rng.standard_normal((groups, hidden, bottleneck)) / np.sqrt(bottleneck))
        self.bd = self.put(rng.standard_normal((groups, bottleneck)) * 0.3)
        self.bu = self.put(rng.standard_normal((groups, hidden)) * 0.3)
        self.indices = emulator.guarded([tokens], np.dtype("int64"))
        self.indices[...] = rng.integers(-1, groups, tokens) if only is None else only

    def single(self, group):
        """The tokens of one group as a problem of its own."""
        rows = self.indices == group
        case = Case(self.emulator, int(rows.sum()), self.hidden, self.bottleneck, dtype=self.dtype)
        for name in ("h", "residual", "dy", "u"):
            getattr(case, name)[...] = getattr(self, name)[rows]
        for name in ("wd", "wu", "bd", "bu"):
            getattr(case, name)[...] = getattr(self, name)[group]
        return case, rows


GROUPED = [(70, 72, 16, 3, 16, 1, None), (300, 40, 8, 5, 64, 2, None), (33, 37, 7, 40, 16, 2, None),
           (20, 64, 24, 2, 64, 1, 1), (9, 24, 8, 3, 16, 1, -1)]  # fmt: skip


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "groups", "row_tile", "cluster_size", "only"), GROUPED)
@pytest.mark.parametrize("residual", ["same", "other", None])
def test_grouped_forward(emulator, tokens, hidden, bottleneck, groups, row_tile, cluster_size, only, residual):
    """Each token's output has the bits that its adapter alone gives it; no adapter leaves the residual."""
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, only=only)
    output, u = case.empty(tokens, hidden), case.empty(tokens, bottleneck)
    base = {"same": case.h, "other": case.residual, None: None}[residual]
    launch = {"row_tile": row_tile, "cluster_size": cluster_size}
    emulator.forward(
        case.h, base, case.wd, case.bd, case.wu, case.bu, output, u, activation="gelu", scaling=0.7, **launch,
        indices=case.indices,
    )  # fmt: skip
    for group in range(groups):
        single, rows = case.single(group)
        expected, expected_u = single.forward(residual=residual, **launch)
        np.testing.assert_array_equal(output[rows], expected)
        np.testing.assert_array_equal(u[rows], expected_u)
    none = case.indices < 0
    np.testing.assert_array_equal(output[none], np.zeros_like(output)[none] if base is None else base[none])
    assert not u[none].any()


@pytest.mark.parametrize(("tokens", "hidden", "bottleneck", "groups", "row_tile", "cluster_size", "only"), GROUPED)
@pytest.mark.parametrize("add_grad_output", [True, False])
def test_grouped_backward(emulator, tokens, hidden, bottleneck, groups, row_tile, cluster_size, only, add_grad_output):
    """grad_input has the bits of the single adapters; the weight gradients are theirs, zero for unused adapters."""
    case = GroupedCase(emulator, tokens, hidden, bottleneck, groups, only=only)
    shapes = ((tokens, hidden), case.wd.shape, case.bd.shape, case.wu.shape, case.bu.shape)
    gradients = [case.empty(*shape) for shape in shapes]
    launch = {"row_tile": row_tile, "cluster_size": cluster_size, "add_grad_output": add_grad_output}
    emulator.backward(
        case.dy, case.h, case.u, case.wd, case.wu, *gradients, activation="gelu", scaling=0.7, **launch,
        indices=case.indices,
    )  # fmt: skip
    for group in range(groups):
        single, rows = case.single(group)
        expected = single.backward(**launch)
        np.testing.assert_array_equal(gradients[0][rows], expected[0])
        for actual, right in zip(gradients[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(actual[group], right)
    none = case.indices < 0
    np.testing.assert_array_equal(gradients[0][none], case.dy[none] * add_grad_output)


def test_grouped_index_out_of_range_traps(emulator):
    """An index that names no adapter stops the launch instead of reading other memory."""
    for index in (3, -2, 1 << 40):
        case = GroupedCase(emulator, 5, 16, 8, 3, only=index)
        with pytest.raises(emulator.EmulatorError, match="trap"):
            case.emulator.forward(
                case.h, None, case.wd, None, case.wu, None, case.empty(5, 16), None, activation="relu", scaling=1.0,
                row_tile=16, cluster_size=1, indices=case.indices,
            )  # fmt: skip


# ---- element-wise kernels ------------------------------------------------------------------------------------------

ROW_SHAPES = [(1, 1), (5, 7), (3, 64), (70, 48), (257, 8), (2, 1030)]
DTYPES = ["float32", "float64", "bfloat16", "float16"]
UNIT = {"float32": 2.0**-22, "float64": 2.0**-40, "bfloat16": 2.0**-8, "float16": 2.0**-10}


def assert_rounded(actual, exact, dtype, what, scale=None):
    """Within one unit in the last place of the result, or of `scale` where terms cancel."""
    scale = np.maximum(np.abs(exact), 1.0) if scale is None else np.maximum(scale, 1.0)
    worst = np.max(np.abs(ref.from_bits(actual) - exact) / scale)
    assert worst <= UNIT[dtype], f"{what}: {worst:.2e} > {UNIT[dtype]:.2e}"


class Rows:
    """Random matrices for the element-wise kernels."""

    def __init__(self, emulator, shape, dtype):
        self.emulator, self.dtype = emulator, dtype
        rng = np.random.default_rng(1)
        self.x, self.u, self.residual = (self.put(rng.standard_normal(shape)) for _ in range(3))
        self.bias = self.put(rng.standard_normal(shape[1]))

    def put(self, values):
        """Copy to guarded memory."""
        array = self.empty(values.shape)
        array[...] = ref.to_bits(values, self.dtype)
        return array

    def empty(self, shape):
        """Guarded memory filled with NaN."""
        return self.emulator.guarded(list(shape), np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype))


@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_activation(emulator, shape, dtype):
    """Both results, with and without bias, out of place and in place."""
    rows = Rows(emulator, shape, dtype)
    for bias, activation in ((rows.bias, "gelu"), (None, "silu")):
        u = ref.from_bits(rows.x) + (0 if bias is None else ref.from_bits(bias))
        activated, pre_activation = rows.empty(shape), rows.empty(shape)
        emulator.bias_activation(rows.x, bias, activated, pre_activation, activation=activation)
        assert_rounded(activated, ref.activate(activation, u), dtype, "activated", np.abs(u))
        assert_rounded(pre_activation, u, dtype, "pre_activation")
        in_place = rows.put(ref.from_bits(rows.x))
        emulator.bias_activation(in_place, bias, in_place, None, activation=activation)
        np.testing.assert_array_equal(in_place, activated)


@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_residual(emulator, shape, dtype):
    """With every combination of null pointers; the output may be the branch."""
    rows = Rows(emulator, shape, dtype)
    for bias, residual in itertools.product((rows.bias, None), (rows.residual, None)):
        parts = [0 if x is None else ref.from_bits(x) for x in (residual, bias)]
        exact = parts[0] + 0.3 * (ref.from_bits(rows.x) + parts[1])
        output = rows.put(ref.from_bits(rows.x))
        emulator.scaled_residual(output, bias, residual, output, scaling=0.3)
        assert_rounded(output, exact, dtype, "output", np.abs(parts[0]) + np.abs(exact))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activation_gradient(emulator, activation, dtype):
    """Gradient and bias gradient for every activation; the derivative has no closed form in the reference."""
    shape = (200, 24) if activation == "gelu" else (7, 9)
    rows = Rows(emulator, shape, dtype)
    gradient, grad_bias = rows.empty(shape), rows.empty(shape[1:])
    emulator.activation_gradient(rows.u, rows.x, gradient, grad_bias, activation=activation, scaling=0.7)
    exact = 0.7 * ref.derivative(activation, ref.from_bits(rows.u)) * ref.from_bits(rows.x)
    tolerance = dtype if dtype != "float64" else "float32"  # the reference differentiates numerically
    assert_rounded(gradient, exact, tolerance, "gradient")
    stored = ref.from_bits(gradient).sum(0)
    assert_rounded(grad_bias, stored, dtype, "grad_bias", np.abs(ref.from_bits(gradient)).sum(0))
    only = rows.empty(shape)
    emulator.activation_gradient(rows.u, rows.x, only, None, activation=activation, scaling=0.7)
    np.testing.assert_array_equal(only, gradient)


@pytest.mark.parametrize("shape", [*ROW_SHAPES, (0, 5), (1000, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_column_sum(emulator, shape, dtype):
    """Column sums, contiguous and of strided rows."""
    rows = Rows(emulator, shape, dtype)
    sums = rows.empty(shape[1:])
    emulator.column_sum(rows.x, sums, scaling=0.3)
    exact = 0.3 * ref.from_bits(rows.x).sum(0)
    size = np.abs(ref.from_bits(rows.x)).sum(0)
    assert_rounded(sums, exact, dtype, "sums", size)
    wide = rows.empty((shape[0], shape[1] + 5))
    wide[:, : shape[1]] = rows.x
    strided = rows.empty(shape[1:])
    emulator.column_sum(wide[:, : shape[1]], strided, scaling=0.3)
    assert_rounded(strided, exact, dtype, "strided sums", size)


# ---- the emulator itself -------------------------------------------------------------------------------------------


def test_sixteen_bit_floats_are_exact(emulator):
    """The host twins of the conversions, against NumPy: every half, and floats on and beside rounding ties."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits.view(np.float16)
    np.testing.assert_array_equal(emulator.half_float(bits), halves.astype(np.float32))
    finite = np.sort(halves[np.isfinite(halves)].astype(np.float32))
    ties = (finite[1:] + finite[:-1]) / 2
    values = np.concatenate([finite, ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, np.float32(-9e9))])
    values = np.append(values, np.float32([65519.9, 65520.0, 1e9, -1e9, np.inf, -np.inf]))
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(emulator.half_bits(values).view(np.float16), expected)
    np.testing.assert_array_equal(emulator.bfloat16_bits(values), ref.to_bits(values, "bfloat16"))


def test_access_past_the_end_is_an_error(emulator):
    """A kernel that reads past its input is stopped with a message, and the next launch works."""
    rows = Rows(emulator, (4, 33), "float32")
    short = rows.put(np.zeros((3, 33)))
    with pytest.raises(emulator.EmulatorError, match="memory access out of range"):
        emulator.scaled_residual(rows.x, None, short, rows.empty((4, 33)), scaling=1.0)
    test_scaled_residual(emulator, (3, 64), "float32")


def test_launch_limits_are_checked(emulator):
    """A tile that does not fit in shared memory cannot be launched."""
    case = Case(emulator, 16, 4096, 16)
    with pytest.raises(emulator.EmulatorError, match="shared memory must fit"):
        case.forward(row_tile=64, cluster_size=1)
