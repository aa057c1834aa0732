"""The roofline: each limit against arithmetic by hand, and the whole against what one H100 has shown."""

import dataclasses
import statistics

import calibrate_roofline
import plan_table
import pytest
from gpu_limits import CUBLAS, GPUS, Constants, Loop, read_loops
from kernel_launches import Model, fits, resident_launch, tile_launch
from roofline import predict

RESULTS = plan_table.ROOT / "benchmarks" / "results"
SWEEP = RESULTS / "roofline_sweep_daa515b_NVIDIA_H100_80GB_HBM3.csv"  # that its constants were fitted to
COUNTS = RESULTS / "sass_counts_sm_90_daa515b.csv"  # of the kernels that the sweep measured
HEADLINE = (16384, 4096, 64)
H100, H200, A100 = GPUS["H100"], GPUS["H200"], GPUS["A100"]


@pytest.fixture(scope="module")
def measured():
    return Model(Constants(), read_loops(COUNTS))


def limits(gpu, cell, plan, model):
    return tile_launch(gpu, "forward", cell, plan, model).limits(gpu, model.constants)


def test_the_limits_of_the_headline_by_hand(measured):
    """64 tokens in a cluster of 8: 256 tiles of 128 chunks, each by 4 warps."""
    found = limits(H100, HEADLINE, (64, 8), measured)
    moved = 2 * 16384 * 4096 * 2 + 2 * 4096 * 64 * 2
    assert found["memory"] == pytest.approx(moved / 2.8e6)
    assert found["tensor cores"] == pytest.approx(4 * 16384 * 4096 * 64 / 613e6)
    executed = 256 * 128 * 4 * (273 + 376)
    assert found["issue"] == pytest.approx(executed / (132 * 4) / 1755)
    assert found["shared memory"] == pytest.approx(256 * 128 * 4 * (60 + 104) / 132 / 1755)
    # 256 clusters, 15 at once with one block on an SM, two fit: 8 waves of 30 and one of the last 16, which needs two
    # blocks on an SM as well. A block goes through 16 chunks.
    c = measured.constants
    block = 16 * (649 * (c.cycles + c.more_cycles) + c.wait_cycles) / 1755 + c.block
    assert found["latency"] == pytest.approx(9 * block)


def test_few_tokens_are_one_wave_of_single_blocks(measured):
    found = limits(H100, (8, 4096, 64), (16, 8), measured)
    c = measured.constants
    assert found["latency"] == pytest.approx(8 * ((300 + 353) * c.cycles + c.wait_cycles) / 1755 + c.block)


def test_a_faster_memory_moves_only_the_limit_of_memory(measured):
    slow, fast = limits(H100, HEADLINE, (64, 8), measured), limits(H200, HEADLINE, (64, 8), measured)
    assert fast.pop("memory") == pytest.approx(slow.pop("memory") * 2.8 / 4.3)
    assert fast == slow


def test_what_binds_changes_with_the_kernel(measured):
    """A tile kernel of few instructions and no waiting would be bound by memory, one of many by their issue."""
    launch = tile_launch(H100, "forward", HEADLINE, (64, 8), measured)

    def binding(**changes):
        found = dataclasses.replace(launch, wait_cycles=0.0, block=0.0, **changes).limits(H100, measured.constants)
        return max(found, key=found.get)

    assert binding(loop=Loop(10, 10)) == "memory"
    assert binding(loop=Loop(10, 400)) == "shared memory"
    assert binding(loop=Loop(10, 10), mma_flops=1e12) == "tensor cores"
    assert binding(loop=Loop(1000, 10)) == "latency"
    many = dataclasses.replace(launch, loop=Loop(1000, 10), warps=32, wait_cycles=0.0, block=0.0)
    quick = dataclasses.replace(measured.constants, cycles=1.0, more_cycles=0.1)
    found = many.limits(dataclasses.replace(H100, clusters={8: 1000}), quick)
    assert max(found, key=found.get) == "issue"


