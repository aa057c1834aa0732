"""Problems for the emulated kernels, and the rule that their results must obey."""

import itertools

import numpy as np
from emulator_build import SOURCE, load_module

from adapterx import reference

ref = load_module("numpy_reference", SOURCE / "numpy_reference.py")
ACTIVATIONS = tuple(reference.ACTIVATIONS)
GRADIENTS = ("grad_input", "grad_down_weight", "grad_down_bias", "grad_up_weight", "grad_up_bias")
WANTED = [wanted for wanted in itertools.product([True, False], repeat=5) if any(wanted)]
WANTED_IDS = ["".join("01"[want] for want in wanted) for wanted in WANTED]
FLOOR = 1e-5


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

    def backward(self, *, activation="gelu", scaling=0.7, add_grad_output=True, wanted=(True,) * 5, **launch):
        """Run the kernels; return the five gradients, None where not wanted. `launch`: the tile, the device."""
        t, d, m = self.tokens, self.hidden, self.bottleneck
        shapes = ((t, d), (m, d), (m,), (d, m), (d,))
        gradients = [self.empty(*shape) if want else None for shape, want in zip(shapes, wanted, strict=True)]
        self.emulator.backward(
            self.dy, self.h if wanted[1] else None, self.u, self.wd, self.wu, gradients, activation=activation,
            scaling=scaling, add_grad_output=add_grad_output, **{"row_tile": 64, "cluster_size": 1, **launch},
        )  # fmt: skip
        return gradients

    def expected_backward(self, dtype, *, activation="gelu", scaling=0.7, add_grad_output=True):
        """Return the five gradients of the formula."""
        values = [ref.from_bits(x) for x in (self.dy, self.h, self.u, self.wd, self.wu)]
        return ref.backward(
            *values, activation=activation, scaling=scaling, add_grad_output=add_grad_output, dtype=dtype
        )


def assert_close(actual, exact, eager, factor, what, floor=FLOOR):
    """The rule: at most `factor` times as far from float64 as the formula rounded at every step."""
    error = ref.relative_error(ref.from_bits(actual), exact)
    allowed = factor * ref.relative_error(eager, exact) + floor
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
    names = ("row_tile", "cluster_size", "capability", "multiprocessors", "wanted")
    launch = {key: options.pop(key) for key in names if key in options}
    gradients = case.backward(**options, **launch)
    exact, eager = case.expected_backward(None, **options), case.expected_backward(case.dtype, **options)
    for name, actual, right, yardstick in zip(GRADIENTS, gradients, exact, eager, strict=True):
        if actual is not None:
            assert_close(actual, right, yardstick, 2 if name == "grad_input" else 3, name)
    return gradients


