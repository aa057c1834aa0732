"""The build: what CMake is told, and how torch is asked for its versions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toolkit_cases import ROOT, build, make_toolkit


def test_cmake_gets_the_architectures_in_its_own_way():
    assert build.cmake_architectures("8.0;9.0a;10.0+PTX") == "80-real;90a-real;100-real;100-virtual"
    with pytest.raises(build.BuildError, match=r"must hold numbers such as 9\.0 .*, got 'Hopper'"):
        build.cmake_architectures("Hopper")


@pytest.mark.parametrize("layout", ["wheel", "libtorch"])
@pytest.mark.parametrize(("version", "cuda"), [("2.11.0+cu130", "13.0"), ("2.9.1+cu128", "12.8"), ("2.13.0+cpu", None)])
def test_torch_is_asked_for_its_versions_without_importing_it(tmp_path, layout, version, cuda):
    if layout == "wheel":
        text = f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n"
        (tmp_path / "version.py").write_text(text, encoding="utf-8")
    else:
        (tmp_path / "build-version").write_text(version + "\n", encoding="utf-8")
    assert build.torch_versions(tmp_path) == (version, cuda)


def test_the_versions_of_this_torch_are_read_right():
    assert build.torch_versions(Path(torch.__file__).parent) == (torch.__version__, torch.version.cuda)


def test_cmake_code_names_the_toolkit_and_refusals_are_words(tmp_path, monkeypatch):
    root = make_toolkit(tmp_path / "toolkit")
    (tmp_path / "version.py").write_text(
        "__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n", encoding="utf-8"
    )
    monkeypatch.setenv("CUDA_HOME", str(root))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX")

    def run(setting):
        command = [sys.executable, ROOT / "cuda_toolkit.py", "--setting", setting, "--torch", tmp_path]
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)

    code = run("AUTO").stdout
    assert "set(ADAPTERX_WITH_CUDA [==[ON]==])" in code
    assert f"set(ADAPTERX_CUDA_COMPILER [==[{root}/bin/nvcc]==])" in code
    assert "set(ADAPTERX_CUDA_CMAKE_ARCHITECTURES [==[90-real;90-virtual]==])" in code
    assert "set(ADAPTERX_WITH_CUDA [==[OFF]==])" in run("OFF").stdout
    refused = run("perhaps")
    assert refused.returncode == 1
    assert "ADAPTERX_CUDA must be" in refused.stderr


def configure(folder, *options, **environ):
    """Configure the CMake project, without building."""
    pytest.importorskip("cmake", reason="the project is configured with cmake")
    tools = Path(sys.executable).parent
    command = [tools / "cmake", "-S", ROOT, "-B", folder, "-GNinja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", *options]
    environ = {**os.environ, **environ}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environ)


def test_cmake_without_the_operators_does_not_leave_cuda_out_in_silence(tmp_path):
    """A toolkit that is there is taken. That its compiler is a script, which CMake refuses, is another matter."""
    root = make_toolkit(tmp_path / "toolkit")
    done = configure(tmp_path / "b", "-DADAPTERX_BUILD_OPS=OFF", "-DADAPTERX_CUDA=ON", CUDA_HOME=str(root))
    assert f"adapterx: building the kernels alone, with those for CUDA: CUDA 13.0 in {root}" in done.stdout


def test_cmake_without_the_operators_configures_the_kernel_tests(tmp_path):
    pytest.importorskip("pybind11", reason="the kernel tests are bound with pybind11")
    options = ("-DADAPTERX_BUILD_OPS=OFF", "-DADAPTERX_CUDA=OFF", "-DADAPTERX_BUILD_KERNEL_TESTS=ON")
    done = configure(tmp_path, *options)
    assert done.returncode == 0, done.stdout + done.stderr
