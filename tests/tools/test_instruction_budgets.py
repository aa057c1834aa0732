"""The counting of instructions in SASS (tests/cuda/sass_loops.py) and the budgets that it is held to."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "cuda"
FIRST_PRODUCT = Path(__file__).parent / "sass" / "first_product_sm90.sass"  # one phase of a kernel, as cuobjdump said


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)


@pytest.fixture
def loops():
    return importlib.import_module("sass_loops")


@pytest.fixture
def budgets():
    return importlib.import_module("instruction_budgets")


def assemble(text):
    """Give each line an address, and each label that a branch names the address of its line."""
    lines = [line.strip() for line in text.strip().splitlines()]
    places = {line.split(":")[0]: 16 * number for number, line in enumerate(lines) if re.match(r"\w+:", line)}
    code = []
    for number, line in enumerate(lines):
        instruction = re.sub(r"^\w+:\s*", "", line)
        for label, address in places.items():
            instruction = re.sub(rf"\b{label}$", f"{address:#x}", instruction)
        code.append(f"        /*{16 * number:04x}*/  {instruction} ;")
    return "\n".join(code)


def first_product():
    report = importlib.import_module("kernel_report")
    return report.split_sass("\n" + FIRST_PRODUCT.read_text(encoding="utf-8"))


def test_a_kernel_is_counted_as_by_hand(loops, budgets):
    """A reader of this disassembly counted 273 instructions, 16 mma and 10 ldmatrix for each chunk of columns."""
    ((arch, mangled, code),) = first_product()
    (paths,) = loops.hot_loops(code)
    assert {copies: path["instructions"] for copies, path in paths.items()} == {0: 57, 4: 273}
    (row,), problems = budgets.count_kernel(arch, importlib.import_module("kernel_report").kernel_name(mangled), code)
    assert (row.loop, row.instructions, row.mma, row.ldmatrix, row.copies) == ("first product", 273, 16, 10, 4)
    assert row.per_copy == (273 - 57) / 4
    # Ten ldmatrix and four copies of 512 bytes, two reads of 8 bytes a thread, at 128 bytes a cycle.
    assert row.shared_cycles == 10 * 4 + 4 * 4 + 2 * 2
    assert row.missed == "copy <= 6"
    assert len(problems) == 1  # the second product is not in this text
    assert "second product: 2 copies in an iteration expected" in problems[0]


LOOP = """
    MOV R1, RZ
    head: BAR.SYNC 0x0
    @P0 BRA multiply
    {copies}
    multiply: LDSM.16.M88.4 R8, [R2]
    HMMA.16816.F32.BF16 R4, R8, R12, R4
    ISETP.GE.AND P1, PT, R1, R9, PT
    @!P1 BRA head
    EXIT
