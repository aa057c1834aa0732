"""The one command for a machine with a GPU, with steps that stand in for those of the GPU."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))
import gpu_check
import step_runner
from step_runner import Deadline, Result, Step, all_passed, limit_of, run_stages


def program(text, name="step", limit_s=60.0, **options):
    return Step(name, lambda _: [sys.executable, "-c", text], limit_s, **options)


def run(stages, tmp_path, seconds=120.0, report=lambda results, new: None):
    results = run_stages(stages, Deadline(seconds), dict(os.environ), tmp_path, report)
    return {result.name: result for result in results}


def test_a_failing_step_does_not_stop_the_others(tmp_path):
    stages = [
        [program("print('one')", "first")],
        [program("import sys; print('two'); sys.exit(3)", "second"), program("print('three')", "beside")],
        [Step("absent", lambda _: ["no-such-program-here"], 60.0)],
        [program("print('four')", "last", required=False)],
    ]
    results = run(stages, tmp_path)
    assert {name: result.status for name, result in results.items()} == {
        "first": "passed",
        "second": "failed",
        "beside": "passed",
        "absent": "failed",
        "last": "passed",
    }
    assert results["second"].words == "exit status 3"
    assert results["second"].output == "two\n"
    assert "no-such-program-here" in results["absent"].words
    assert not all_passed(list(results.values()))
    assert all_passed([results["first"], results["beside"], results["last"]])


def test_nothing_follows_where_a_needed_step_failed(tmp_path):
    results = run([[program("import sys; sys.exit(1)", "build", needed=True)], [program("", "tests")]], tmp_path)
    assert results["tests"].status == "skipped"
    assert results["tests"].words == "build did not pass"
    assert not all_passed(list(results.values()))


def test_a_step_without_its_tool_is_not_run_and_no_failure(tmp_path):
    results = run(
        [[program("", "memcheck", missing="compute-sanitizer was not found")], [program("", "next")]], tmp_path
    )
    assert results["memcheck"] == Result("memcheck", "not run", True, words="compute-sanitizer was not found")
    assert results["next"].status == "passed"
    assert all_passed(list(results.values()))


def is_running(pid):
    """Return whether a process still runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_step_that_takes_too_long_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(step_runner, "MIN_STEP_S", 0.1)
    monkeypatch.setattr(step_runner, "GRACE_S", 1.0)
    text = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # which the child inherits
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    results = run([[program(text, "slow", limit_s=6.0)], [program("print(1)", "next")]], tmp_path)
    assert results["slow"].status == "timed out"
    assert results["next"].status == "passed"
    assert not all_passed(list(results.values()))
    assert not is_running(int(results["slow"].output))


def test_a_step_may_end_in_order_when_its_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(step_runner, "MIN_STEP_S", 0.1)
    text = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('report written')"
    results = run([[program(text, "tests", limit_s=5.0)]], tmp_path)
    assert results["tests"].status == "timed out"
    assert "report written" in results["tests"].output


def test_what_does_not_fit_the_deadline_is_skipped(tmp_path):
    results = run([[program("print(1)", "late")]], tmp_path, seconds=16.0)
    assert results["late"] == Result("late", "skipped", True, words="out of time")


def test_benchmarks_share_what_is_left():
    big, small = (Step("step", lambda _: [], limit, share=share) for limit, share in ((170, 4), (120, 1)))
    assert limit_of(big, [small], 100.0) == pytest.approx(80.0)
    assert limit_of(big, [small], 1000.0) == 170
    assert limit_of(small, [], 100.0) == pytest.approx(90.0)  # time to be ended in
    assert limit_of(Step("tests", lambda _: [], 270), [big, small], 100.0) == pytest.approx(90.0)


def test_steps_of_a_stage_run_side_by_side(tmp_path):
    """Each waits for the others."""
    text = (
        "import pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not all(pathlib.Path(name).exists() for name in 'abc'): time.sleep(0.01)"
    )
    stage = [Step(name, lambda _, name=name: [sys.executable, "-c", text, name], 60.0) for name in "abc"]
    assert [result.status for result in run([stage], tmp_path).values()] == ["passed"] * 3


