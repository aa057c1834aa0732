"""Run a stage on a GPU with fake steps and in a fraction of its time: all of it is real but what it starts.

    python tests/support/rehearse_stage.py first --results FOLDER     # or check
"""

import dataclasses
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cuda"))
import gpu_check  # noqa: E402
import gpu_first  # noqa: E402
import gpu_machine  # noqa: E402
import step_runner  # noqa: E402

PACE = 0.03  # of the time that a step may take
STAGES = {"first": gpu_first, "check": gpu_check}


class FastRunner(step_runner.Runner):
    """A runner whose steps have little time."""

    def start(self, step: step_runner.Step) -> None:
        super().start(dataclasses.replace(step, limit_s=step.limit_s * PACE, reserve_s=step.reserve_s * PACE))


def main() -> int:
    stage, *arguments = sys.argv[1:]
    gpu_machine.PYTHON[:] = [sys.executable, "-S", "-E", str(HERE / "fake_steps.py")]
    step_runner.GRACE_S, step_runner.MIN_STEP_S, step_runner.POLL_S = 0.2, 0.05, 0.01
    sys.modules["gpu_stage"].Runner = FastRunner
    return STAGES[stage].main([*arguments, "--seconds", str(STAGES[stage].SECONDS * PACE + 2.0)])


if __name__ == "__main__":
    sys.exit(main())
