"""Run functions in processes of their own, side by side, and get back what they return."""

import json
import os
import signal
import sys
import time


class Fork:
    """A child process that runs one function, whose result, which JSON must hold, comes back through a pipe."""

    def __init__(self, task):
        reading, writing = os.pipe()
        # An interrupt within the hooks that libraries run in a new child would be printed and forgotten.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.pid = os.fork()
        if self.pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self.pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                os.close(reading)
                with os.fdopen(writing, "w") as pipe:
                    json.dump(task(), pipe)
                status = 0
            except KeyboardInterrupt:
                status = 130
            finally:
                os._exit(status)
        os.close(writing)
        self.pipe = os.fdopen(reading)

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    def wait(self):
        """Return the exit status as `os.waitstatus_to_exitcode` gives it, and the result, None if there is none."""
        with self.pipe:
            text = self.pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return status, json.loads(text) if status == 0 else None


def until(folder, work):
    """Return a task that does `work()` again and again until `stop(folder)`, and tells what it returned each time."""

    def task():
        results = []
        while not (folder / "stop").exists():
            results.append(work())
        return results

    return task


def stop(folder):
    (folder / "stop").touch()


def meanwhile(tasks, folder, seconds):
    """Run tasks made by `until` for some seconds; return what each returned."""
    forks = [Fork(task) for task in tasks]
    time.sleep(seconds)
    stop(folder)
    done = [fork.wait() for fork in forks]
    assert [status for status, _ in done] == [0] * len(tasks)
    return [results for _, results in done]


def write_points(folder, count, number):
    """Send this process a signal before the `count`-th operation on a file in the folder."""
    seen = [0]

    def observe(event, args):
        if event in ("open", "os.rename", "os.remove", "os.chmod", "os.mkdir", "os.truncate"):
            inside = any(str(a).startswith(str(folder)) for a in args[:2] if isinstance(a, (str, os.PathLike)))
            reading = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
            if inside and not reading:
                seen[0] += 1
                if seen[0] == count:
                    os.kill(os.getpid(), number)

    sys.addaudithook(observe)
