"""Kill `adapterx train` at chosen moments, resume it, and print as JSON what came out. Started by test_cli_resume.py.

    python crash_runner.py MODEL DATA FOLDER

One process imports everything once; every run is a fork of it, so that a kill costs a second and not ten.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from adapterx.cli import (
    inspection,
    trainer,  # noqa: F401 - imported once here, not in every fork
)
from adapterx.cli import train as train_module
from adapterx.cli.options import TrainOptions
from adapterx.errors import ConfigError


def fork_and_run(task: Callable[[], None], prepare: Callable[[], None] = lambda: None) -> int:
    """Run the task in a fork; return its exit status as `os.waitpid` gives it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            prepare()
            task()
            status = 0
        except ConfigError as error:
            status = 3 if "nothing to resume" in str(error) else 2
            print(error, file=sys.stderr)
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def kill_at_sync(count: int) -> None:
    """Die at the n-th flush of a file or folder, that is, in the middle of writing something."""
    real, seen = os.fsync, [0]

    def counting(handle: int) -> None:
        real(handle)
        seen[0] += 1
        if seen[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = counting


def outcome(run: Path) -> dict[str, str]:
    names = ("adapter_model.safetensors", "head_model.safetensors", "metrics.json")
    found = {name: (run / name).read_bytes() for name in names}
    metrics = json.loads(found["metrics.json"])
    found["metrics.json"] = json.dumps(
        [metrics["accuracy"], metrics["loss"], metrics["history"]], sort_keys=True
    ).encode()
    leftovers = [path.name for path in run.iterdir() if path.name.startswith(".") or path.name == "checkpoints"]
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} | {"left": str(leftovers)}


def main() -> None:
    model, data, folder = sys.argv[1:4]
    torch.set_num_threads(1)

    def run(name: str, *, resume: bool) -> None:
        given = {"model": model, "data": data, "output": Path(folder, name), "epochs": 2, "batch_size": 8}
        shape = {"bottleneck_dim": 4, "dropout": 0.1}
        train_module.train(TrainOptions(**given, resume=resume, adapter_values=shape))

    start = time.perf_counter()
    assert fork_and_run(lambda: run("straight", resume=False)) == 0
    seconds = time.perf_counter() - start
    draw = random.Random(20190616)
    moments = [("sync", count) for count in (1, 2, *sorted(draw.sample(range(3, 80), 6)))]
    moments += [("time", draw.uniform(0.2, 0.6) * seconds) for _ in range(2)]
    report = {"straight": outcome(Path(folder, "straight")), "cut": {}}
    for kind, moment in moments:
        name = f"{kind}-{moment:.3f}"
        prepare = {
            "sync": lambda moment=moment: kill_at_sync(moment),
            # The default action of SIGALRM is to end the process where it stands, as SIGKILL does.
            "time": lambda moment=moment: signal.setitimer(signal.ITIMER_REAL, moment) and None,
        }[kind]
        status = fork_and_run(lambda name=name: run(name, resume=False), prepare)
        killed = os.WIFSIGNALED(status)
        if killed:
            status = fork_and_run(lambda name=name: run(name, resume=True))
            again = os.waitstatus_to_exitcode(status)
            if again == 3:  # killed before anything was begun, or after everything was done
                complete = Path(folder, name, "run.json").exists()
                inspect = lambda name=name: inspection.describe(str(Path(folder, name)))  # noqa: E731
                status = fork_and_run(inspect if complete else lambda name=name: run(name, resume=False))
        code = os.waitstatus_to_exitcode(status)
        report["cut"][name] = {"killed": killed, "code": code, **(outcome(Path(folder, name)) if code == 0 else {})}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
