"""Build the test module of the torch-free CPU kernels with CMake and import it."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from build_lock import locked

ROOT = Path(__file__).resolve().parents[2]
BUILD_FOLDER = ROOT / "build" / "kernel_tests"
SOURCE_FOLDERS = (ROOT / "csrc" / "kernels", ROOT / "tests" / "cpp")


def tool(name: str) -> str:
    """Return the path of a build tool, looking beside the interpreter first.

    Raises:
        FileNotFoundError: the tool is not installed.
    """
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise FileNotFoundError(f"tool: {name} must be installed (pip install 'adapterx[test]'), got nothing on PATH")
    return found


def newest_source() -> float:
    """Return the modification time of the newest source, seconds since the epoch."""
    return max(
        path.stat().st_mtime
        for folder in SOURCE_FOLDERS
        for path in folder.rglob("*")
        if path.suffix in {".cpp", ".h", ".txt"}
    )


def build_kernel_module() -> ModuleType:
    """Build `adapterx_kernels` where a source is newer than the module, and import it.

    Raises:
        subprocess.CalledProcessError: CMake or the compiler failed; their output is on stderr.
    """
    with locked(BUILD_FOLDER):
        modules = sorted(BUILD_FOLDER.glob("adapterx_kernels*.so"))
        if not modules or modules[0].stat().st_mtime < newest_source():
            configure = [tool("cmake"), "-S", ROOT / "tests" / "cpp", "-B", BUILD_FOLDER, "-GNinja"]
            ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
            subprocess.run([*configure, ninja, f"-DPython_EXECUTABLE={sys.executable}"], check=True, stdout=sys.stderr)
            subprocess.run([tool("cmake"), "--build", BUILD_FOLDER], check=True, stdout=sys.stderr)
            modules = sorted(BUILD_FOLDER.glob("adapterx_kernels*.so"))
            modules[0].touch()
    spec = importlib.util.spec_from_file_location("adapterx_kernels", modules[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
