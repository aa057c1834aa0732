"""The table of kernels: what a sweep gives, what the roofline gives, and that the kernels read it as it is meant."""

import itertools
import math

import harness
import plan_table
import pytest
from plan_table import ANY, CUBLAS, Row

KIB = 1024
# Compute capability and shared memory that a block may ask for: A100, RTX 3090, RTX 4090, H100, B200.
DEVICES = ((80, 163 * KIB), (86, 99 * KIB), (89, 99 * KIB), (90, 227 * KIB), (100, 227 * KIB))
TOKENS = (1, 15, 16, 1024, 1025, 2048, 2049, 4160, 4161, 8384, 8385, 16384, 100_000)
HIDDEN_SIZES = (1, 7, 64, 65, 128, 129, 256, 257, 512, 513, 768, 1024, 1025, 2048, 2049, 4096, 8192, 12288, 20000)
BOTTLENECK_DIMS = (1, 16, 17, 64, 65, 128, 129)


def shared_memory(hidden_size, bottleneck_dim, row_tile, cluster_size):
    """Return the least bytes of a tile, by the description in bottleneck_tile.cuh: two chunks of weights."""
    chunk, column_groups = (64, 4) if row_tile == 64 else (128, 8)
    m = next(size for size in (16, 32, 64, 128) if bottleneck_dim <= size)
    columns = math.ceil(math.ceil(math.ceil(hidden_size / cluster_size) / 16) * 16 / chunk) * chunk
    tile, stage = row_tile * (columns + 8), max(m * (chunk + 8), chunk * (m + 8))
    sums = column_groups // min(m // 16, column_groups) * row_tile * (m + 4)
    return 2 * (tile + 2 * stage + row_tile * (m + 8) + columns) + 4 * sums + 8 * (row_tile + 2)


def serves(plan, hidden_size, bottleneck_dim, memory):
    """Say whether a tile serves a problem, whose rows are aligned where its hidden_size is; row_tile 32 is resident."""
    if bottleneck_dim > 128:
        return False
    if plan[0] != 32:
        return shared_memory(hidden_size, bottleneck_dim, *plan) <= memory
    columns = math.ceil(math.ceil(hidden_size / plan[1]) / 16) * 16
    return (
        hidden_size % 8 == 0
        and columns <= (256 if bottleneck_dim > 64 else 512)
        and (plan[1] - 1) * columns < hidden_size
    )


def smallest_cluster(hidden_size, columns, capability):
    if capability < 90:
        return 1
    return next((size for size in (1, 2, 4) if size * columns >= hidden_size), 8)


def plan_by_rule(tokens, hidden_size, bottleneck_dim, capability, memory):
    """Return the plan by the rule in words: 64 tokens a tile where that fills 132 SMs, else 16 and many blocks."""
    wide = (64, smallest_cluster(hidden_size, 512, capability))
    narrow = (16, smallest_cluster(hidden_size, 64, capability))
    fills = math.ceil(tokens / 64) * wide[1] >= 132
    for plan in (wide, narrow) if fills else (narrow,):
        if bottleneck_dim <= 128 and shared_memory(hidden_size, bottleneck_dim, *plan) <= memory:
            return plan
    return CUBLAS


def first_plan(rows, cell, memory):
    """Return the plan of the first row that serves the cell and whose tile fits."""
    for plan in (row.plan for row in rows if row.serves(cell)):
        if plan == CUBLAS or serves(plan, *cell[1:], memory):
            return plan
    return CUBLAS


@pytest.fixture
def plan(built_emulator):
    def look_up(tokens, hidden_size, bottleneck_dim, device, dtype="bfloat16", **options):
        return built_emulator.plan_tile(
            dtype=dtype,
            tokens=tokens,
            hidden_size=hidden_size,
            bottleneck_dim=bottleneck_dim,
            capability=device[0],
            shared_memory=device[1],
            **options,
        )

    return look_up


def test_the_committed_header_is_what_its_source_gives():
    text = plan_table.HEADER.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120
    assert text == plan_table.header_text(plan_table.source_of(text))


def test_the_rules_say_what_the_words_say():
    rows = plan_table.rule_rows(90) + plan_table.rule_rows(80)
    for capability, memory in DEVICES:
        served = [row for row in rows if row.capability <= capability]
        for cell in itertools.product(TOKENS, HIDDEN_SIZES, BOTTLENECK_DIMS):
            assert first_plan(served, cell, memory) == plan_by_rule(*cell, capability, memory), (capability, cell)


