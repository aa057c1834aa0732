"""What runs the steps of a stage on a GPU: limits, order, what is known at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))
import facts
import step_runner
from step_runner import Result, Runner, Step

CUDA = Path(__file__).parents[1] / "cuda"


def step(text, name="step", limit_s=60.0, **options):
    return Step(name, lambda _: [sys.executable, "-S", "-c", text], limit_s, **options)


@pytest.fixture
def runner(tmp_path):
    made = Runner(120.0, dict(os.environ), tmp_path, tmp_path / "log.txt")
    yield made
    made.close()


@pytest.fixture
def quick(monkeypatch):
    for name, value in {"GRACE_S": 0.3, "MIN_STEP_S": 0.1}.items():
        monkeypatch.setattr(step_runner, name, value)


def is_running(pid):
    """Return whether a process still runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_failing_step_does_not_stop_the_others(runner):
    first = runner.run(step("print('one')", "first"))
    second = runner.run(step("import sys; print('two'); sys.exit(3)", "second"), step("print('three')", "beside"))
    third = runner.run(Step("absent", lambda _: ["no-such-program-here"], 60.0), step("", "last", required=False))
    assert [r.status for r in (*first, *second, *third)] == ["passed", "failed", "passed", "failed", "passed"]
    assert second[0].words == "exit status 3"
    assert second[0].output == "two\n"
    assert "no-such-program-here" in third[0].words
    assert not runner.all_passed()


def test_what_is_not_required_may_fail_and_what_is_missing_is_not_run(runner):
    results = runner.run(step("", "memcheck", missing="no tool"), step("1 / 0", "bench", required=False))
    assert results[0] == Result("memcheck", "not run", True, words="no tool")
    assert results[1].status == "failed"
    assert runner.all_passed()


def test_a_step_that_takes_too_long_is_ended_with_its_children(runner, quick):
    text = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # which the child inherits
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    slow, beside = runner.run(step(text, "slow", limit_s=1.0), step("print(1)", "beside"))
    assert (slow.status, beside.status) == ("timed out", "passed")
    assert not runner.all_passed()
    assert not is_running(int(slow.output))


def test_a_step_may_end_in_order_when_its_time_is_over(runner, quick):
    text = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('report written')"
    result = runner.run(step(text, limit_s=0.5))[0]
    assert result.status == "timed out"
    assert "report written" in result.output


def test_a_child_that_keeps_the_output_open_holds_nothing_up(runner):
    text = "import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])"
    assert runner.run(step(text))[0].seconds < 10


def test_time_is_kept_for_what_follows(tmp_path):
    runner = Runner(40.0, dict(os.environ), tmp_path)
    limits = []
    with pytest.raises(ZeroDivisionError):  # the command learns how long it may take
        runner.run(Step("step", lambda limit: limits.append(limit) or 1 / 0, 100.0, reserve_s=20.0))
    assert limits[0] == pytest.approx(40 - 20 - 2 * step_runner.GRACE_S, abs=0.5)
    late = runner.run(step("print(1)", "late", reserve_s=30.0))[0]
    assert late == Result("late", "skipped", True, words="out of time")
    runner.close()


def test_a_step_that_ends_badly_is_started_again(runner, tmp_path, quick):
    text = "import pathlib, sys; p = pathlib.Path('begun'); n = len(p.read_text()) if p.exists() else 0\n"
    text += "p.write_text('x' * (n + 1)); print(n); sys.exit(n < 2)"
    assert runner.run(step(text, "third", attempts=3))[0].status == "passed"
    assert (tmp_path / "begun").read_text() == "xxx"
    (tmp_path / "begun").unlink()
    assert runner.run(step(text, "second", attempts=2))[0].status == "failed"
    assert (tmp_path / "begun").read_text() == "xx"


def test_steps_run_side_by_side_and_in_the_background(runner):
    """Each waits for the others."""
    text = (
        "import pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not all(pathlib.Path(name).exists() for name in 'abc'): time.sleep(0.01)"
    )
    steps = [Step(n, lambda _, n=n: [sys.executable, "-S", "-c", text, n], 60.0) for n in "abc"]
    runner.start(steps[0])
    assert [result.status for result in runner.run(*steps[1:])] == ["passed"] * 2
    assert runner.wait("a").status == "passed"