class GroupedCase(Case):
    """`groups` sets of weights in one tensor, and an index for each token."""

    def __init__(
        self, emulator, tokens, hidden, bottleneck, groups, *, input_size=None, dtype="bfloat16", only=None, offset=0
    ):
        super().__init__(emulator, tokens, hidden, bottleneck, dtype=dtype, offset=offset)
        rng = np.random.default_rng(5)
        self.groups, self.input_size = groups, input_size or hidden
        self.wd = self.put(rng.standard_normal((groups, bottleneck, self.input_size)) / np.sqrt(self.input_size))
        self.wu = self.put(rng.standard_normal((groups, hidden, bottleneck)) / np.sqrt(bottleneck))
        self.offset = 0  # biases and pre-activations have no strides
        self.bd = self.put(rng.standard_normal((groups, bottleneck)) * 0.3)
        self.bu = self.put(rng.standard_normal((groups, hidden)) * 0.3)
        self.u = self.put(rng.standard_normal((tokens, bottleneck)))
        self.offset = offset
        if self.input_size != hidden:
            self.h = self.put(rng.standard_normal((tokens, self.input_size)))
        self.indices = emulator.guarded([tokens], np.dtype("int64"))
        self.indices[...] = rng.integers(-1, groups, tokens) if only is None else only
        self.u[self.indices < 0] = 0

    def single(self, group):
        """The tokens of one group as a problem of its own, for the kernels without groups."""
        rows = self.indices == group
        case = Case(self.emulator, int(rows.sum()), self.hidden, self.bottleneck, dtype=self.dtype)
        for name in ("h", "residual", "dy", "u"):
            getattr(case, name)[...] = getattr(self, name)[rows]
        for name in ("wd", "wu", "bd", "bu"):
            getattr(case, name)[...] = getattr(self, name)[group]
        return case, rows

    def alone(self, group):
        """The tokens and weights of one group as a grouped problem with one adapter."""
        rows = self.indices == group
        case = GroupedCase(
            self.emulator, int(rows.sum()), self.hidden, self.bottleneck, 1, input_size=self.input_size,
            dtype=self.dtype, only=0,
        )  # fmt: skip
        for name in ("h", "residual", "dy", "u"):
            getattr(case, name)[...] = getattr(self, name)[rows]
        for name in ("wd", "wu", "bd", "bu"):
            getattr(case, name)[0] = getattr(self, name)[group]
        return case, rows

    def base(self, residual):
        """The tensor that the branch is added to."""
        return {"same": self.h, "other": self.residual, None: None}[residual]

    def segments_forward(
        self, *, activation="gelu", scaling=0.7, residual="other", down_bias=True, up_bias=True, save=True, row_tile=64
    ):
        """Run the segment path; return the arrays (output, pre_activation or None)."""
        output = self.empty(self.tokens, self.hidden)
        u = self.empty(self.tokens, self.bottleneck) if save else None
        self.emulator.segments_forward(
            self.h, self.base(residual), self.wd, self.bd if down_bias else None, self.wu,
            self.bu if up_bias else None, output, u, activation=activation, scaling=scaling, indices=self.indices,
            row_tile=row_tile,
        )  # fmt: skip
        return output, u

    def segments_backward(
        self, *, activation="gelu", scaling=0.7, add_grad_output=False, wanted=(True,) * 5, row_tile=64
    ):
        """Run the segment path; return the five gradients, None where not wanted."""
        shapes = ((self.tokens, self.input_size), self.wd.shape, self.bd.shape, self.wu.shape, self.bu.shape)
        gradients = [self.empty(*shape) if want else None for shape, want in zip(shapes, wanted, strict=True)]
        self.emulator.segments_backward(
            self.dy, self.h if wanted[1] else None, self.u, self.wd, self.wu, gradients, activation=activation,
            scaling=scaling, add_grad_output=add_grad_output, indices=self.indices, row_tile=row_tile,
        )  # fmt: skip
        return gradients

    def expected_groups_forward(
        self, dtype, *, activation="gelu", scaling=0.7, residual="other", down_bias=True, up_bias=True
    ):
        """Return (output, pre_activation) of the formula, one adapter after the other."""
        h, wd, bd, wu, bu = map(ref.from_bits, (self.h, self.wd, self.bd, self.wu, self.bu))
        base = None if residual is None else ref.from_bits(self.base(residual))
        output = np.zeros((self.tokens, self.hidden)) if base is None else base.copy()
        u = np.zeros((self.tokens, self.bottleneck))
        for group in range(self.groups):
            rows = self.indices == group
            output[rows], u[rows] = ref.forward(
                h[rows], None if base is None else base[rows], wd[group], bd[group] if down_bias else None, wu[group],
                bu[group] if up_bias else None, activation=activation, scaling=scaling, dtype=dtype,
            )  # fmt: skip
        return output, u

    def expected_groups_backward(self, dtype, *, activation="gelu", scaling=0.7, add_grad_output=False):
        """Return the five gradients of the formula, one adapter after the other."""
        dy, h, u, wd, wu = map(ref.from_bits, (self.dy, self.h, self.u, self.wd, self.wu))
        dh = dy.copy() if add_grad_output else np.zeros((self.tokens, self.input_size))
        gradients = [dh, *(np.zeros(x.shape) for x in (self.wd, self.bd, self.wu, self.bu))]
        for group in range(self.groups):
            rows = self.indices == group
            dh[rows], *parts = ref.backward(
                dy[rows], h[rows], u[rows], wd[group], wu[group], activation=activation, scaling=scaling,
                add_grad_output=add_grad_output, dtype=dtype,
            )  # fmt: skip
            for gradient, part in zip(gradients[1:], parts, strict=True):
                gradient[group] = part
        return gradients


def assert_same_bits(left, right):
    """Compare lists of arrays; None stands for a gradient that was not wanted."""
    for first, second in zip(left, right, strict=True):
        if first is not None and second is not None:
            np.testing.assert_array_equal(first, second)


def check_grouped_forward(case, residual, **launch):
    """Each token's output has the bits that its adapter alone gives it; no adapter leaves the residual."""
    output, u = case.empty(case.tokens, case.hidden), case.empty(case.tokens, case.bottleneck)
    base = case.base(residual)
    case.emulator.forward(
        case.h, base, case.wd, case.bd, case.wu, case.bu, output, u, activation="gelu", scaling=0.7, **launch,
        indices=case.indices,
    )  # fmt: skip
    for group in range(case.groups):
        single, rows = case.single(group)
        expected, expected_u = single.forward(residual=residual, **launch)
        np.testing.assert_array_equal(output[rows], expected)
        np.testing.assert_array_equal(u[rows], expected_u)
    none = case.indices < 0
    np.testing.assert_array_equal(output[none], np.zeros_like(output)[none] if base is None else base[none])
    assert not u[none].any()


def check_grouped_backward(case, add_grad_output, **launch):
    """grad_input has the bits of the single adapters; the weight gradients are theirs, zero for unused adapters."""
    shapes = ((case.tokens, case.hidden), case.wd.shape, case.bd.shape, case.wu.shape, case.bu.shape)
    gradients = [case.empty(*shape) for shape in shapes]
    launch["add_grad_output"] = add_grad_output
    case.emulator.backward(
        case.dy, case.h, case.u, case.wd, case.wu, gradients, activation="gelu", scaling=0.7, **launch,
        indices=case.indices,
    )  # fmt: skip
    for group in range(case.groups):
        single, rows = case.single(group)
        expected = single.backward(**launch)
        np.testing.assert_array_equal(gradients[0][rows], expected[0])
        for actual, right in zip(gradients[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(actual[group], right)
    none = case.indices < 0
    np.testing.assert_array_equal(gradients[0][none], case.dy[none] * add_grad_output)
