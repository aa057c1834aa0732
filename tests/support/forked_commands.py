"""Commands in forks of one process that has imported everything, and signals for them at chosen moments.

A start of the command takes seconds, a fork of this process some milliseconds; what happens in it is the same.
"""

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

from adapterx.cli import trainer  # noqa: F401 - imported once here, not in every fork
from adapterx.cli.app import app

WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate")


class Command:
    """A command that runs in a fork. `code` is negative where a signal ended it, as in `subprocess`.

    Args:
        arguments: of the command.
        log: the file that gets all it prints.
        prepare: is called in the fork first.
        strike: seconds and number of a signal that it gets after so long, while `done` or `wait` is called.
    """

    def __init__(self, arguments, log, prepare=None, strike=None):
        self.log, self.code, self.strike = Path(log), None, strike
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._run([str(argument) for argument in arguments], prepare)

    def _run(self, arguments, prepare):
        code = 70  # an error of our own, with its traceback in the log
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest holds the old ones
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            faulthandler.disable()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command's `main` does
            if prepare is not None:
                prepare()
            app(arguments)
        except SystemExit as stop:
            code = stop.code or 0
        except KeyboardInterrupt:  # before the command took over; `main` ends the same way
            code = 130
        except BaseException:  # noqa: BLE001 - it ends here, as in a process of its own
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def done(self):
        """Return whether it has ended."""
        if self.code is None and self.strike is not None and time.monotonic() - self.started > self.strike[0]:
            os.kill(self.pid, self.strike[1])  # not waited for yet, so the number is still its own
            self.strike = None
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, seconds=120):
        """Wait for its end; what takes longer is killed and counts as a hang."""
        while not self.done():
            if time.monotonic() - self.started > seconds:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"hangs: {self.log.read_text()}")
            time.sleep(0.002)
        return self

    @property
    def said(self):
        """What it printed."""
        return self.log.read_text(errors="replace")

    @property
    def traceback(self):
        """Whether a raw error ended it."""
        return "Traceback" in self.said or self.code == 70


def writes_below(folder, event, arguments):
    """Return whether an audit event changes a file or a folder below this one."""
    if event == "open":
        if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event not in WRITES:
        return False
    if not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return False
    path = Path(os.fsdecode(arguments[0]))
    if not path.is_absolute() and event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # shutil.rmtree
        path = Path(os.readlink(f"/proc/self/fd/{arguments[1]}"), path)
    return path == folder or folder in path.parents


def at_write(folder, count, action):
    """Return what makes a fork act just before the n-th write below a folder."""

    def prepare():
        seen, busy = [0], [False]

        def observe(event, arguments):
            if busy[0] or seen[0] >= count:
                return
            busy[0] = True
            seen[0] += writes_below(folder, event, arguments)
            busy[0] = False
            if seen[0] == count:
                seen[0] += 1
                action()

        sys.addaudithook(observe)

    return prepare


def count_writes(folder, note):
    """Return what makes a fork write down, in a file, how many writes there were below a folder."""

    def prepare():
        seen, real = [0], os._exit

        def observe(event, arguments):
            seen[0] += writes_below(folder, event, arguments)

        def leave(code):
            note.write_text(str(seen[0]))
            real(code)

        sys.addaudithook(observe)
        os._exit = leave

    return prepare
