"""Build the module that runs the CUDA kernels on the host, with CMake, and import it."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests" / "emulator"
# ADAPTERX_SANITIZE=1 builds with AddressSanitizer and UndefinedBehaviorSanitizer; Python then needs
# LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" and ASAN_OPTIONS=detect_leaks=0.
SANITIZE = os.environ.get("ADAPTERX_SANITIZE") == "1"
BUILD = ROOT / "build" / ("emulator_sanitized" if SANITIZE else "emulator")


def load_module(name: str, path: Path) -> ModuleType:
    """Import the file `path` as module `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_emulator() -> ModuleType:
    """Build `adapterx_emulator`; a build that fails is a failure, a missing tool a reason to skip."""
    pybind11 = pytest.importorskip("pybind11")
    pytest.importorskip("cmake", reason="the emulator is built with cmake")
    pytest.importorskip("ninja", reason="the emulator is built with ninja")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("the emulator is built with a C++ compiler")
    tools = Path(sys.executable).parent
    configure = [
        tools / "cmake", "-S", SOURCE, "-B", BUILD, "-GNinja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}",
        f"-DCMAKE_PREFIX_PATH={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}",
        "-DPYBIND11_FINDPYTHON=ON", f"-DADAPTERX_SANITIZE={'ON' if SANITIZE else 'OFF'}",
    ]  # fmt: skip
    for command in (configure, [tools / "cmake", "--build", BUILD, "--target", "adapterx_emulator"]):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return load_module("adapterx_emulator", BUILD / f"adapterx_emulator{suffix}")
