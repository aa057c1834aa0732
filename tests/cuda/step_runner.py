"""Run steps, one after the other or side by side, each within its own time limit and all within one deadline.

One loop starts the processes, reads what they print and ends those whose time is over; there are no threads. What a
step prints stands in the log as soon as it is printed, and what became of it is a fact (facts.py) as soon as that is
known: where all of this is killed, nothing known is lost, and the steps end with it.
"""

import contextlib
import ctypes
import dataclasses
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from facts import write_fact

GRACE_S = 3.0  # between the request to end and the end
MIN_STEP_S = 5.0  # less is not worth starting
POLL_S = 0.05
KEPT_BYTES = 100_000  # of a step's output, from its beginning and from its end
LOGGED_BYTES = 2_000_000  # of a step's output, in the log
SHOWN_BYTES = 420  # of a fact that a step prints
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1

Command = Callable[[float], list[str]]  # seconds that the step has -> arguments


@dataclasses.dataclass(frozen=True)
class Step:
    """One command.

    Args:
        name: how facts and log call it.
        command: its arguments, given the seconds that it has.
        limit_s: after so many seconds it is ended.
        required: whether its failure makes the whole fail.
        reserve_s: seconds that must be left for what follows it.
        attempts: how often it may be started, where it ends badly; it must know what it has done already.
        environment: variables beside those of the runner.
        judge: given exit status and output, says what is wrong, or returns None; by default any status but 0 is wrong.
        missing: why it cannot run on this machine; None: it can.
    """

    name: str
    command: Command
    limit_s: float
    required: bool = True
    reserve_s: float = 0.0
    attempts: int = 1
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    judge: Callable[[int, str], str | None] | None = None
    missing: str | None = None


@dataclasses.dataclass
class Result:
    """What became of a step: passed, failed, timed out, skipped (no time left, or pointless) or not run (cannot)."""

    name: str
    status: str
    required: bool
    seconds: float = 0.0
    words: str = ""
    output: str = dataclasses.field(default="", repr=False)


class Output:
    """What a step has printed: its beginning and its end are kept, all but very much of it goes to the log."""

    def __init__(self, name: str, log: BinaryIO | None) -> None:
        self.name, self.log = name.encode(), log
        self.head, self.tail, self.line, self.length = b"", b"", b"", 0

    def add(self, data: bytes) -> None:
        room = max(0, KEPT_BYTES - len(self.head))
        self.head += data[:room]
        self.tail = (self.tail + data[room:])[-KEPT_BYTES:]
        *lines, self.line = (self.line + data).split(b"\n")
        for line in lines:
            self._write(line)
        self.length += len(data)

    def close(self) -> None:
        if self.line:
            self._write(self.line)
        if self.length > LOGGED_BYTES:
            self._to_log(b"... the rest was too long; it ends with\n" + self.tail[-2000:].rstrip())

    def text(self) -> str:
        """Return what is kept; says where something is left out."""
        left_out = self.length - len(self.head) - len(self.tail)
        middle = f"\n... {left_out} bytes left out ...\n".encode() if left_out > 0 else b""
        return (self.head + middle + self.tail).decode("utf-8", "replace")

    def _write(self, line: bytes) -> None:
        if self.length <= LOGGED_BYTES:
            self._to_log(line)
        if line.startswith(b'{"fact"'):
            print(line[:SHOWN_BYTES].decode("utf-8", "replace"), flush=True)

    def _to_log(self, line: bytes) -> None:
        if self.log is not None:
            with contextlib.suppress(OSError):  # a full disk ends no step
                self.log.write(b"[" + self.name + b"] " + line + b"\n")