def test_the_roofline_gives_each_cell_the_plan_that_it_predicts_to_be_fastest():
    rows = plan_table.table_of(None)[1]
    for direction, (capability, gpu) in itertools.product(plan_table.DIRECTIONS, plan_table.PREDICTED_GPUS.items()):
        served = [row for row in rows[direction] if row.capability <= capability]
        times = plan_table.predicted_times(gpu, direction)
        for cell, by_plan in times.items():
            for plan in by_plan:
                assert plan == CUBLAS or shared_memory(*cell[1:], *plan) + KIB <= gpu.shared_bytes
            assert by_plan[first_plan(served, cell, gpu.shared_bytes - KIB)] <= 1.02 * min(by_plan.values())
        assert {first_plan(served, cell, gpu.shared_bytes - KIB) == CUBLAS for cell in times} == {True, False}


def test_what_the_roofline_leaves_is_served_by_the_rules():
    """Grouped problems, which have no cublas path, and tiles that a device has no shared memory for."""
    for direction, rows in plan_table.table_of(None)[1].items():
        for capability in plan_table.PREDICTED_GPUS:
            own = [row for row in rows if row.capability == capability]
            rules = plan_table.rule_rows(capability)
            assert own[-len(rules) :] == rules
            last = own[-len(rules) - 1]  # a problem that is not grouped gets no further than this
            assert last == Row(capability, ANY, ANY, ANY, CUBLAS), (direction, capability)


def test_the_kernels_read_the_table(plan, built_emulator):
    """In the table's own terms, so that it holds for a measured table too."""
    source, rows = plan_table.table_of(plan_table.source_of(plan_table.HEADER.read_text("utf-8")))
    assert built_emulator.plan_table_source() == source
    for direction, (capability, memory) in itertools.product(plan_table.DIRECTIONS, DEVICES):
        served = [row for row in rows[direction] if row.capability <= capability]
        for cell in itertools.product(TOKENS, HIDDEN_SIZES, BOTTLENECK_DIMS):
            wanted = first_plan(served, cell, memory)
            found = plan(*cell, (capability, memory), direction=direction)
            assert found[:2] == wanted, (direction, capability, cell)
            if wanted != CUBLAS and wanted[0] != 32:
                assert found[2] == shared_memory(*cell[1:], *wanted)


def test_problems_without_a_tile(plan):
    assert plan(16, 64, 129, (90, 227 * KIB))[0] == 0
    assert plan(16, 64, 16, (90, 227 * KIB), "float32")[0] == 0
    assert plan(16, 64, 16, (75, 64 * KIB))[0] == 0
    assert plan(16384, 8192, 64, (80, 163 * KIB))[0] == 0
    assert plan(1 << 40, 64, 16, (90, 227 * KIB))[0] == 0  # more blocks than a grid has


def test_grouped_tiles_are_narrow_where_groups_are_small(plan):
    device = (90, 227 * KIB)
    assert plan(16384, 4096, 64, device, num_adapters=64)[:2] == (32, 8)
    assert plan(16384, 4096, 64, device, num_adapters=256)[:2] == (32, 8)  # 64 tokens a group
    assert plan(16384, 4096, 64, device, num_adapters=257)[:2] == (16, 8)
    assert plan(16384, 64, 64, device, num_adapters=4096)[:2] == (16, 1)
    assert plan(8, 4096, 64, device, num_adapters=4)[:2] == (16, 8)
    assert plan(16384, 4096, 129, device, num_adapters=4)[0] == 0
    assert plan((1 << 31) - 64, 8192, 64, device, num_adapters=4096)[:2] == (64, 8)
    assert plan(1 << 34, 8192, 64, device, num_adapters=1)[0] == 0


# A sweep of two numbers of tokens, two hidden sizes and two bottlenecks: what is fastest, as (tokens, d, m): plan.
FASTEST = {
    (16, 256, 16): (16, 4),
    (4096, 256, 16): (64, 1),
    (16, 4096, 16): (16, 8),
    (4096, 4096, 16): (64, 8),
    (16, 256, 128): (16, 4),
    (4096, 256, 128): CUBLAS,
    (16, 4096, 128): (16, 8),
    (4096, 4096, 128): CUBLAS,
}


def times_of(fastest, others=2.0):
    plans = {*fastest.values(), CUBLAS}
    return {cell: {plan: 1.0 if plan == best else others for plan in plans} for cell, best in fastest.items()}


def write_sweep(path, times, device="NVIDIA Test (sm_90)"):
    rows = []
    for mode, cells in times.items():
        for (num_tokens, hidden_size, bottleneck_dim), by_plan in cells.items():
            for (row_tile, cluster_size), median in by_plan.items():
                row = dict.fromkeys(harness.COLUMNS, "")
                name = f"tile:{row_tile}x{cluster_size}" if row_tile else "cublas"
                row |= {"benchmark": "bench_op_sweep", "implementation": name, "mode": mode, "metric": "time"}
                row |= {"num_tokens": num_tokens, "hidden_size": hidden_size, "bottleneck_dim": bottleneck_dim}
                rows.append(row | {"median": median, "device": device})
    harness.append_rows(path, rows)


