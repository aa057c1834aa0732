"""Build the operator library for the torch of this Python and put it into a folder, without installing the package.

    python distribution/build_library.py                        # into adapterx/ of this source folder
    python distribution/build_library.py --build B --install I  # configured in B, put into I/adapterx

By CMake and ninja, as `pip install` does. ADAPTERX_CUDA, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS and
ADAPTERX_LINEINFO say what pip's build would be told. The output ends with the path of the library.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commands(python: Path, build: Path, install: Path) -> list[list[str]]:
    """Return what configures, builds and puts the library into `install`/adapterx, for the torch of an interpreter."""
    options = [f"-DPython_EXECUTABLE={python}", "-DADAPTERX_BUILD_PYTHON=ON", "-DADAPTERX_BUILD_OPS=OFF"]
    return [
        ["cmake", "-S", str(ROOT), "-B", str(build), "-GNinja", *options],
        ["cmake", "--build", str(build), "--target", "adapterx_python", "--verbose"],
        ["cmake", "--install", str(build), "--prefix", str(install), "--component", "python"],
    ]


def library_in(folder: Path) -> Path:
    """Return the newest library that was put into a folder."""
    return max((folder / "adapterx").glob("libadapterx-torch*.so"), key=lambda path: path.stat().st_mtime_ns)


def main() -> int:
    """Build; say where the library lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "library")
    parser.add_argument("--install", type=Path, default=ROOT)
    options = parser.parse_args()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    missing = [tool for tool in ("cmake", "ninja") if shutil.which(tool, path=path) is None]
    if missing:
        sys.exit(f"adapterx: a build needs {' and '.join(missing)}, not on PATH: `pip install {' '.join(missing)}`")
    for command in commands(Path(sys.executable), options.build, options.install):
        if code := subprocess.run(command, env={**os.environ, "PATH": path}, check=False).returncode:
            return code
    print(library_in(options.install))
    return 0


if __name__ == "__main__":
    sys.exit(main())