def test_what_a_step_prints_is_in_the_log_at_once(runner, tmp_path):
    log = str(tmp_path / "log.txt")
    text = (
        f"import time\nprint('begun', flush=True)\nwhile '[slow] begun' not in open({log!r}).read(): time.sleep(0.01)"
    )
    assert runner.run(step(text, "slow"))[0].status == "passed"


def test_long_outputs_lose_their_middle_not_their_ends(runner, tmp_path):
    lines = 4_000_000 // 101
    result = runner.run(step(f"print('first'); [print('x' * 100) for _ in range({lines})]; print('last')"))[0]
    assert result.output.startswith("first\n")
    assert result.output.endswith("last\n")
    assert "bytes left out" in result.output
    assert len(result.output) < 250_000
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith("[step] first\n")
    assert log.endswith("last\n")
    assert len(log) < 3_000_000


def test_judges_see_status_and_output(runner):
    judge = {"judge": lambda code, output: None if (code, output) == (2, "fine\n") else "not so"}
    text = "import sys; print('fine'); sys.exit({})"
    results = runner.run(step(text.format(2), "good", **judge), step(text.format(1), "bad", **judge))
    assert [(r.status, r.words) for r in results] == [("passed", ""), ("failed", "not so")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_steps_end_with_the_runner(number, tmp_path):
    text = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = (
        f"import sys; sys.path.insert(0, {str(CUDA)!r})\n"
        "import os, pathlib; from step_runner import *\n"
        "runner = Runner(60.0, dict(os.environ), pathlib.Path('.'), pathlib.Path('log.txt'))\n"
        f"runner.run(Step('s', lambda _: [sys.executable, '-S', '-c', {text!r}], 60.0))"
    )
    process = subprocess.Popen([sys.executable, "-S", "-c", code], cwd=tmp_path)
    log = tmp_path / "log.txt"
    while not (log.exists() and log.read_text().endswith("\n")):
        time.sleep(0.01)
    pid = int(log.read_text().split("]")[1])
    assert is_running(pid)
    process.send_signal(number)
    process.wait()
    end = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_running(pid)


# --- facts


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(facts.PLACE, str(tmp_path / "facts.jsonl"))
    return tmp_path / "facts.jsonl"


def test_facts_are_json_whatever_they_hold(place, capsys):
    facts.write_fact("odd", nan=float("nan"), path=Path("a"), nested={"x": [float("inf"), (1, 2.5)]}, none=None)
    facts.write_fact("silent", shown=False)
    found = facts.read_facts(place)
    assert found[0] | {"at_s": 0} == {
        **{"fact": "odd", "at_s": 0, "nan": "nan", "path": "a", "nested": {"x": ["inf", [1, 2.5]]}, "none": None}
    }
    for line in place.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert [fact["fact"] for fact in facts.read_facts(place, "silent")] == ["silent"]
    assert "silent" not in capsys.readouterr().out


def test_a_line_that_was_cut_off_hides_no_other(place):
    facts.write_fact("one")
    with place.open("a") as file:
        file.write('{"fact": "half')
    assert [fact["fact"] for fact in facts.read_facts(place)] == ["one"]
    facts.write_fact("two")
    facts.write_fact("three")
    assert [fact["fact"] for fact in facts.read_facts(place)] == ["one", "two", "three"]


def test_a_full_disk_ends_nothing(monkeypatch, capsys):
    monkeypatch.setenv(facts.PLACE, "/dev/full")
    facts.write_fact("one", value=1)
    output = capsys.readouterr()
    assert '"value": 1' in output.out
    assert "not written" in output.err


def test_facts_of_many_processes_stay_whole(place):
    code = f"import sys; sys.path.insert(0, {str(CUDA)!r}); import facts\n"
    code += "[facts.write_fact('f', who=sys.argv[1], text='x' * 5000, shown=False) for _ in range(30)]"
    processes = [subprocess.Popen([sys.executable, "-S", "-c", code, str(n)]) for n in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert len(facts.read_facts(place)) == len(place.read_text().splitlines()) == 120
