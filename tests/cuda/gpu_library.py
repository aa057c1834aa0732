"""Build the operator library for a GPU that is elsewhere, without one, by the recipe of check_extension.py.

    python tests/cuda/gpu_library.py                  # for an H100 or H200; others: --architectures 8.0
    python tests/cuda/gpu_library.py --venv FOLDER    # an environment that is there already, used as it is

For CUDA 13.0 and torch 2.11.0+cu130 (requirements.txt). The library holds nothing of Python, so the version of Python
there does not matter; the torch there must be 2.11. It is loaded here once, and says where it lies: on the machine with
the GPU, ADAPTERX_LIBRARY names it. Beside it, the program that runs the instructions of ptx.cuh, where there is one.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from check_extension import ROOT, build_environment, build_library, environment, run_logged, timed

BUILD = ROOT / "build" / "gpu-library"
SELF_TEST = "ptx_self_test"


def build_self_test(toolkit: Path, build: Path, architecture: str, env: dict[str, str]) -> Path | None:
    """Build the program that runs the instructions of ptx.cuh beside the library, where its source exists."""
    source = Path(__file__).with_name(f"{SELF_TEST}.cu")
    program = build / "library" / "adapterx" / SELF_TEST
    if not source.is_file():
        return None
    number = architecture.split(";")[0].removesuffix("+PTX").replace(".", "")
    # pip's toolkit has its static runtime in lib, where nvcc does not look.
    options = ["-std=c++17", "-O2", f"-arch=sm_{number}", "-L", toolkit / "lib", "-o", program]
    run_logged([toolkit / "bin" / "nvcc", *options, source], build / "build.log", env)
    return program


def main() -> int:
    """Make the environment, build, load, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="with torch and toolkit; else .venv-cuda is made")
    parser.add_argument("--build", type=Path, default=BUILD)
    parser.add_argument("--architectures", default="9.0")
    options = parser.parse_args()
    build = options.build.resolve()
    with timed("environment"):
        programs = options.venv.resolve() / "bin" if options.venv else environment(ROOT / ".venv-cuda")
    toolkit = next(programs.parent.glob("lib/python*/site-packages/nvidia/cu*/bin/nvcc")).parents[1]
    build.mkdir(parents=True, exist_ok=True)
    (build / "build.log").unlink(missing_ok=True)
    changes = {"TORCH_CUDA_ARCH_LIST": options.architectures, "NVCC_APPEND_FLAGS": "", "ADAPTERX_LINEINFO": "1"}
    env = {**build_environment(programs, toolkit), **changes}
    with timed(f"build for {options.architectures}"):
        library = build_library(build, env)
        self_test = build_self_test(toolkit, build, options.architectures, env)
    load = [programs / "python", Path(__file__).with_name("load_library.py"), library, "--cuda", "13.0"]
    if subprocess.run([*load, "--architectures", options.architectures], check=False).returncode:
        sys.exit("gpu-library: the library does not load, or computes wrong numbers (see above)")
    print(f"gpu-library: {library.stat().st_size / 2**20:.1f} MiB, ADAPTERX_LIBRARY={library.relative_to(ROOT)}")
    print(f"gpu-library: beside it {self_test.name}" if self_test else "gpu-library: there is no self-test to build")
    return 0


if __name__ == "__main__":
    sys.exit(main())