"""


def instructions(loops, code):
    (paths,) = loops.hot_loops(assemble(code))
    return {copies: path["instructions"] for copies, path in paths.items()}


def test_the_longest_path_is_counted_by_the_number_of_copies(loops):
    assert instructions(loops, LOOP.format(copies="LDGSTS.E.BYPASS.128 [R3], [R6.64]")) == {0: 6, 1: 7}
    assert instructions(loops, LOOP.format(copies="UBLKCP.S.G [UR4], [UR6], UR8")) == {0: 6, 1: 7}


SLOW_COPY = """@!P2 BRA slow
    LDGSTS.E.BYPASS.128 [R3], [R6.64]
    BRA done
    slow: ISETP.GT.AND P3, PT, R7, RZ, PT
    @!P3 BRA done
    slow_loop: LDG.E.U16 R8, [R6.64]
    STS.U16 [R3], R8
    IADD3 R7, R7, -0x1, RZ
    ISETP.GT.AND P3, PT, R7, RZ, PT
    @P3 BRA slow_loop
    done: NOP"""


def test_element_by_element_code_and_what_guards_it_are_left_out(loops):
    assert instructions(loops, LOOP.format(copies=SLOW_COPY)) == {0: 6, 1: 10}


def test_a_guard_around_both_ways_stays(loops):
    """The test for columns inside the matrix stands before the aligned way too."""
    guarded = "@P4 BRA done\n" + SLOW_COPY
    assert instructions(loops, LOOP.format(copies=guarded)) == {0: 8, 1: 11}


def test_copies_at_the_edge_are_left_out_where_there_are_others(loops):
    edge = """@P2 BRA whole
    MOV R1, R2
    MOV R1, R2
    LDGSTS.E.BYPASS.128.ZFILL [R3], [R6.64]
    BRA done
    whole: LDGSTS.E.BYPASS.128 [R3], [R6.64]
    done: NOP"""
    assert instructions(loops, LOOP.format(copies=edge)) == {0: 6, 1: 9}
    assert instructions(loops, LOOP.format(copies=edge.replace("LDGSTS.E.BYPASS.128 [", "STS [")))[1] == 12


def test_loads_of_single_elements_stay(loops):
    """A bias is read so on the aligned path."""
    assert instructions(loops, LOOP.format(copies="@!P2 LDG.E.U16 R8, [R6.64]")) == {0: 7}


INNER = """MOV R18, {start}
    inner: LDGSTS.E.BYPASS.128 [R3], [R6.64]
    {step}
    @!P2 BRA inner"""
STEPS = {
    "compared before": ("ISETP.GE.AND P2, PT, R18, 0x80, PT\nVIADD R18, R18, 0x80", "R0", 2),
    "compared behind": ("VIADD R18, R18, 0x80\nISETP.GE.AND P2, PT, R18, 0x200, PT", "R0", 4),
    "one step ahead": ("VIADD R20, R18, 0x80\nMOV R18, R20\nISETP.GE.AND P2, PT, R20, 0x80, PT", "R5", 2),
    "not equal": ("VIADD R18, R18, 0x2\nISETP.NE.AND P2, PT, R18, 0x6, PT", "RZ", 3),
    "greater than": ("IADD3 R18, R18, 0x40, RZ\nISETP.GT.AND P2, PT, R18, 0x100, PT", "R0", 5),
}


@pytest.mark.parametrize("how", STEPS)
def test_inner_loops_count_as_often_as_they_run(loops, how):
    step, start, trips = STEPS[how]
    counted = instructions(loops, LOOP.format(copies=INNER.format(step=step, start=start)))
    assert counted == {0: 6, trips: 7 + trips * (2 + len(step.splitlines()))}


def test_waiting_for_a_barrier_counts_once(loops):
    wait = "wait: SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R3], R4\n@!P2 BRA wait"
    assert instructions(loops, LOOP.format(copies=wait)) == {0: 8}


def test_bulk_copies_are_issued_lane_by_lane(loops):
    """The compiler makes a loop over the lanes of one bulk copy; how many there are is known from the kernel."""
    copies = "@P2 BRA multiply\nlanes: R2UR UR4, R3\nUBLKCP.S.G [UR4], [UR6], UR8\n@P3 BRA lanes"
    code = assemble(LOOP.format(copies=copies))
    (paths,) = loops.hot_loops(code, loops.Trips(bulk=4))
    assert {copies: path["instructions"] for copies, path in paths.items()} == {0: 7, 4: 7 + 4 * 3}


def test_a_loop_that_only_some_warps_run_counts_by_its_part(loops):
    send = "share: FADD R1, R1, R2\ntargets: STAS.64 [R3], R4\n@P3 BRA targets\n@P4 BRA share"
    code = assemble(LOOP.format(copies=send))
    (paths,) = loops.hot_loops(code, loops.Trips(sending=0.25))
    assert paths[0]["instructions"] == 6 + 0.25 * (1 + 2 + 1)


def test_fetching_operands_to_keep_is_no_part_of_an_iteration(loops):
    reload = "@P2 BRA multiply\n" + "LDG.E R8, [R6.64]\n" * 16
    assert instructions(loops, LOOP.format(copies=reload)) == {0: 6}
    assert instructions(loops, LOOP.format(copies=reload.replace("LDG.E R8", "LDS R8", 1))) == {0: 7 + 16}


def test_code_for_lanes_that_parted_is_no_part_of_a_switch(loops):
    """It stands behind the function's end, and would otherwise make a loop of what it comes back to."""
    text = LOOP.format(copies="BRA.DIV UR4, parted\nback: BRX R4 -0x50\nFMUL R1, R1, R2\nFADD R1, R1, R2")
    assert instructions(loops, text + "parted: WARPSYNC R3\nBRA back") == {0: 10}


