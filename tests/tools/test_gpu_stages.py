"""Both stages on a GPU from their beginning to their end, with fake steps: planted faults, missing tools, kills.

The runner, the order, the limits and the files are the real ones; tests/torture has the long campaign.
"""

import signal
import sys
from pathlib import Path

import pytest
from rehearsal import ROOT, Rehearsal

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))
import gpu_check
import gpu_first
import gpu_stage
from gpu_tools import SANITIZERS
from step_runner import Result, Runner


@pytest.fixture
def rehearsal(tmp_path):
    return Rehearsal(tmp_path)


def not_passed(steps):
    return {name: fact["status"] for name, fact in steps.items() if fact["status"] != "passed"}


def test_first_contact_where_all_is_well(rehearsal):
    code, steps, last = rehearsal.run("first")
    assert (code, last["passed"]) == (0, True)
    assert not_passed(steps) == {}
    names = list(steps)
    assert set(names[:2]) == {"library", "machine"}
    assert {f"check {path}" for path in gpu_first.PATHS} < set(names)
    assert names[-5:] == ["times", *(f"ncu {path}" for path in gpu_first.PROFILED), "memcheck"]
    begin = rehearsal.facts()[0]
    assert (begin["stage"], begin["commit"]) == ("gpu-first", "abc1234")
    assert rehearsal.facts("library")[0]["path"] == str(rehearsal.folder / "carried.so")
    assert rehearsal.facts("instructions")[0]["primitive"] == "ldmatrix_x4"
    assert len(rehearsal.facts("time")) == 3
    kernel = rehearsal.facts("kernel")[0]
    assert (kernel["path"], kernel["ns"], kernel["share"]) == ("tile:32x8", "77300", "81.2")
    assert "[times] begun: tests/cuda/time_paths.py" in (rehearsal.results / "log.txt").read_text()
    shown = (rehearsal.folder / "output.txt").read_text().split("NVIDIA Fake, torch")[1]
    assert "\ninstructions: 1 of 1 groups right; wrong: none\n" in shown
    assert "\ntile:64x8  2 right\n" in shown
    assert "\nforward 16384x4096x64: copy 96.0, tile:64x8 340.0\n" in shown
    assert "\nncu tile:32x8: bottleneck_tile_kernel: ns 77300, bytes 268000000, share 81.2\n" in shown
    assert "\ngpu-first: passed in " in shown


def test_all_checks_where_all_is_well(rehearsal):
    code, steps, last = rehearsal.run("check")
    assert (code, last["passed"]) == (0, True)
    assert not_passed(steps) == {}
    names = list(steps)
    files = {path.stem for path in (ROOT / "tests" / "cuda").glob("test_*.py")}
    assert {name.split()[0] for name in names if name.startswith("test_")} == files
    order = [names.index(name) for name in ("large tensors", "bench sweep", "bench model", "coverage", "memcheck")]
    assert order == sorted(order)
    assert set(names[-4:]) == set(SANITIZERS)
    assert rehearsal.facts("tests")[0]["passed"] == len(rehearsal.facts("test")) > 20
    hazards = {fact["tool"]: fact["reports"] for fact in rehearsal.facts("sanitizer")}
    assert hazards == {"memcheck": 0, "racecheck": 3, "synccheck": 0, "initcheck": 0}


def test_parts_of_all_checks_in_less_time(rehearsal):
    code, steps, _ = rehearsal.run("check", {}, "--parts", "grouped", "paths", "--seconds", "60")
    assert code == 0
    names = [name for name in steps if not name.startswith("check ")]
    assert set(names) == {"library", "machine", "bench grouped"}
    assert len(steps) == len(names) + len(gpu_first.PATHS)


def test_a_path_that_hangs_or_crashes_costs_itself_alone(rehearsal):
    plan = {"check_path.py tile:64x8": "hang", "check_path.py cublas": "crash", "wrong tile:16x8": "wrong"}
    code, steps, last = rehearsal.run("first", plan, speed=20)
    assert (code, last["passed"]) == (1, False)
    assert not_passed(steps) == {
        "check tile:64x8": "timed out",
        "check cublas": "failed",
        "check tile:16x8": "failed",
        "ncu tile:64x8": "skipped",
        "ncu cublas": "skipped",
    }
    log = (rehearsal.results / "log.txt").read_text()
    assert "[check tile:64x8] begun" in log
    assert "--without cublas,tile:64x8" in log  # the wrong one is timed, the others are left out
    assert "exit status -11" in steps["check cublas"]["words"]
    assert rehearsal.facts("time")
    shown = (rehearsal.folder / "output.txt").read_text()
    assert "tile:16x8  2 WRONG\n    plain bfloat16 [7, 72, 6]: wrong ['output'], other bits []\n" in shown
    assert "\ncheck tile:64x8: TIMED OUT ended after 60 s\n" in shown
    assert last["not_passed"]["check tile:64x8"] == "timed out"


@pytest.mark.parametrize(("planted", "status", "again"), [("fail", "failed", 5), ("once", "passed", 1)])
def test_times_that_end_badly_are_gone_on_with_and_take_nothing_along(planted, status, again, rehearsal):
    code, steps, _ = rehearsal.run("first", {"time_paths.py": planted})
    assert steps["times"]["status"] == status
    assert code == (status != "passed")
    assert steps["memcheck"]["status"] == "passed"
    assert len(rehearsal.facts("again")) == again