def test_measured_rows_have_borders_at_geometric_means_and_no_row_too_many():
    rows = plan_table.grid_rows(90, times_of(FASTEST))
    assert rows == [
        Row(90, 256, 1024, 45, (16, 4)),
        Row(90, ANY, 1024, 45, (64, 1)),
        Row(90, 256, ANY, 45, (16, 8)),
        Row(90, ANY, ANY, 45, (64, 8)),
        Row(90, 256, 1024, ANY, (16, 4)),
        Row(90, 256, ANY, ANY, (16, 8)),
        Row(90, ANY, ANY, ANY, CUBLAS),
    ]
    for cell, best in FASTEST.items():
        assert plan_table.answer(rows, cell) == best


def test_one_plan_everywhere_is_one_row():
    rows = plan_table.grid_rows(90, times_of(dict.fromkeys(FASTEST, (64, 8))))
    assert rows == [Row(90, ANY, ANY, ANY, (64, 8))]


def test_noise_does_not_tear_the_table():
    times = times_of(dict.fromkeys(FASTEST, (64, 8)))
    times[4096, 256, 16][CUBLAS] = 0.99  # faster by less than two runs differ
    assert len(plan_table.grid_rows(90, times)) == 1
    times[4096, 256, 16][CUBLAS] = 0.95
    assert len(plan_table.grid_rows(90, times)) > 1


def test_a_sweep_becomes_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_table, "ROOT", tmp_path)
    path = tmp_path / "sweep.csv"
    stale = {cell: {CUBLAS: 1.0} for cell in FASTEST}
    write_sweep(path, {"forward": stale, "backward": stale})
    write_sweep(path, {"forward": times_of(FASTEST), "backward": times_of(dict.fromkeys(FASTEST, CUBLAS))})
    text = plan_table.header_text(path)
    assert 'kPlanTableSource = "measured on NVIDIA Test";' in text
    assert "plan_table.py\n//         --from-results sweep.csv\n" in text
    assert plan_table.source_of(text) == path
    forward, backward = text.split("kBackwardRows")
    assert "{ 90,      256,     1024,    45, 16, 4},\n" in forward
    assert "{ 90,     kAny,     kAny,  kAny,  0, 1},\n" in forward
    assert backward.splitlines()[1] == "    { 90,     kAny,     kAny,  kAny,  0, 1},"
    for direction, part in zip(plan_table.DIRECTIONS, (forward, backward), strict=True):  # older devices: the roofline
        assert part.count("{ 80,") == len(plan_table.predicted_rows(80, direction) + plan_table.rule_rows(80))


def test_a_sweep_of_an_older_device_stands_behind_the_rules_for_newer_ones(tmp_path):
    path = tmp_path / "sweep.csv"
    write_sweep(path, {mode: times_of(FASTEST) for mode in plan_table.DIRECTIONS}, "NVIDIA Old (sm_86)")
    _, rows = plan_table.table_of(path)
    capabilities = [row.capability for row in rows["forward"]]
    assert capabilities == sorted(capabilities, reverse=True)
    assert set(capabilities) == {90, 86, 80}


def test_a_plane_that_was_cut_off_is_left_out_and_said(tmp_path, capsys):
    path = tmp_path / "sweep.csv"
    cells = times_of(FASTEST)
    del cells[16, 256, 128]
    write_sweep(path, {mode: cells for mode in plan_table.DIRECTIONS})
    _, rows = plan_table.table_of(path)
    whole = {cell: plans for cell, plans in cells.items() if cell[2] == 16}
    measured = plan_table.grid_rows(90, whole)
    assert rows["forward"][: len(measured)] == measured
    assert plan_table.answer(rows["forward"], (16, 4096, 128)) == (16, 8)  # that of bottleneck_dim 16 has no limit now
    assert "left out, cells are missing: bottleneck_dim [128]" in capsys.readouterr().err


def test_sweeps_that_give_no_table_are_refused(tmp_path):
    path = tmp_path / "sweep.csv"
    cells = times_of(FASTEST)
    del cells[16, 256, 16], cells[16, 256, 128]
    write_sweep(path, {mode: cells for mode in plan_table.DIRECTIONS})
    with pytest.raises(ValueError, match=r"check_grid: .* got none of \[\(16, 256, 16\), \(16, 256, 128\)\]"):
        plan_table.table_of(path)
    write_sweep(path, {"forward": cells}, "NVIDIA Other (sm_90)")
    with pytest.raises(ValueError, match=r"read_sweep: sweep.csv must hold the sweep of one device"):
        plan_table.table_of(path)
    with pytest.raises(ValueError, match="the sweep must lie in the repository"):
        plan_table.header_text(path)
    with pytest.raises(ValueError, match="the header must name the command"):
        plan_table.source_of("#pragma once\n")
