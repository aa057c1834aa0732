"""The check of the compiled CUDA kernels (`make cuda-check`): it must see what it is there to see."""

import importlib
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "cuda"


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)


@pytest.fixture
def report():
    return importlib.import_module("kernel_report")


@pytest.fixture
def check():
    return importlib.import_module("check_extension")


TILE = (
    "_ZN8adapterx4cuda22bottleneck_tile_kernelINS0_10TileConfigI13__nv_bfloat16Li64ELi4ELi1ELi32ELi4ELb0EEE"
    "NS0_13ForwardMiddleIS3_EEEEvv"
)
PTXAS = """
ptxas info    : Compiling entry function '{name}' for 'sm_{arch}'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers
"""


def ptxas(arch="90", registers=93, stack=0, stores=0, loads=0):
    return PTXAS.format(name=TILE, arch=arch, registers=registers, stack=stack, stores=stores, loads=loads)


def test_the_report_of_ptxas_is_read(report):
    kernels = report.parse_report(ptxas("80") + ptxas("90", registers=96))
    assert [(k.arch, k.registers) for k in kernels] == [("80", 93), ("90", 96)]
    assert kernels[0].name == "bottleneck_tile_kernel forward bf16 64,4,1,32,4,0"
    assert report.check_resources(kernels) == []


@pytest.mark.parametrize("what", ["stack", "stores", "loads"])
def test_spills_and_stack_are_found(report, what):
    problems = report.check_resources(report.parse_report(ptxas("80") + ptxas("90", **{what: 8})))
    assert len(problems) == 1
    assert problems[0].startswith("sm_90 bottleneck_tile_kernel forward bf16")


SASS = ["HMMA.16816.F32.BF16 R4, R8, R2, R4", "LDSM.16.M88.4 R4, [R2]", "LDGSTS.E.BYPASS.128 [R9], [R2.64]"]
SASS += ["STG.E.128 desc[UR4][R2.64], R4"]


@pytest.mark.parametrize("left_out", [None, *range(len(SASS))])
def test_missing_instructions_are_found(report, left_out):
    lines = [line for number, line in enumerate(SASS) if number != left_out]
    functions = report.split_sass(f"\narch = sm_90\n\t\tFunction : {TILE}\n" + "\n".join(lines))
    assert [(arch, name) for arch, name, _ in functions] == [("90", TILE)]
    assert len(report.check_sass(functions)) == (0 if left_out is None else 1)


@pytest.mark.parametrize("instruction", ["LDL.64 R2, [R1]", "STL [R1+0x4], R2"])
def test_local_memory_is_found(report, instruction):
    functions = report.split_sass(f"\narch = sm_90\n\t\tFunction : {TILE}\n" + "\n".join([*SASS, instruction]))
    assert [problem.split(": ")[1] for problem in report.check_sass(functions)] == ["local memory"]


def test_reports_of_an_earlier_build_are_kept(report, check, tmp_path):
    log = tmp_path / "build.log"
    log.write_text(
        f"[1/3] nvcc -c /x/forward.cu -o f.o{ptxas()}[2/3] nvcc -c /x/backward.cu -o b.o{ptxas()}", encoding="utf-8"
    )
    check.keep_reports(log, tmp_path / "reports")
    log.write_text(f"[1/1] nvcc -c /x/forward.cu -o f.o{ptxas(registers=100)}", encoding="utf-8")
    check.keep_reports(log, tmp_path / "reports")
    registers = {p.stem: report.parse_report(p.read_text())[0].registers for p in (tmp_path / "reports").iterdir()}
    assert registers == {"forward": 100, "backward": 93}


def test_an_environment_that_cannot_be_made_fails_and_says_what_is_not_checked(check, tmp_path, monkeypatch):
    def run(command, **_):
        failed = "pip" in command
        return subprocess.CompletedProcess(command, int(failed), "", "no such package" if failed else "")

    monkeypatch.setattr(check.subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"(?s)no such package.*CUDA build of torch.*NOT checked"):
        check.environment(tmp_path / "venv")
