"""The emulator itself: what it must let pass and what it must stop."""

import subprocess

from emulator_build import build_scenarios


def test_right_kernels_pass_and_faulty_ones_are_stopped():
    """Every small kernel of tests/emulator/scenarios*: mbarriers, bulk copies, clusters, named barriers."""
    done = subprocess.run([build_scenarios()], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 not as expected" in done.stdout
