"""The build of the Python package: what CMake compiles and links, for which torches, and what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toolkit_cases import ROOT, load_module

TOOLS = Path(sys.executable).parent


def make_torch(folder, version):
    """Lay out what the build reads of a torch: its version, headers, libraries."""
    (folder / "include" / "ATen").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = None\n", encoding="utf-8")
    for name in ("torch", "torch_cpu", "c10"):
        (folder / "lib" / f"lib{name}.so").touch()
    return folder


def tool(name):
    """Return a program that stands beside Python, where pip puts it."""
    if not (TOOLS / name).exists():
        pytest.skip(f"the package is built with {name}")
    return TOOLS / name


def configure(folder, torches, *options, **environ):
    """Configure the build of the Python package, without building."""
    command = [tool("cmake"), "-S", ROOT, "-B", folder, "-GNinja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    command += ["-DADAPTERX_BUILD_PYTHON=ON", "-DADAPTERX_BUILD_OPS=OFF", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-DADAPTERX_TORCHES={';'.join(map(str, torches))}", *options]
    names = ("ADAPTERX_CUDA", "CUDA_HOME", "MAX_JOBS", "ADAPTERX_LINEINFO")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    words = [str(part) for part in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=kept | environ)


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """A build for two torches."""
    folder = tmp_path_factory.mktemp("configured")
    torches = [make_torch(folder / name, version) for name, version in (("old", "2.11.0+cpu"), ("new", "2.14.1"))]
    done = configure(folder / "build", torches, MAX_JOBS="3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "adapterx: building the CPU library: torch 2.11.0+cpu is built without CUDA" in done.stdout
    return folder


def compiled(configured):
    """What is compiled, as (file from the root, the command)."""
    entries = json.loads((configured / "build" / "compile_commands.json").read_text(encoding="utf-8"))
    return [(Path(entry["file"]).relative_to(ROOT).as_posix(), entry["command"]) for entry in entries]


def is_of_cuda(name):
    return name.startswith(("csrc/kernels/cuda/", "csrc/ops/cuda"))


def test_every_source_is_compiled_and_those_of_cuda_only_with_cuda(configured):
    on_disk = {path.relative_to(ROOT).as_posix() for s in ("*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(s)}
    assert {name for name, _ in compiled(configured)} == {name for name in on_disk if not is_of_cuda(name)}
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    patterns = " ".join(re.findall(r"file\(GLOB ADAPTERX_\w+SOURCES CONFIGURE_DEPENDS ([^)]*)\)", text)).split()
    matched = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    assert matched | {"csrc/package/older_glibc.cpp"} == on_disk, "a file that no build compiles"


def test_kernels_are_compiled_once_and_operators_for_each_torch(configured):
    files = [name for name, _ in compiled(configured)]
    for name in set(files):
        assert files.count(name) == (1 if name.startswith("csrc/kernels/") else 2), name
    for name, command in compiled(configured):
        seen = {torch for torch in ("old", "new") if f"{configured}/{torch}/include" in command}
        target = {
            torch for torch, minor in (("old", "2.11"), ("new", "2.14")) if f"adapterx-torch{minor}.dir" in command
        }
        assert seen == target
        assert len(seen) == (0 if name.startswith("csrc/kernels/") else 1)
        assert "-DADAPTERX_WITH_CUDA" not in command
        assert "-fvisibility=hidden" in command or "older_glibc" in name
        assert not re.search(r"\s-g\d?\s", command)


def test_each_library_links_its_torch_and_no_python(configured):
    ninja = (configured / "build" / "build.ninja").read_text(encoding="utf-8")
    for torch, minor in (("old", "2.11"), ("new", "2.14")):
        link = ninja.split(f"build libadapterx-torch{minor}.so:")[1].split("\n\n")[0]
        # By name, for these files tell no name of their own.
        assert re.search(r"LINK_LIBRARIES = (.*)", link)[1].split() == [
            *("libadapterx_kernels.a", "-ltorch", "-ltorch_cpu", "-lc10"),
        ]
        assert re.search(r"LINK_PATH = (.*)", link)[1].split() == [f"-L{configured}/{torch}/lib"]
        assert "rpath" not in link
    if sys.platform == "linux":
        assert ninja.count("-Wl,--exclude-libs,libstdc++.a") == 2


def test_so_many_compilers_run_at_a_time(configured):
    ninja = (configured / "build" / "build.ninja").read_text(encoding="utf-8")
    rules = (configured / "build" / "CMakeFiles" / "rules.ninja").read_text(encoding="utf-8")
    assert "pool adapterx_compilers\n  depth = 3" in ninja + rules


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MAX_JOBS": "many"}, "MAX_JOBS must be a positive number, got many"),
        (
            {"ADAPTERX_CUDA": "1"},
            "ADAPTERX_CUDA=1 needs a CUDA build of torch, got torch 2.13.0, which is built without",
        ),
        ({"ADAPTERX_CUDA": "maybe"}, "ADAPTERX_CUDA must be 1 .*, got 'maybe'"),
    ],
)
def test_a_build_that_is_refused_ends_in_words(tmp_path, environ, words):
    done = configure(tmp_path / "build", [make_torch(tmp_path / "torch", "2.13.0")], **environ)
    assert done.returncode != 0
    assert re.search(words, " ".join(done.stderr.split()))


def test_a_folder_that_is_no_torch_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "version.py").write_text("version = 1\n", encoding="utf-8")
    torches = [make_torch(tmp_path / "torch", "2.13.0"), tmp_path / "other"]
    done = configure(tmp_path / "build", torches)
    assert done.returncode != 0
    assert "ADAPTERX_TORCHES must name folders of torch" in " ".join(done.stderr.split())


# --- where torch is found


@pytest.fixture
def finder(monkeypatch):
    """The program of the build that finds torch, where Python has no torch to import."""
    module = load_module(ROOT / "cmake" / "find_torch.py")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    return module


def test_torch_is_found_where_pip_hides_it_from_an_isolated_build(finder, monkeypatch, tmp_path):
    torch = make_torch(tmp_path / "torch", "2.13.0")
    monkeypatch.setattr(finder.sysconfig, "get_path", lambda name: str(tmp_path))
    assert finder.find_torch() == torch


def test_without_torch_the_command_is_named(finder, monkeypatch, tmp_path):
    monkeypatch.setattr(finder.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=r"install it first .*`pip install --no-build-isolation \.`"):
        finder.find_torch()


def test_no_torch_is_asked_of_pip():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    requires = re.search(r"\[build-system\]\nrequires = \[(.*?)\]", text, re.DOTALL)[1]
    assert "torch" not in requires
    assert '"torch>=2.11"' in re.search(r"\ndependencies = \[(.*?)\]", text)[1]


# --- flags


@pytest.mark.parametrize(
    ("environ", "flags"),
    [
        ({"MAX_JOBS": "2"}, ""),
        ({"MAX_JOBS": "64"}, "--threads=3"),
        ({"MAX_JOBS": "20", "ADAPTERX_LINEINFO": "1"}, "--threads=2;-lineinfo"),
    ],
)
def test_cores_to_spare_compile_architectures_side_by_side(tmp_path, environ, flags):
    script = tmp_path / "flags.cmake"
    script.write_text(
        f'include({ROOT}/cmake/Jobs.cmake)\nadapterx_nvcc_flags(10 3)\nmessage("[${{ADAPTERX_NVCC_FLAGS}}]")\n',
        encoding="utf-8",
    )
    command = [str(tool("cmake")), "-P", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environ})
    assert f"[{flags}]" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one C++ library")
def test_a_cxx_library_that_is_linked_in_is_not_seen_from_outside(tmp_path):
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
    assert not visible("-Wl,--exclude-libs,libstdc++.a")