def test_the_resident_kernel_walks_over_its_tiles():
    """512 tiles of 32 tokens, 15 clusters of 8 at once: 35 for the busiest, by 16 warps on one SM."""
    names = ("64,512,0", "128,256,0")
    loops = {("90", f"resident_tile_kernel forward bf16 {name}"): {"tile": Loop(1000, 300)} for name in names}
    model = Model(Constants(), loops)
    launch = resident_launch(H100, "forward", HEADLINE, (32, 8), model)
    assert (launch.blocks, launch.iterations, launch.total_iterations) == (120, 35, 512 * 8)
    c = model.constants
    found = launch.limits(H100, c)
    assert found["latency"] == pytest.approx(
        35 * (1000 * (c.cycles + 3 * c.more_cycles) + c.wait_cycles) / 1755 + c.block
    )
    assert found["issue"] == pytest.approx(512 * 8 * 16 * 1000 / (4 * 132) / 1755)
    assert not fits(H100, (16384, 4096, 128), (32, 8), model)  # 512 columns of 128 do not fit in registers
    assert fits(H100, (16384, 2048, 128), (32, 8), model)
    assert not fits(H100, (16384, 2048, 32), (32, 8), model)  # a kernel that was not counted
    assert not fits(A100, HEADLINE, (32, 8), model)


def test_what_does_not_fit():
    assert not fits(A100, HEADLINE, (64, 8))  # no clusters
    assert fits(A100, (16384, 512, 64), (64, 1))
    assert not fits(A100, (16384, 4096, 64), (64, 1))
    assert not fits(H100, (16384, 4096, 129), (64, 8))
    assert fits(A100, (16384, 4096, 129), CUBLAS)


@pytest.mark.parametrize(
    ("direction", "cell", "plan", "us", "within"),
    [
        ("forward", HEADLINE, (64, 8), 340, 0.08),
        ("forward", HEADLINE, CUBLAS, 162, 0.08),
        ("backward", HEADLINE, (64, 8), 519, 0.1),
        ("backward", HEADLINE, CUBLAS, 340, 0.1),
        ("forward", (16, 4096, 64), (16, 8), 18.2, 0.1),
        ("forward", (16, 768, 64), (16, 8), 8.3, 0.1),
    ],
)
def test_measured_times_are_met(measured, direction, cell, plan, us, within):
    assert predict(H100, direction, cell, plan, measured).us == pytest.approx(us, rel=within)


def test_the_headline_is_bound_as_the_profiler_said(measured):
    """Nsight Compute: no warp can issue in 68 % of the cycles, 23 % of the memory's peak."""
    found = predict(H100, "forward", HEADLINE, (64, 8), measured)
    assert found.limit == "latency"
    assert found.limits["issue"] / found.us == pytest.approx(0.32, abs=0.08)


def test_it_chooses_nearly_what_was_fastest_in_the_sweep(measured):
    _, _, times = plan_table.read_sweep(SWEEP)
    for direction in plan_table.DIRECTIONS:
        lost = calibrate_roofline.regret(H100, direction, measured, times[direction])
        assert statistics.fmean(lost) < 1.02
        assert max(lost) < 1.4
        off = calibrate_roofline.errors(H100, measured, calibrate_roofline.select(times, (direction,), False))
        assert statistics.median(map(abs, off)) < 0.12


def test_the_fit_finds_constants_that_made_the_times(measured, monkeypatch):
    monkeypatch.setattr(calibrate_roofline, "STEPS", 150)
    made = Model(dataclasses.replace(measured.constants, cycles=5.0, block=2.0), measured.loops)
    cells = [(tokens, columns, 64) for tokens in (16, 1024, 16384) for columns in (768, 4096)]
    plans = ((16, 8), (64, 4), (64, 8))
    times = [("forward", c, p, predict(H100, "forward", c, p, made).us) for c in cells for p in plans]
    fitted = calibrate_roofline.fit(H100, measured, times, ("cycles", "block"))
    assert fitted.constants.cycles == pytest.approx(5.0, rel=0.03)
    assert fitted.constants.block == pytest.approx(2.0, rel=0.1)
