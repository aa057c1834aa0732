"""Build what runs the CUDA kernels on the host, with CMake."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
from build_lock import locked

ROOT = Path(__file__).resolve().parents[2]
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


def _build(target: str, **options: str) -> None:
    """Build a target of tests/emulator; a build that fails is a failure, a missing tool a reason to skip."""
    pytest.importorskip("cmake", reason="the emulator is built with cmake")
    pytest.importorskip("ninja", reason="the emulator is built with ninja")
    pybind11 = pytest.importorskip("pybind11")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("the emulator is built with a C++ compiler")
    tools = Path(sys.executable).parent
    options = {
        "CMAKE_MAKE_PROGRAM": str(tools / "ninja"),
        "CMAKE_PREFIX_PATH": pybind11.get_cmake_dir(),
        "Python_EXECUTABLE": sys.executable,
        "PYBIND11_FINDPYTHON": "ON",
        "ADAPTERX_SANITIZE": "ON" if SANITIZE else "OFF",
        **options,
    }
    configure = [tools / "cmake", "-S", SOURCE, "-B", BUILD, "-GNinja", *(f"-D{k}={v}" for k, v in options.items())]
    # The compiler needs no sanitizer, and is many times slower with one.
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    with locked(BUILD):
        for command in (configure, [tools / "cmake", "--build", BUILD, "--target", target]):
            done = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True, check=False, env=environment
            )
            assert done.returncode == 0, done.stdout + done.stderr


def build_scenarios() -> Path:
    """Build the emulator's own test; return its path."""
    _build("scenarios")
    return BUILD / "scenarios"


def build_emulator() -> ModuleType:
    """Build `adapterx_emulator` and import it."""
    _build("adapterx_emulator")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return load_module("adapterx_emulator", BUILD / f"adapterx_emulator{suffix}")


def build_emulated_operators() -> Path:
    """Build the operator library whose CUDA implementation runs on CPU tensors; return its path."""
    import torch

    _build("adapterx_emulated", ADAPTERX_EMULATED_OPERATORS="ON", Torch_DIR=f"{torch.utils.cmake_prefix_path}/Torch")
    return BUILD / "operators" / "libadapterx_emulated.so"
