"""The build: what setup.py and CMake compile, and what the source distribution holds."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toolkit_cases import ROOT, make_toolkit


def run_setup(monkeypatch, **environ):
    """Run setup.py up to its call of setup(); return the extension."""
    captured = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: captured.update(arguments))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("ADAPTERX_CUDA", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "ADAPTERX_LINEINFO"):
        monkeypatch.setenv(name, "")  # so that what setup.py sets is undone
        monkeypatch.setenv(name, environ[name]) if name in environ else monkeypatch.delenv(name)
    runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")
    return captured["ext_modules"][0]


@pytest.fixture
def cuda_extension(monkeypatch, tmp_path):
    """Describe the extension of a machine that has a CUDA build of torch and a toolkit."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    root = make_toolkit(tmp_path)
    return lambda **environ: run_setup(monkeypatch, CUDA_HOME=str(root), **environ)


def cmake_sources(cuda):
    """Read the patterns out of CMakeLists.txt and apply them."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    patterns = dict(re.findall(r"file\(GLOB (\w+) CONFIGURE_DEPENDS ([^)]*)\)", text))
    names = ["ADAPTERX_KERNEL_SOURCES", "ADAPTERX_OPS_SOURCES", *(["ADAPTERX_CUDA_KERNEL_SOURCES"] if cuda else [])]
    found = {path.relative_to(ROOT).as_posix() for n in names for p in patterns[n].split() for path in ROOT.glob(p)}
    left_out = re.search(r"if\(NOT ADAPTERX_WITH_CUDA\)\s+list\(FILTER \w+ EXCLUDE REGEX \"([^\"]+)\"\)", text).group(1)
    return sorted(name for name in found if cuda or not re.search(left_out, f"/{name}"))


def test_setup_and_cmake_compile_the_same_files(monkeypatch, cuda_extension):
    cpu = run_setup(monkeypatch, ADAPTERX_CUDA="0").sources
    cuda = cuda_extension().sources
    assert sorted(cpu) == cmake_sources(cuda=False)
    assert sorted(cuda) == cmake_sources(cuda=True)
    extra = set(cuda) - set(cpu)
    assert set(cpu) < set(cuda)
    assert all(name.startswith(("csrc/kernels/cuda/", "csrc/ops/cuda")) for name in extra)
    on_disk = {p.relative_to(ROOT).as_posix() for s in ("*.cpp", "*.cu") for p in (ROOT / "csrc").rglob(s)}
    assert set(cuda) == on_disk, "a file that no build compiles"


def test_no_two_files_share_an_object(cuda_extension):
    objects = [Path(name).with_suffix("") for name in cuda_extension().sources]
    assert len(set(objects)) == len(objects)


def test_a_cpu_build_knows_nothing_of_cuda(monkeypatch):
    extension = run_setup(monkeypatch, ADAPTERX_CUDA="0")
    assert [name for name, _ in extension.define_macros] == ["ADAPTERX_VERSION"]
    assert not {"c10_cuda", "torch_cuda", "cudart", "torch_python"} & set(extension.libraries)


def test_a_cuda_build_says_what_it_is_made_for_and_links_no_python(cuda_extension, tmp_path):
    extension = cuda_extension(TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX")
    macros = dict(extension.define_macros)
    assert macros["ADAPTERX_CUDA_VERSION"] == '"13.0"'
    assert macros["ADAPTERX_CUDA_ARCHITECTURES"] == '"8.0;9.0+PTX"'
    assert "ADAPTERX_WITH_CUDA" in macros
    assert extension.extra_link_args[-2:] == [f"{tmp_path}/lib64/libcudart.so", f"{tmp_path}/lib64/libcublasLt.so"]
    assert extension.include_dirs[0] == f"{tmp_path}/include"
    assert "torch_python" not in extension.libraries
    assert not [flag for flags in extension.extra_compile_args.values() for flag in flags if "-std" in flag]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one C++ library")
def test_a_cxx_library_that_is_linked_in_is_not_seen_from_outside(monkeypatch, tmp_path):
    """Where the compiler does so; next to PyTorch's copy, two visible ones break each other."""
    compiler = shutil.which("g++")
    if compiler is None or shutil.which("nm") is None:
        pytest.skip("needs g++ and nm")
    source = '#include <locale>\nbool f() { return std::locale().name() == "C"; }'
    (tmp_path / "words.cpp").write_text(source, encoding="utf-8")

    def visible(*arguments):
        library = tmp_path / "words.so"
        command = [compiler, "-shared", "-fPIC", "-static-libstdc++", tmp_path / "words.cpp", "-o", library, *arguments]
        subprocess.run([str(part) for part in command], check=True)
        symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
        return "_ZNSt6locale7classicEv" in symbols.stdout

    if not visible():
        pytest.skip("the compiler has no C++ library to link in")
    assert not visible(*run_setup(monkeypatch, ADAPTERX_CUDA="0").extra_link_args)


def test_cores_to_spare_compile_architectures_side_by_side(cuda_extension):
    def threads(jobs):
        flags = cuda_extension(TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0+PTX", MAX_JOBS=jobs).extra_compile_args["nvcc"]
        return [flag for flag in flags if flag.startswith("--threads")]

    assert threads("2") == []
    assert threads("64") == ["--threads=3"]


def test_line_numbers_for_profilers_on_demand(cuda_extension):
    assert "-lineinfo" not in cuda_extension().extra_compile_args["nvcc"]
    assert "-lineinfo" in cuda_extension(ADAPTERX_LINEINFO="1").extra_compile_args["nvcc"]


def test_a_build_that_is_refused_ends_in_words(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit, match=r"^adapterx: ADAPTERX_CUDA=1 needs a CUDA build of torch"):
        run_setup(monkeypatch, ADAPTERX_CUDA="1")


def test_the_source_distribution_holds_all_that_a_build_reads(cuda_extension, monkeypatch):
    from setuptools._distutils.filelist import FileList

    tracked = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    monkeypatch.chdir(ROOT)
    files = FileList()
    files.allfiles = [name for name in tracked.stdout.split("\0") if name]
    for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines():
        files.process_template_line(line)
    headers = [path.relative_to(ROOT).as_posix() for s in ("*.h", "*.cuh") for path in (ROOT / "csrc").rglob(s)]
    needed = {"cuda_toolkit.py", "version.txt", "CMakeLists.txt", "cmake/Cuda.cmake", "cmake/Torch.cmake", *headers}
    assert needed | set(cuda_extension().sources) <= {Path(name).as_posix() for name in files.files}
