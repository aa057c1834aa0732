"""What both stages on a GPU share: results folder, facts, the library that is used, and the end of the whole.

A library that ADAPTERX_LIBRARY names is used if it loads and computes here; else it is built in place for this GPU, in
the background while nothing needs it yet.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from facts import BEGIN, PLACE, read_facts, write_fact
from gpu_machine import ROOT, environment_of_steps, python
from show_facts import text_of
from step_runner import Result, Runner, Step

FACTS = "facts.jsonl"
CARRIED = "ADAPTERX_LIBRARY"
BUILD_S = 200.0


def program(name: str, *arguments: str) -> Callable[[float], list[str]]:
    """Return the command of a program of tests/cuda that needs not know how long it may take."""
    return lambda _: python(f"tests/cuda/{name}", *arguments)


BUILD = Step("build", lambda _: python("distribution/build_library.py"), BUILD_S)
MACHINE = Step("machine", program("gpu_machine.py"), 60.0)


def load(name: str, **options: object) -> Step:
    """Return the step that loads the library and calls it once."""
    return Step(name, program("call_library.py"), 60.0, **options)


class NotPossible(Exception):
    """Nothing can be found out here; the message says why."""


def have_machine_and_library(runner: Runner) -> None:
    """Find a GPU, measure what it reaches, and have a library that works on it.

    Raises:
        NotPossible: one of them is missing.
    """
    carried = CARRIED in runner.environment
    runner.start(load("library", required=False) if carried else BUILD)
    machine = runner.run(MACHINE)[0]
    if machine.status != "passed" and "must find a GPU" in machine.output:
        raise NotPossible("PyTorch must find a GPU, got none")
    if carried:
        if runner.wait("library").status == "passed":
            return
        write_fact("fallback", words=f"{runner.environment.pop(CARRIED)} does not work here: one is built")
        runner.start(BUILD)
    if runner.wait("build").status != "passed":
        raise NotPossible(why_not_built(runner.results["build"], runner.environment["PATH"]))
    if runner.run(load("built library"))[0].status != "passed":
        raise NotPossible("the library that was built does not work")


def why_not_built(build: Result, path: str) -> str:
    """Return words for a build that has not come to a good end."""
    missing = [tool for tool in ("cmake", "ninja") if not shutil.which(tool, path=path)]
    tools = f"; {' and '.join(missing)} not found, which the build needs" if missing else ""
    return f"the library could not be built, {build.words}{tools}: {build.output[-600:]}"


def run_stage(name: str, seconds: float, results: Path, work: Callable[[Runner, Path], None]) -> int:
    """Do the work of a stage within so many seconds; return the exit status.

    Whatever happens, steps are ended, and the last fact says how it went.
    """
    folder = results.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(fact["stage"] == name for fact in read_facts(folder / FACTS, "begin")):
        # What has been measured is not measured again: it would pass for that of today.
        print(f"{name}: RESULTS must hold no earlier run of this stage, got {folder}", file=sys.stderr, flush=True)
        return 2
    begin = time.time()
    os.environ |= {PLACE: str(folder / FACTS), BEGIN: str(begin)}
    environment = environment_of_steps()
    environment |= {key: os.environ[key] for key in (PLACE, BEGIN)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    write_fact("begin", stage=name, seconds=seconds, commit=environment["ADAPTERX_COMMIT"])
    runner = Runner(seconds, environment, ROOT, folder / "log.txt")
    code = 1
    try:
        work(runner, folder)
        code = 0 if runner.all_passed() else 1
    except NotPossible as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        write_fact("not possible", words=str(error))
        code = 2
    except KeyboardInterrupt:
        write_fact("interrupted", left_s=round(runner.left(), 1))
    finally:
        runner.close()
        words = {result.name: result.status for result in runner.results.values() if result.status != "passed"}
        write_fact("end", stage=name, passed=code == 0, seconds=round(time.time() - begin, 1), not_passed=words)
        show(folder)
    return code


def show(folder: Path) -> None:
    """Print what was found out, for whoever sees the end of the output only."""
    try:
        print(text_of(facts_of(folder)), flush=True)
    except (KeyError, TypeError) as error:  # facts of another version
        print(f"these facts cannot be shown: {error!r}", flush=True)


def check_paths(runner: Runner, folder: Path, paths: Sequence[str], reserve_s: float, *others: Step) -> set[str]:
    """Check every path, and do other steps, side by side; return the paths that hang, crash or break their context."""
    steps = {path: Step(f"check {path}", program("check_path.py", path), 60.0, reserve_s=reserve_s) for path in paths}
    runner.run(*others, *steps.values())
    ended = {fact["path"] for fact in facts_of(folder, "checked")}
    return {path for path, step in steps.items() if path not in ended and ended_badly(runner.results[step.name])}


def ended_badly(result: Result) -> bool:
    """Return whether a check that did not come to its end hung or crashed; it may have been slow only."""
    return result.status == "failed" or (result.status == "timed out" and "Timeout (" in result.output)


def facts_of(folder: Path, kind: str | None = None) -> list[dict]:
    """Return the facts, all or of a kind, that this stage has written so far; another one may stand before it."""
    facts = read_facts(folder / FACTS)
    begin = max((number for number, fact in enumerate(facts) if fact["fact"] == "begin"), default=0)
    return [fact for fact in facts[begin:] if kind in (None, fact["fact"])]