class Running:
    """A step that has been started."""

    def __init__(self, step: Step, limit_s: float, environment: dict[str, str], folder: Path, output: Output) -> None:
        self.step, self.limit_s, self.output = step, limit_s, output
        self.start = time.monotonic()
        self.asked = self.killed = False
        self.process = subprocess.Popen(
            step.command(limit_s),
            cwd=folder,
            env={**environment, **step.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_become_a_step,
        )
        os.set_blocking(self.process.stdout.fileno(), False)

    def read(self) -> bool:
        """Take what has been printed; False: nothing more can come."""
        try:
            data = os.read(self.process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        self.output.add(data)
        return bool(data)

    def over(self) -> bool:
        """Return whether it has ended; bring the end about where its time is over."""
        if self.process.poll() is not None:
            return True
        late = time.monotonic() - self.start - self.limit_s
        if late > 0 and not self.asked:
            self.asked = True
            self.send(signal.SIGINT)  # which lets pytest and the benchmarks say where they were
        elif late > GRACE_S and not self.killed:
            self.killed = True
            self.send(signal.SIGKILL)
        return late > 2 * GRACE_S  # the driver may hold it; it is left behind

    def send(self, number: int) -> None:
        """Send a signal to the step and its children."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def result(self) -> Result:
        """Judge; children that are left are ended."""
        self.send(signal.SIGKILL)
        while self.read_rest():
            pass
        self.process.stdout.close()
        self.output.close()
        step, seconds, output = self.step, round(time.monotonic() - self.start, 1), self.output.text()
        if self.asked:
            words = f"ended after {self.limit_s:.0f} s"
            return Result(step.name, "timed out", step.required, seconds, words, output)
        code = self.process.returncode
        wrong = step.judge(code, output) if step.judge else (f"exit status {code}" if code else None)
        return Result(step.name, "failed" if wrong else "passed", step.required, seconds, wrong or "", output)

    def read_rest(self) -> bool:
        """Take what is still in the pipe, without waiting for children that keep it open."""
        before = self.output.length
        return self.read() and self.output.length > before


def _become_a_step() -> None:
    """Make a group of its own, so that its children end with it, which hears interrupts and dies with the runner.

    What a shell starts in the background inherits that interrupts are ignored.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Runner:
    """Runs steps within `seconds`, in `folder`, with `environment`; what they print goes to the file `log`."""

    def __init__(self, seconds: float, environment: dict[str, str], folder: Path, log: Path | None = None) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds
        self.environment, self.folder = environment, folder
        self.log = log.open("ab", buffering=0) if log else None
        self.selector = selectors.DefaultSelector()
        self.running: dict[str, Running] = {}
        self.results: dict[str, Result] = {}

    def left(self) -> float:
        """Return the seconds until everything must be over."""
        return self.end - time.monotonic()

    def run(self, *steps: Step) -> list[Result]:
        """Run the steps side by side until all have ended."""
        for step in steps:
            self.start(step)
        return [self.wait(step.name) for step in steps]

    def start(self, step: Step) -> None:
        """Start a step, which then runs beside all others; `wait` gives its result."""
        limit = min(step.limit_s, self.left() - step.reserve_s - 2 * GRACE_S)
        if step.missing is not None:
            self._settle(Result(step.name, "not run", step.required, words=step.missing))
        elif limit < MIN_STEP_S:
            self._settle(Result(step.name, "skipped", step.required, words="out of time"))
        else:
            self._launch(step, limit)

    def skip(self, step: Step, words: str) -> None:
        """Leave a step out, and say why."""
        self._settle(Result(step.name, "skipped", step.required, words=words))

    def wait(self, name: str) -> Result:
        """Serve all that runs until this step has ended."""
        while name not in self.results:
            for key, _ in self.selector.select(POLL_S):
                if not key.data.read():
                    self.selector.unregister(key.fileobj)
            for running in list(self.running.values()):
                if running.over():
                    self._collect(running)
        return self.results[name]

    def close(self) -> None:
        """End all that still runs."""
        for running in self.running.values():
            running.send(signal.SIGKILL)
        for running in list(self.running.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(GRACE_S)
            self._forget(running)
            result = running.result()
            result.status, result.words = "failed", "ended with the whole"
            self._settle(result)
        self.selector.close()
        if self.log is not None:
            self.log.close()

    def all_passed(self) -> bool:
        """Return whether every required step that the machine can run has passed."""
        return all(result.status in ("passed", "not run") for result in self.results.values() if result.required)

    def _launch(self, step: Step, limit_s: float) -> None:
        try:
            running = Running(step, limit_s, self.environment, self.folder, Output(step.name, self.log))
        except OSError as error:
            self._settle(Result(step.name, "failed", step.required, words=str(error)))
            return
        self.running[step.name] = running
        self.selector.register(running.process.stdout, selectors.EVENT_READ, running)

    def _collect(self, running: Running) -> None:
        """Take the result of a step that has ended, or start it once more."""
        self._forget(running)
        step, result = running.step, running.result()
        limit = running.limit_s - result.seconds
        if result.status == "failed" and step.attempts > 1 and limit >= MIN_STEP_S:
            write_fact("again", name=step.name, words=result.words[:600])
            self._launch(dataclasses.replace(step, attempts=step.attempts - 1), limit)
        else:
            self._settle(result)

    def _forget(self, running: Running) -> None:
        del self.running[running.step.name]
        with contextlib.suppress(KeyError):  # it had closed its output before
            self.selector.unregister(running.process.stdout)

    def _settle(self, result: Result) -> None:
        self.results[result.name] = result
        facts = {"name": result.name, "status": result.status, "seconds": result.seconds, "words": result.words[:600]}
        write_fact("step", **facts, required=result.required)
