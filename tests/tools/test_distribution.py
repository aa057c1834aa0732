"""What is handed out: the files of the source distribution, and the audit of wheels. `make wheels` does the whole."""

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from toolkit_cases import ROOT, load_module

pytest.importorskip("elftools", reason="pip install 'adapterx[distribution]'")
audit = load_module(ROOT / "distribution" / "audit.py")
NAME = "adapterx-1.0.0-py3-none-manylinux_2_28_x86_64.whl"
USES_EXP = '#include <cmath>\nextern "C" double f(double x) { return std::exp(x); }\n'


def compile_library(path, *sources, options=()):
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    command = [compiler, "-shared", "-fPIC", "-O2", *map(str, sources), "-o", str(path), *options]
    subprocess.run(command, check=True)
    return path.read_bytes()


@pytest.fixture
def torch_names(tmp_path):
    """Stand-ins for torch's libraries, to be linked."""
    (tmp_path / "nothing.cpp").write_text("", encoding="utf-8")
    for name in ("torch_cpu", "c10"):
        path = tmp_path / f"lib{name}.so"
        compile_library(path, tmp_path / "nothing.cpp", options=(f"-Wl,-soname,lib{name}.so",))
    return ("-Wl,--no-as-needed", f"-L{tmp_path}", "-ltorch_cpu", "-lc10")


def make_wheel(folder, libraries, name=NAME):
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in libraries.items():
            archive.writestr(inside, content)
    return path


def test_a_library_that_needs_what_its_name_promises_passes(tmp_path, torch_names):
    """On a glibc after 2.28 that takes csrc/package/older_glibc.cpp: exp has had a second version since 2.29."""
    (tmp_path / "uses_exp.cpp").write_text(USES_EXP, encoding="utf-8")
    sources = (tmp_path / "uses_exp.cpp", ROOT / "csrc" / "package" / "older_glibc.cpp")
    content = compile_library(tmp_path / "library.so", *sources, options=torch_names)
    wheel = make_wheel(tmp_path, {"adapterx/libadapterx-torch2.13.so": content})
    libraries, problems = audit.audit(wheel)
    assert problems == []
    assert list(libraries) == ["2.13"]
    assert max(libraries["2.13"].versions["GLIBC"]) <= (2, 28)
    function = load_ctypes(tmp_path / "library.so")
    assert function(1.0) == pytest.approx(2.718281828459045, abs=0)


def load_ctypes(path):
    import ctypes

    function = ctypes.CDLL(str(path)).f
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    return function


def test_symbols_that_are_too_new_are_found(tmp_path, torch_names):
    (tmp_path / "uses_exp.cpp").write_text(USES_EXP, encoding="utf-8")
    content = compile_library(tmp_path / "library.so", tmp_path / "uses_exp.cpp", options=torch_names)
    library = audit.read(content)
    if max(library.versions["GLIBC"]) < (2, 29):
        pytest.skip("this glibc is old itself")
    problems = audit.problems_of("library.so", library, (2, 28))
    assert problems == ["library.so: needs GLIBC_2.29, later than GLIBC_2.28"]
    assert audit.problems_of("library.so", library, (2, 29)) == []


def test_other_libraries_and_folders_of_this_machine_are_found(tmp_path):
    (tmp_path / "empty.cpp").write_text("", encoding="utf-8")
    compile_library(tmp_path / "libpython3.11.so", tmp_path / "empty.cpp")
    options = ("-Wl,--no-as-needed", f"-L{tmp_path}", "-lpython3.11", f"-Wl,-rpath,{tmp_path}")
    content = compile_library(tmp_path / "library.so", tmp_path / "empty.cpp", options=options)
    problems = audit.problems_of("library.so", audit.read(content), (2, 28))
    assert "library.so: needs libpython3.11.so, which is neither of the system nor of torch" in problems
    assert f"library.so: looks for libraries in {tmp_path}" in problems
    assert "library.so: does not need libtorch_cpu.so, which has what it calls" in problems


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("adapterx-1.0.0-cp311-cp311-linux_x86_64.whl", {}, "the name must be"),
        (NAME, {}, "holds no library"),
        (NAME, {"adapterx/libadapterx.so": b""}, "is no library that adapterx would load"),
    ],
)
def test_wheels_that_nothing_loads_from_are_found(tmp_path, name, files, words):
    _, problems = audit.audit(make_wheel(tmp_path, files, name))
    assert any(words in problem for problem in problems)


def test_the_source_distribution_holds_all_that_a_build_and_the_tests_read(tmp_path, monkeypatch):
    backend = pytest.importorskip("scikit_build_core.build", reason="pip install 'adapterx[test]'")
    tracked = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / backend.build_sdist(str(tmp_path))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        metadata = io.TextIOWrapper(archive.extractfile(next(n for n in archive.getnames() if n.endswith("PKG-INFO"))))
        assert "Requires-Dist: torch>=2.11" in metadata.read()
    wanted = {name for name in tracked.stdout.split("\0") if name and (ROOT / name).is_file()}
    assert {name for name in wanted - names if not name.startswith((".ci/", ".github/"))} == set()
    assert not {name for name in names if name.endswith(".so") or name.startswith("build/")}
    assert {"adapterx/py.typed", "adapterx/_operators.pyi", "cmake/Python.cmake", "version.txt"} <= names


def test_the_torches_of_the_wheel_are_the_same_wherever_they_are_listed():
    versions = (ROOT / "distribution" / "torches.txt").read_text(encoding="utf-8").split()
    folders = ";".join(f"/torches/{version}/torch" for version in versions)
    assert f'"cmake.define.ADAPTERX_TORCHES" = "{folders}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    matrix = "[" + ", ".join(f'"{version}"' for version in versions) + "]"
    assert f"torch: {matrix}" in (ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8")
    minors = [version.rpartition(".")[0] for version in versions]
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    assert f"({minors[0]} to {minors[-1]})" in page
