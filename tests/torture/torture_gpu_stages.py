"""The stages on a GPU without one: killed at any moment, with steps that hang, and with the emulated operators."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from emulator_build import build_emulated_operators
from rehearsal import ROOT, Rehearsal

# What may hang, and what must have an end all the same.
STEPS = {
    "first": ("call_library.py", "check_path.py auto", "check_path.py cublas", "time_paths.py", "--target", "--paths"),
    "check": ("test_cuda_operator", "tests/cuda -W", "--sweep", "bench_grouped", "--coverage", "kernel_driver"),
}
LIMITS = {"first": 200, "check": 500}  # seconds
SPEED = 20


def fresh(folder, number):
    (folder / str(number)).mkdir()
    return Rehearsal(folder / str(number))


@pytest.mark.parametrize("stage", STEPS)
def test_killed_at_any_moment(stage, tmp_path, times, figure):
    begin = time.monotonic()
    code, _, _ = fresh(tmp_path, "whole").run(stage)
    whole = time.monotonic() - begin
    assert code == 0
    rng, known = random.Random(0), []
    for number in range(times(60)):
        rehearsal = fresh(tmp_path, number)
        process = rehearsal.start(stage)
        time.sleep(rng.uniform(0.1, 1.1) * whole)
        rehearsal.kill(process, rng.choice([signal.SIGKILL, signal.SIGTERM]), 0, ended=True)
        known.append(len(rehearsal.facts()))
    figure(f"{stage}: {len(known)} kills, {min(known)} to {max(known)} facts known, none lost, no process left")


@pytest.mark.parametrize(("stage", "step"), [(stage, step) for stage, steps in STEPS.items() for step in steps])
def test_whatever_hangs_the_end_comes_in_time(stage, step, tmp_path, figure):
    rehearsal = Rehearsal(tmp_path)
    begin = time.monotonic()
    code, steps, last = rehearsal.run(stage, {step: "hang"}, speed=SPEED)
    seconds = (time.monotonic() - begin) * SPEED
    late = [name for name, fact in steps.items() if fact["status"] == "timed out"]
    assert late, step
    assert last["fact"] == "end"
    assert seconds < LIMITS[stage] + SPEED  # starting Python is not sped up
    figure(f"{stage}, {step} hangs: {seconds:.0f} s, exit status {code}, timed out: {', '.join(late)}")


def emulated(stage, folder):
    """Start a stage with its real programs, on the processor, with the emulated operators and more patience."""
    settings = {"ADAPTERX_TEST_DEVICE": "cpu", "ADAPTERX_LIBRARY": str(build_emulated_operators())}
    # Without nvcc: a compiler that works for the self-test of the instructions outlives whoever started it by seconds.
    settings |= {"FAKE_STEPS": "0", "FAKE_SPEED": "0.2", "FAKE": str(folder.parent), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(ROOT / "tests" / "support" / "rehearse_stage.py"), stage, "--results", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.DEVNULL)


def test_first_contact_with_the_emulated_operators(tmp_path, figure):
    rehearsal = Rehearsal(tmp_path)
    begin = time.monotonic()
    emulated("first", rehearsal.results).wait()
    rehearsal.check_files()
    checks = rehearsal.facts("check")
    assert {fact["ok"] for fact in checks} <= {True, "refused"}
    assert len(checks) > 40
    assert rehearsal.facts("time")
    figure(f"{time.monotonic() - begin:.0f} s, {len(checks)} checks, {len(rehearsal.facts('time'))} times")


def collected():
    """Return the names of all tests in tests/cuda, as pytest sees them here."""
    command = [sys.executable, "-m", "pytest", "tests/cuda", "--collect-only", "-q", "-p", "no:cacheprovider"]
    env = {**os.environ, "ADAPTERX_TEST_DEVICE": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return {line.removeprefix("tests/cuda/") for line in done.stdout.splitlines() if line.startswith("tests/cuda/")}


def test_all_checks_with_the_emulated_operators(tmp_path, figure):
    """The parts of the tests are together all of them; what needs a GPU is said to fail, and nothing else does."""
    rehearsal = Rehearsal(tmp_path)
    begin = time.monotonic()
    emulated("check", rehearsal.results).wait()
    rehearsal.check_files()
    tests = [fact["name"] for fact in rehearsal.facts("test")]
    assert sorted(tests) == sorted(collected())
    assert {fact["outcome"] for fact in rehearsal.facts("test")} == {"passed", "skipped"}
    failed = {fact["name"] for fact in rehearsal.facts("step") if fact["status"] in ("failed", "timed out")}
    assert all(name.startswith("bench ") for name in failed), failed
    figure(f"{time.monotonic() - begin:.0f} s, {len(tests)} tests")


def test_first_contact_killed_every_few_seconds(tmp_path, times, figure):
    known = []
    for number, moment in enumerate(itertools.islice(itertools.count(3, 5), times(12))):
        rehearsal = fresh(tmp_path, number)
        process = emulated("first", rehearsal.results)
        time.sleep(moment)
        rehearsal.kill(process, signal.SIGKILL, 0, ended=True)
        known.append(len(rehearsal.facts()))
    figure(f"killed after 3, 8, 13 ... s: {known} facts known")