def test_loops_that_sm_80_leaves_by_a_call(loops):
    text = LOOP.format(copies="NOP").replace(
        "@!P1 BRA head\n    EXIT", "@P1 CALL.REL.NOINC leave\n    BRA head\n    leave: EXIT"
    )
    assert instructions(loops, text) == {0: 8}


def test_code_behind_a_switch_is_found(loops):
    switch = "BRX R4 -0x50\nFADD R1, R1, R2\nBRA multiply\nFMUL R1, R1, R2\nFADD R1, R1, R3\nBRA multiply"
    assert instructions(loops, LOOP.format(copies=switch)) == {0: 10}


def test_a_loop_within_a_loop_is_the_hot_one(loops):
    """A persistent kernel goes round tiles, and within one round chunks."""
    text = "outer: NOP\n" + LOOP.format(copies="NOP").strip().removesuffix("EXIT") + "@!P3 BRA outer\nEXIT"
    assert instructions(loops, text) == {0: 7}


def row_of(budgets, **changes):
    name = "bottleneck_tile_kernel forward bf16 64,4,1,32,4,1"
    row = budgets.LoopBudget("90", name, "first product", 273, 16, 10, 4, 216, 60)
    return dataclasses.replace(row, **changes)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"instructions": 277, "copy_instructions": 220}, []),  # another compiler
        (
            {"instructions": 130, "mma": 8, "ldmatrix": 6, "copies": 2, "copy_instructions": 100, "shared_cycles": 30},
            [],
        ),
        ({"instructions": 280}, ["instructions an mma"]),
        ({"copy_instructions": 224}, ["instructions for 16 bytes copied"]),
        ({"shared_cycles": 64}, ["shared-memory cycles an mma"]),
        ({"instructions": 150, "mma": 8}, ["instructions an mma", "shared-memory cycles an mma"]),
        ({"loop": "second product"}, ["no budget"]),
    ],
)
def test_what_exceeds_a_budget_is_found(budgets, change, found):
    problems = budgets.over_budget([row_of(budgets, **change)], [row_of(budgets)])
    assert len(problems) == len(found)
    assert all(what in problem for what, problem in zip(found, problems, strict=True))


def test_the_build_check_counts_and_compares(budgets, capsys, monkeypatch):
    functions = first_product()
    monkeypatch.setattr(budgets, "read_table", lambda: [row_of(budgets)])
    assert [p for p in budgets.check_loops(functions) if "budget is" in p or "no budget" in p] == []
    assert " 273   16" in capsys.readouterr().out
    arch, mangled, code = functions[0]
    longer = code.replace("HMMA", "NOP ;\n        /*ffff*/ HMMA", 16)
    longer = "\n".join(
        re.sub(r"/\*ffff\*/", f"/*{0x10000 + 16 * number:04x}*/", line)
        for number, line in enumerate(longer.splitlines())
    )
    problems = budgets.check_loops([(arch, mangled, longer)])
    assert any("18.1 instructions an mma, the budget is 17.1" in problem for problem in problems), problems


