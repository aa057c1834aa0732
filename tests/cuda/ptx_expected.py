"""Write ptx_expected.h: what the instructions of ptx.cuh give on a GPU, computed by their twins in the host emulator.

python tests/cuda/ptx_expected.py        # after a change of ptx_primitives.cuh
"""

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = HERE / "ptx_expected.h"


def expected(folder: Path) -> str:
    """Compile the self-test for the host in `folder`, run it, and return the header."""
    program = folder / "ptx_expected"
    options = ["-std=c++17", "-O1", "-w", "-fno-strict-aliasing", "-DADAPTERX_EMULATE"]
    source = ["-I", HERE.parent / "emulator", "-x", "c++", HERE / "ptx_self_test.cu"]
    subprocess.run(["g++", *options, *source, "-o", program], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Write the header."""
    with tempfile.TemporaryDirectory() as folder:
        HEADER.write_text(expected(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
