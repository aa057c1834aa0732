"""Run a stage on a GPU with fake steps (fake_steps.py): all of it is real but what it starts.

    python tests/support/rehearse_stage.py first --results FOLDER     # or check

FAKE_SPEED=20 makes twenty of its seconds of one, so that what hangs costs little. FAKE_STEPS=0 starts the real ones,
for which FAKE_SPEED=0.2 has patience.
"""

import os
import shutil
import sys
import time
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cuda"))
import gpu_machine  # noqa: E402

gpu_machine.find_tool = shutil.which  # and not what this machine has elsewhere

import gpu_check  # noqa: E402
import gpu_first  # noqa: E402
import step_runner  # noqa: E402

STAGES = {"first": gpu_first, "check": gpu_check}


def main() -> int:
    stage, *arguments = sys.argv[1:]
    speed = float(os.environ.get("FAKE_SPEED", "1"))
    if os.environ.get("FAKE_STEPS") != "0":
        gpu_machine.PYTHON[:] = [sys.executable, "-S", "-E", str(HERE / "fake_steps.py")]
    step_runner.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() * speed)
    step_runner.POLL_S = 0.01
    gpu_check.find_spec = lambda name: name  # without its packages Python starts quickly
    return STAGES[stage].main(arguments)


if __name__ == "__main__":
    sys.exit(main())