def test_what_a_step_has_printed_so_far_is_in_its_file(tmp_path):
    """So that it is known where all of this was killed."""
    outputs = tmp_path / "steps"
    text = f"import pathlib; print('begun', flush=True); print(pathlib.Path({str(outputs / 'slow.txt')!r}).read_text())"
    step = Step("slow", lambda _: [sys.executable, "-c", text], 60.0)
    results = run_stages([[step]], Deadline(60.0), dict(os.environ), tmp_path, lambda results, new: None, outputs)
    assert results[0].output == "begun\nbegun\n\n"


def test_long_outputs_lose_their_middle():
    assert step_runner.shortened("short") == "short"
    text = "a" + "x" * 300_000 + "z"
    short = step_runner.shortened(text)
    assert short.startswith("a")
    assert short.endswith("z")
    assert "100002 characters left out" in short


MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 2 bytes
=========     at void adapterx::cuda::bottleneck_tile_kernel<...>(...)+0x1230
=========     by thread (0,0,0) in block (0,0,0)
=========
kernel_driver: all results are finite
========= ERROR SUMMARY: 1 error
"""


def test_sanitizers_are_judged_by_status_and_place():
    judge = gpu_check.judge_sanitizer
    assert judge("memcheck", 0, "kernel_driver: all results are finite") is None
    assert "Invalid __global__ read" in judge("memcheck", gpu_check.SANITIZER_ERROR, MEMCHECK)
    assert "did not end well" in judge("memcheck", 0, "Traceback ...")
    assert "did not end well" in judge("racecheck", 1, "Unrecognized option")
    uninitialised = MEMCHECK.replace("Invalid __global__ read", "Uninitialized __global__ memory read")
    assert "Uninitialized" in judge("initcheck", gpu_check.SANITIZER_ERROR, uninitialised)
    others = uninitialised.replace("adapterx::cuda::bottleneck_tile_kernel", "cublasLt::splitKreduce_kernel")
    assert judge("initcheck", gpu_check.SANITIZER_ERROR, others) is None
    assert judge("memcheck", gpu_check.SANITIZER_ERROR, others) is not None


def test_sanitizer_commands(monkeypatch):
    for help_text, option in (("  --kernel-name arg", "--kernel-name"), ("  --kernel-regex arg", "--kernel-regex")):
        monkeypatch.setattr(gpu_check, "say", lambda command, text=help_text: text)
        command = gpu_check.sanitizer_command("compute-sanitizer", "racecheck")
        assert command[command.index(option) + 1] == "kns=adapterx"
        assert command[-3:] == [sys.executable, gpu_check.DRIVER, "--without-cublas"]
        assert "kns=adapterx" not in gpu_check.sanitizer_command("compute-sanitizer", "initcheck")
        assert gpu_check.sanitizer_command("compute-sanitizer", "memcheck")[-1] == gpu_check.DRIVER


NCU = """==PROF== Connected to process 1
kernel_driver: all results are finite
==PROF== Disconnected
"ID","Kernel Name","dram__bytes.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum"
"","","Mbyte","%","us"
"0","bottleneck_tile_kernel","268.1","81.2","77.3"
"1","weight_gradient_kernel","301.0","70.5","90.0"
"""


def test_counters_are_read_between_other_lines():
    rows = gpu_check.read_counters(NCU)
    assert [row["kernel"] for row in rows] == ["bottleneck_tile_kernel", "weight_gradient_kernel"]
    assert rows[0]["dram__throughput.avg.pct_of_peak_sustained_elapsed"] == "81.2"
    assert gpu_check.read_counters("==ERROR== ERR_NVGPUCTRPERM") == []
    step = gpu_check.ncu_step("ncu")
    assert "does not permit" in step.judge(1, "==ERROR== ERR_NVGPUCTRPERM")
    assert "no counters" in step.judge(0, "nothing")
    assert step.judge(0, NCU) is None
    assert gpu_check.ncu_step(None).missing.startswith("ncu was not found")


def fake_machine(**changes):
    found = {"gpu": "NVIDIA Fake", "architecture": "9.0", "nvcc": None, "compute_sanitizer": None, "ncu": None}
    return {**found, **changes}


def test_the_stages_name_programs_that_exist(tmp_path, monkeypatch):
    monkeypatch.delenv("ADAPTERX_LIBRARY", raising=False)
    stages = gpu_check.make_stages(fake_machine(compute_sanitizer="compute-sanitizer", ncu="ncu"), tmp_path)
    steps = [step for stage in stages for step in stage]
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        command = step.command(100.0)
        assert all(isinstance(argument, str) for argument in command)
        programs = [argument for argument in command if argument.endswith(".py")]
        assert all((gpu_check.ROOT / argument).exists() for argument in programs), command
        assert programs or step.name == "build_info"
    required = {step.name for step in steps if step.required}
    files = {path.stem for path in (gpu_check.ROOT / "tests" / "cuda").glob("test_*.py")}
    assert "test_cuda_operator" in files
    assert required == {"build", "build_info", "coverage", *files, *gpu_check.SANITIZERS}
    names = [step.name for step in steps]
    assert names.index("bench_model") < names.index("memcheck")  # a sanitizer may take whatever time is left
    command = next(step for step in steps if step.name == "bench_op_sweep").command(100.0)
    assert command[1:4] == ["benchmarks/bench_op.py", "--device", "cuda"]
    assert command[command.index("--seconds") + 1] == "75"


def test_a_library_that_is_given_is_not_built(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTERX_LIBRARY", "elsewhere.so")
    stages = gpu_check.make_stages(fake_machine(), tmp_path)
    assert stages[0][0].name == "build_info"
    assert gpu_check.environment_of(fake_machine())["ADAPTERX_LIBRARY"] == "elsewhere.so"


def test_tests_of_other_versions_are_collected_and_run(tmp_path):
    """Where a library warns, or one file cannot be imported, the others still run."""
    step = gpu_check.test_step(gpu_check.ROOT / "tests" / "cuda" / "test_cuda_errors.py", tmp_path)
    command = " ".join(step.command(100.0))
    assert "-W default" in command
    assert "--continue-on-collection-errors" in command
    assert f"--junitxml {tmp_path / 'test_cuda_errors.xml'}" in command


def test_the_environment_is_that_of_the_checkout(monkeypatch):
    monkeypatch.setenv("ADAPTERX_CUDA_PATH", "cublas")
    monkeypatch.delenv("ADAPTERX_LIBRARY", raising=False)
    environment = gpu_check.environment_of(fake_machine())
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(gpu_check.ROOT)
    assert environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert environment["ADAPTERX_CUDA"] == "1"
    assert {"ADAPTERX_CUDA_PATH", "ADAPTERX_LIBRARY"} & set(environment) == set()


JUNIT = '<testsuites><testsuite tests="{}" failures="{}" errors="0" skipped="1"/></testsuites>'


@pytest.mark.parametrize("failures", [0, 2])
def test_from_steps_to_files(failures, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "results"
    report = JUNIT.format(5, failures)
    reports = [str(folder / f"test_{name}.xml") for name in ("one", "two")]
    tests = f"import sys; [open(name, 'w').write({report!r}) for name in {reports}]; sys.exit({int(failures > 0)})"
    stages = [
        [program("print('compiling'); print('{\"cuda\": \"13.0\"}')", "build_info", needed=True)],
        [program(tests, "tests"), *gpu_check.sanitizer_steps(None)],
        [program(f"print({NCU!r})", "ncu", required=False)],
    ]
    monkeypatch.setattr(gpu_check, "make_stages", lambda machine, results: stages)
    monkeypatch.setattr(gpu_check, "describe_machine", fake_machine)
    assert gpu_check.main(["--results", str(folder), "--seconds", "100"]) == int(failures > 0)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["passed"] == (failures == 0)
    assert summary["tests"] == {"tests": 10, "failures": 2 * failures, "errors": 0, "skipped": 2}
    assert summary["build_info"] == {"cuda": "13.0"}
    assert summary["counters"][0]["kernel"] == "bottleneck_tile_kernel"
    by_name = {step["name"]: step for step in summary["steps"]}
    assert by_name["memcheck"]["status"] == "not run"
    assert "compute-sanitizer was not found" in by_name["memcheck"]["words"]
    assert by_name["tests"]["status"] == ("failed" if failures else "passed")
    assert "==== tests: " in (folder / "log.txt").read_text()
    files = ["log.txt", "steps", "summary.json", "test_one.xml", "test_two.xml"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert (folder / "steps" / "build_info.txt").read_text().startswith("compiling")
    assert "gpu_check: " + ("NOT passed" if failures else "passed") in capsys.readouterr().out


def test_a_machine_without_a_gpu_is_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "describe_machine", lambda: fake_machine(gpu=None))
    assert gpu_check.main(["--results", str(tmp_path)]) == 2
    assert "PyTorch must find a GPU, got none" in capsys.readouterr().err