def test_writing_keeps_the_rows_of_other_kernels(budgets, tmp_path):
    path = tmp_path / "budgets.csv"
    first, second = row_of(budgets), row_of(budgets, loop="second product", missed="copy <= 6")
    budgets.write_table([first, second], path)
    assert budgets.read_table(path) == [first, second]
    budgets.write_table([row_of(budgets, instructions=100)], path)
    assert budgets.read_table(path) == [row_of(budgets, instructions=100)]  # sizes that are no more go
    other = row_of(budgets, kernel="bottleneck_tile_kernel backward bf16 64,4,1,32,4,1")
    budgets.write_table([other], path)
    assert budgets.read_table(path) == [other, row_of(budgets, instructions=100)]


def test_the_table_covers_the_kernels_and_names_the_missed_targets(budgets):
    rows = budgets.read_table()
    assert rows == sorted(rows, key=lambda row: row.key)
    assert {row.arch for row in rows} == set(budgets.ARCHITECTURES)
    for row in rows:
        wanted = [expected.loop for expected in budgets.expected_loops(row.kernel)]
        assert {r.loop for r in rows if (r.arch, r.kernel) == (row.arch, row.kernel)} == set(wanted)
        assert ("copy" in row.missed) == (row.per_copy > budgets.COPY_TARGETS[row.arch])
        loops = [r for r in rows if (r.arch, r.kernel) == (row.arch, row.kernel)]
        over = row.arch == "90" and budgets.is_headline(row.kernel) and budgets.share_instructions(loops) > 250
        assert ("share" in row.missed) == over


def test_rows_copied_in_bulk_count_as_copies_of_16_bytes(loops, budgets):
    """A row of 512 columns is as many bytes as two copies of 16 bytes by every thread of a warp; half of them copy."""
    (expected,) = budgets.expected_loops("resident_tile_kernel forward bf16 64,512,0")
    assert (expected.copies, expected.bulk_bytes, expected.trips) == (8, 8 * 1024, loops.Trips(sending=0.125))
    paths = {
        0: loops.Counter(instructions=100, mma=64),
        8: loops.Counter(instructions=180, mma=64, bulk_copies=8, shared_cycles=10),
    }
    row = budgets.measure("90", "resident_tile_kernel forward bf16 64,512,0", expected, paths, 8)
    assert (row.instructions, row.copies, row.copy_instructions, row.per_copy) == (140, 8, 40, 5)
    assert row.shared_cycles == 10 + 4 * 8
    assert row.missed == ""
    assert budgets.share_instructions([row]) == 140 / 64 * 32


def test_the_loop_of_warps_that_only_copy_is_found(loops, budgets):
    """Around the loop over the lanes of a bulk copy; what clears a stage for once is no part of it."""
    text = """
    stage: NOP
    wait: SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R3], R4
    @!P2 BRA wait
    @P4 BRA filled
    {clear}
    filled: MOV R1, R2
    lanes: R2UR UR4, R3
    UBLKCP.S.G [UR4], [UR6], UR8
    @P3 BRA lanes
    @P1 BRA stage
    compute: LDSM.16.MT88.4 R8, [R2]
    HMMA.16816.F32.BF16 R4, R8, R12, R4
    @P1 BRA compute
    EXIT
    """
    code = assemble(text.format(clear="\n".join(["STS.128 [R1], R4"] * 16)))
    (copying,) = loops.copy_loops(code, loops.Trips(bulk=9))
    assert {n: path["instructions"] for n, path in copying.items()} == {9: 6 + 9 * 3}
    (multiplying,) = loops.hot_loops(code)
    assert multiplying[0]["instructions"] == 3
    (_, _, expected) = budgets.expected_loops("gradient_stream_kernel bf16 64")
    row = budgets.measure("90", "gradient_stream_kernel bf16 64", expected, copying, 9)
    assert (row.mma, row.per_mma, row.copies, row.per_copy) == (0, 0, 10, 3.3)
