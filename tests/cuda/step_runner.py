"""Run steps one after the other, some side by side, each within its own time limit and all within one deadline."""

import dataclasses
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

GRACE_S = 5.0  # between the request to end and the end
MIN_STEP_S = 15.0  # less is not worth starting
LOG_CHARACTERS = 200_000  # of one step; what stands in the middle goes

Command = Callable[[float], list[str]]  # seconds that the step has -> arguments


@dataclasses.dataclass(frozen=True)
class Step:
    """One command.

    Args:
        name: how the summary calls it.
        command: its arguments, given the seconds that it has.
        limit_s: after so many seconds it is ended.
        required: whether its failure makes the whole fail.
        needed: whether its failure makes all later steps pointless.
        share: of the time that is left, compared with the shares of the later steps; 0: whatever the limit allows.
        environment: variables beside those of the runner.
        judge: given exit status and output, says what is wrong, or returns None; by default any status but 0 is wrong.
        missing: why it cannot run on this machine; None: it can.
    """

    name: str
    command: Command
    limit_s: float
    required: bool = True
    needed: bool = False
    share: float = 0.0
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    judge: Callable[[int, str], str | None] | None = None
    missing: str | None = None


@dataclasses.dataclass
class Result:
    """What became of a step: passed, failed, timed out, skipped (no time, or pointless) or not run (cannot)."""

    name: str
    status: str
    required: bool
    seconds: float = 0.0
    words: str = ""
    output: str = dataclasses.field(default="", repr=False)


class Deadline:
    """The moment by which everything must be over."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


def open_output(name: str, outputs: Path | None) -> IO[bytes]:
    """Open what a step prints into: a file that is still there if all of this is killed, where a folder is given."""
    if outputs is None:
        return tempfile.TemporaryFile()
    outputs.mkdir(parents=True, exist_ok=True)
    return (outputs / f"{name}.txt").open("w+b")


class Running:
    """A step that has been started."""

    def __init__(
        self, step: Step, limit_s: float, environment: dict[str, str], folder: Path, outputs: Path | None
    ) -> None:
        self.step, self.limit_s, self.start = step, limit_s, time.monotonic()
        self.file: IO[bytes] = open_output(step.name, outputs)
        self.error = ""
        self.process: subprocess.Popen | None = None
        try:
            self.process = subprocess.Popen(
                step.command(limit_s),
                cwd=folder,
                env={**environment, **step.environment},
                stdin=subprocess.DEVNULL,
                stdout=self.file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its children end with it
                preexec_fn=_hear_interrupts,
            )
        except OSError as error:
            self.error = str(error)

    def finish(self) -> Result:
        """Wait for the end, or bring it about, and judge."""
        if self.process is None:
            self.file.close()
            return Result(self.step.name, "failed", self.step.required, words=self.error)
        timed_out = False
        try:
            self.process.wait(max(0.0, self.start + self.limit_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            timed_out = True
            self._end()
        seconds = round(time.monotonic() - self.start, 1)
        self.file.seek(0)
        output = self.file.read().decode("utf-8", "replace")
        self.file.close()
        if timed_out:
            words = f"ended after {self.limit_s:.0f} s"
            return Result(self.step.name, "timed out", self.step.required, seconds, words, output)
        code = self.process.returncode
        wrong = self.step.judge(code, output) if self.step.judge else (f"exit status {code}" if code else None)
        status = "failed" if wrong else "passed"
        return Result(self.step.name, status, self.step.required, seconds, wrong or "", output)

    def _end(self) -> None:
        """Ask the step to end, which lets pytest write its report, and end it then."""
        for number, patience in ((signal.SIGINT, GRACE_S), (signal.SIGKILL, GRACE_S)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(patience)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue
        self.process.poll()


def limit_of(step: Step, later: Sequence[Step], left_s: float) -> float:
    """Return the seconds that a step may take, leaving the later steps their shares and itself time to be ended."""
    limit = min(step.limit_s, left_s - 2 * GRACE_S)
    if step.share:
        limit = min(limit, left_s * step.share / (step.share + sum(other.share for other in later)))
    return limit


def _hear_interrupts() -> None:
    """Let a step be asked to end: what a shell starts in the background inherits that interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_stage(
    stage: Sequence[Step],
    later: Sequence[Step],
    deadline: Deadline,
    environment: dict[str, str],
    folder: Path,
    outputs: Path | None = None,
) -> list[Result]:
    """Run the steps of a stage side by side."""
    results: dict[str, Result] = {}
    running = []
    for step in stage:
        limit = limit_of(step, later, deadline.left())
        if step.missing is not None:
            results[step.name] = Result(step.name, "not run", step.required, words=step.missing)
        elif limit < MIN_STEP_S:
            results[step.name] = Result(step.name, "skipped", step.required, words="out of time")
        else:
            running.append(Running(step, limit, environment, folder, outputs))
    with ThreadPoolExecutor(max(1, len(running))) as pool:
        results |= {result.name: result for result in pool.map(Running.finish, running)}
    return [results[step.name] for step in stage]


def run_stages(
    stages: Sequence[Sequence[Step]],
    deadline: Deadline,
    environment: dict[str, str],
    folder: Path,
    report: Callable[[list[Result], list[Result]], None],
    outputs: Path | None = None,
) -> list[Result]:
    """Run the stages one after the other; after each, `report` gets all results so far, and the new ones.

    What a step prints is in the file of its name in the folder `outputs` at any time.
    """
    results: list[Result] = []
    pointless = ""
    for number, stage in enumerate(stages):
        if pointless:
            new = [Result(step.name, "skipped", step.required, words=pointless) for step in stage]
        else:
            later = [step for following in stages[number + 1 :] for step in following]
            new = run_stage(stage, later, deadline, environment, folder, outputs)
            needed = {step.name for step in stage if step.needed}
            broken = [result.name for result in new if result.name in needed and result.status != "passed"]
            pointless = f"{broken[0]} did not pass" if broken else ""
        results += new
        report(results, new)
    return results


def all_passed(results: Sequence[Result]) -> bool:
    """Return whether every required step that the machine can run has passed."""
    return all(result.status in ("passed", "not run") for result in results if result.required)


def shortened(output: str) -> str:
    """Return an output whose middle is left out where it is very long."""
    if len(output) <= LOG_CHARACTERS:
        return output
    half = LOG_CHARACTERS // 2
    return f"{output[:half]}\n... {len(output) - 2 * half} characters left out ...\n{output[-half:]}"