def test_missing_tools_are_said_in_words_and_a_library_that_does_not_work_is_built_anew(rehearsal):
    code, steps, _ = rehearsal.run("first", {"call_library.py": "once"}, tools=False)
    for name, words in {"ncu tile:32x8": "ncu was not found", "memcheck": "compute-sanitizer was not found"}.items():
        assert steps[name]["status"] == "not run"
        assert words in steps[name]["words"]
    assert steps["library"]["status"] == "failed"
    assert steps["build"]["status"] == steps["built library"]["status"] == "passed"
    assert [fact["path"] for fact in rehearsal.facts("library")] == ["built"]
    assert steps["times"]["status"] == "passed"
    assert steps["ptx_self_test"]["status"] == "not run"
    assert code == 0


def test_without_a_library_one_is_built_beside_the_ceilings(rehearsal):
    code, steps, _ = rehearsal.run("first", library=False)
    assert code == 0
    assert steps["build"]["status"] == steps["ptx_self_test"]["status"] == "passed"
    log = (rehearsal.results / "log.txt").read_text()
    assert log.index("[build] begun") < log.index("[check ")


def test_a_build_that_fails_is_the_end_and_says_why(rehearsal):
    """As where cmake is missing; what the machine is, and what it reaches, is known all the same."""
    code, _, last = rehearsal.run("check", {"build_library.py": "fail"}, library=False)
    assert code == 2
    assert last["not_passed"] == {"build": "failed"}
    assert rehearsal.facts("machine")
    assert rehearsal.facts("ceiling")
    words = rehearsal.facts("not possible")[0]["words"]
    assert "could not be built, exit status 1" in words
    assert "Traceback: planted" in words


def test_an_earlier_run_is_not_gone_on_with(rehearsal):
    assert rehearsal.run("first")[0] == 0
    before = rehearsal.place.read_bytes()
    assert rehearsal.start("first").wait() == 2
    assert "RESULTS must hold no earlier run of this stage" in (rehearsal.folder / "output.txt").read_text()
    assert rehearsal.place.read_bytes() == before
    code, _, last = rehearsal.run("check", {"build_library.py": "fail"}, library=False)  # the other one may follow
    assert (code, last["stage"]) == (2, "gpu-check")


@pytest.mark.parametrize(("number", "lines"), [(signal.SIGKILL, 40), (signal.SIGTERM, 25)])
def test_what_was_known_is_still_there_after_a_kill(number, lines, rehearsal):
    rehearsal.kill(rehearsal.start("first", {"check_path.py cublas": "hang"}), number, lines)


def test_the_steps_name_programs_that_exist(tmp_path):
    steps = [gpu_stage.BUILD, gpu_stage.MACHINE, gpu_stage.load("library"), gpu_check.large_step()]
    steps += [gpu_check.step_of_tests("test_cuda_operator", 1, 4)]
    commands = [step.command(100.0) for step in steps]
    commands += [gpu_check.benchmark_command(name, tmp_path, {"cublas"})(100.0) for name in gpu_check.BENCHMARKS]
    for command in commands:
        programs = [argument for argument in command if argument.endswith(".py")]
        assert all(isinstance(argument, str) for argument in command)
        assert all((ROOT / argument).exists() for argument in programs), command
    sweep = commands[-len(gpu_check.BENCHMARKS)]
    assert sweep[sweep.index("--seconds") + 1] == "80"
    assert sweep[sweep.index("--without") + 1] == "cublas"


def test_tests_of_other_versions_are_collected_and_run():
    """Where a library warns, or one file cannot be imported, the others still run."""
    for step in (gpu_check.step_of_tests("test_cuda_errors", 0, 1), gpu_check.large_step()):
        command = " ".join(step.command(100.0))
        assert "-W default" in command
        assert "--continue-on-collection-errors" in command
    assert gpu_check.judge_tests(5, "") is None  # no test in this part
    assert "exit status 1" in gpu_check.judge_tests(1, "")


def test_what_is_missing_for_a_build_and_for_tests_is_said(tmp_path, monkeypatch):
    build = Result("build", "timed out", True, words="ended after 200 s", output="[1/30] c++")
    assert "ended after 200 s; cmake and ninja not found" in gpu_stage.why_not_built(build, str(tmp_path))
    (tmp_path / "cmake").touch(0o755)
    (tmp_path / "ninja").touch(0o755)
    assert gpu_stage.why_not_built(build, str(tmp_path)).endswith("ended after 200 s: [1/30] c++")
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None)
    runner = Runner(100.0, {}, tmp_path)
    gpu_check.run_tests(runner, tmp_path, 0.0)
    runner.close()
    assert runner.results["tests"].words == "pytest is not installed here"


def test_what_counts_as_broken():
    judge = gpu_stage.ended_badly
    assert judge(Result("check", "failed", True, words="exit status -11"))
    assert judge(Result("check", "timed out", True, output="Timeout (0:00:20)!"))  # the driver held it
    assert not judge(Result("check", "timed out", True))  # slow
    assert not judge(Result("check", "skipped", True, words="out of time"))


def test_facts_of_another_stage_before_are_not_taken_for_those_of_this_one(tmp_path):
    lines = ['{"fact": "begin", "stage": "gpu-first"}', '{"fact": "checked", "path": "cublas"}']
    (tmp_path / "facts.jsonl").write_text("\n".join([*lines, '{"fact": "begin", "stage": "gpu-check"}', ""]))
    assert gpu_stage.facts_of(tmp_path, "checked") == []
    assert [fact["stage"] for fact in gpu_stage.facts_of(tmp_path)] == ["gpu-check"]
