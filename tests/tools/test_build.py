"""The build: where a CUDA toolkit is looked for, who decides, what errors say, what setup.py and CMake compile."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def load_module(path):
    """Import a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build = load_module(ROOT / "cuda_toolkit.py")

NVCC = """#!/bin/sh
case "$*" in
*--version*) echo "Cuda compilation tools, release {version}, V{version}.88";;
*--dryrun*) echo "#$ TOP={root}/bin/.." >&2;;
*--list-gpu-arch*) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_100\\ncompute_120\\n';;
*) exit 1;;
esac
"""


def make_toolkit(root, version="13.0", *, headers=build.HEADERS, libraries=("libcudart.so", "libcublasLt.so")):
    """Lay out a toolkit whose compiler answers questions."""
    for folder in ("bin", "include", "lib64"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    make_program(root / "bin" / "nvcc", NVCC.format(version=version, root=root))
    for folder, names in (("include", headers), ("lib64", libraries)):
        for name in names:
            (root / folder / name).touch()
    return root


def make_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def find(tmp_path):
    """Search as on a machine that has nothing but what the test has made under tmp_path."""

    def find(torch_cuda="13.0", packages=(), **environ):
        local = tmp_path / "local"
        local.mkdir(exist_ok=True)
        environ.setdefault("PATH", str(tmp_path / "nothing"))
        return build.find_toolkit(torch_cuda, environ, local, list(packages))

    return find


# --- where a toolkit is found


def test_cuda_home_comes_first_then_cuda_path_path_local_and_pip(tmp_path, find):
    roots = {name: make_toolkit(tmp_path / name) for name in ("home", "path_variable", "on_path", "site/nvidia/cu13")}
    local = make_toolkit(tmp_path / "local" / "cuda-13.0")
    everywhere = {
        "CUDA_HOME": str(roots["home"]),
        "CUDA_PATH": str(roots["path_variable"]),
        "PATH": f"{roots['on_path']}/bin",
    }
    for expected in (roots["home"], roots["path_variable"], roots["on_path"]):
        assert find(packages=[tmp_path / "site" / "nvidia"], **everywhere).toolkit.root == expected
        everywhere.pop(next(iter(everywhere)))
    assert find(packages=[tmp_path / "site" / "nvidia"]).toolkit.root == local
    subprocess.run(["rm", "-r", str(local)], check=True)
    assert find(packages=[tmp_path / "site" / "nvidia"]).toolkit.root == roots["site/nvidia/cu13"]


def test_a_script_that_starts_the_compiler_leads_to_its_toolkit(tmp_path, find):
    toolkit = make_toolkit(tmp_path / "elsewhere")
    script = make_program(tmp_path / "bin" / "nvcc", f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    found = find(PATH=f"{script.parent}:{os.environ['PATH']}").toolkit
    assert (found.root, found.nvcc) == (toolkit, toolkit / "bin" / "nvcc")


def test_a_link_leads_to_its_toolkit(tmp_path, find):
    toolkit = make_toolkit(tmp_path / "elsewhere")
    make_program(toolkit / "bin" / "nvcc", NVCC.format(version="13.0", root="").replace("--dryrun", "--no-such-option"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(toolkit / "bin" / "nvcc")
    assert find(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}").toolkit.root == toolkit


def test_pip_packages_alone_serve_with_their_versioned_library_names(tmp_path, find):
    root = make_toolkit(tmp_path / "nvidia" / "cu13", libraries=())
    (root / "lib").mkdir()
    for name in ("libcudart.so.13", "libcublasLt.so.13"):
        (root / "lib" / name).touch()
    found = find(packages=[tmp_path / "nvidia"]).toolkit
    assert found.libraries == (root / "lib" / "libcudart.so.13", root / "lib" / "libcublasLt.so.13")
    assert found.include_dirs == (root / "include",)


def test_what_a_small_toolkit_lacks_comes_from_pip_behind_its_own_headers(tmp_path, find):
    root = make_toolkit(tmp_path / "small", headers=("cuda_runtime_api.h",), libraries=("libcudart.so",))
    pip = make_toolkit(tmp_path / "nvidia" / "cu13", libraries=("libcublasLt.so.12",))
    (pip / "lib").mkdir()
    (pip / "lib" / "libcublasLt.so.13").touch()
    found = find(packages=[tmp_path / "nvidia"], CUDA_HOME=str(root)).toolkit
    assert found.include_dirs == (root / "include", pip / "include")
    assert found.libraries == (root / "lib64" / "libcudart.so", pip / "lib" / "libcublasLt.so.13")


def test_missing_headers_are_named_with_the_places_and_the_remedy(tmp_path, find):
    root = make_toolkit(tmp_path / "small", headers=build.HEADERS[:-1])
    with pytest.raises(build.BuildError, match=r"lacks cusolverDn\.h, .* looked in: .*pip install .*nvidia-cusolver"):
        find(CUDA_HOME=str(root))


def test_the_newest_toolkit_of_the_right_major_version_is_taken(tmp_path, find):
    for version in ("12.8", "13.0", "13.10", "13.9"):
        make_toolkit(tmp_path / "local" / f"cuda-{version}", version)
    assert find().toolkit.version == "13.10"
    assert find("12.6").toolkit.version == "12.8"


def test_a_toolkit_of_another_major_version_is_refused(tmp_path, find):
    old = make_toolkit(tmp_path / "local" / "cuda-12.4", "12.4")
    search = find()
    assert search.toolkit is None
    assert search.refused == [f"{old} is CUDA 12.4"]


def test_no_other_toolkit_stands_in_for_a_chosen_one(tmp_path, find):
    make_toolkit(tmp_path / "local" / "cuda-13.0")
    old = make_toolkit(tmp_path / "old", "12.4")
    assert find(CUDA_HOME=str(old)).toolkit is None


def test_a_search_in_vain_lists_every_place(find):
    looked = " ".join(find(CUDA_HOME="/nonexistent").looked)
    for place in ("CUDA_HOME=/nonexistent", "CUDA_PATH", "PATH", "cuda*", "pip's packages"):
        assert place in looked


# --- who decides

TOOLKIT = build.Toolkit(Path("/toolkit"), "13.0")


def fake_search(kind):
    searches = {
        "found": build.Search(TOOLKIT),
        "none": build.Search(looked=["CUDA_HOME (not set)", "PATH (no nvcc)"]),
        "other": build.Search(looked=["/usr/local/cuda is CUDA 12.4"], refused=["/usr/local/cuda is CUDA 12.4"]),
    }
    return lambda torch_cuda: searches[kind]


@pytest.mark.parametrize("setting", [None, "", "1"])
def test_cuda_torch_and_toolkit_give_the_kernels(setting):
    decision = build.decide(setting, "2.11.0+cu130", "13.0", fake_search("found"))
    assert decision.toolkit is TOOLKIT
    assert decision.message == "library with CUDA kernels: CUDA 13.0 in /toolkit, torch 2.11.0+cu130 (CUDA 13.0)"


@pytest.mark.parametrize("torch_cuda", [None, "13.0"])
@pytest.mark.parametrize("kind", ["found", "none", "other"])
def test_zero_gives_the_cpu_library_whatever_is_there(torch_cuda, kind):
    assert build.decide("0", "2.11.0", torch_cuda, fake_search(kind)).toolkit is None


@pytest.mark.parametrize("kind", ["found", "none", "other"])
def test_a_cpu_torch_gives_the_cpu_library_and_says_so(kind):
    decision = build.decide(None, "2.13.0+cpu", None, fake_search(kind))
    assert decision == build.Decision(None, "CPU library: torch 2.13.0+cpu is built without CUDA")


def test_a_cuda_torch_without_toolkit_gives_the_cpu_library_and_says_what_was_looked_for():
    decision = build.decide(None, "2.11.0+cu130", "13.0", fake_search("none"))
    assert decision.toolkit is None
    for words in ("WITHOUT CUDA kernels", "no CUDA 13 toolkit", "CUDA_HOME (not set); PATH (no nvcc)", "pip install"):
        assert words in decision.message


@pytest.mark.parametrize(
    ("setting", "torch_cuda", "kind", "words"),
    [
        (
            "1",
            None,
            "found",
            r"ADAPTERX_CUDA=1 needs a CUDA build of torch, got torch 2\.9, which is built without CUDA",
        ),
        (
            "1",
            "13.0",
            "none",
            r"ADAPTERX_CUDA=1, but no CUDA 13 toolkit .* looked for bin/nvcc in: CUDA_HOME \(not set\)",
        ),
        ("1", "13.0", "other", r"no CUDA 13 toolkit .*cuda is CUDA 12\.4.*nvidia-cuda-nvcc==13\.0"),
        (None, "13.0", "other", r"no CUDA 13 toolkit .*cuda is CUDA 12\.4.*ADAPTERX_CUDA=0 for the CPU library"),
        ("yes", "13.0", "found", r"ADAPTERX_CUDA must be 1 .*, 0 .* or unset .*, got 'yes'"),
        ("2", None, "none", r"ADAPTERX_CUDA must be .* got '2'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(setting, torch_cuda, kind, words):
    with pytest.raises(build.BuildError, match=words):
        build.decide(setting, "2.9", torch_cuda, fake_search(kind))


# --- a build without torch


def test_without_torch_any_toolkit_serves_and_needs_our_own_headers_only(tmp_path, find):
    root = make_toolkit(tmp_path / "old", "12.4", headers=build.OWN_HEADERS)
    assert find(torch_cuda=None, CUDA_HOME=str(root)).toolkit.root == root


def test_without_torch_cuda_is_built_where_it_is_asked_for():
    decision = build.decide("1", None, None, fake_search("found"))
    assert decision == build.Decision(TOOLKIT, "kernels alone, with those for CUDA: CUDA 13.0 in /toolkit")
    for setting in (None, "0"):
        assert build.decide(setting, None, None, fake_search("found")).toolkit is None
    assert "ADAPTERX_CUDA=ON adds those for CUDA" in build.decide(None, None, None, fake_search("found")).message


def test_without_torch_a_toolkit_that_is_missing_is_named():
    with pytest.raises(build.BuildError, match=r"ADAPTERX_CUDA=ON, but no CUDA toolkit .* CUDA_HOME \(not set\); PATH"):
        build.decide("1", None, None, fake_search("none"))


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


# --- architectures

KNOWN = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]


@pytest.mark.parametrize(
    ("given", "known", "visible", "expected"),
    [
        ("8.0;8.6;9.0;10.0+PTX", KNOWN, [(9, 0)], "8.0;8.6;9.0;10.0+PTX"),  # as it is
        ("8.0 9.0a", KNOWN, [], "8.0;9.0a"),
        ("Hopper", KNOWN, [], "Hopper"),  # torch knows names
        (None, KNOWN, [], "8.0;8.6;8.9;9.0;10.0+PTX"),
        ("", KNOWN[:5], [], "8.0;8.6;8.9;9.0+PTX"),  # a toolkit from before sm_100
        (None, KNOWN, [(9, 0)], "9.0+PTX"),
        (None, KNOWN, [(8, 0), (9, 0)], "8.0;9.0+PTX"),
        (None, KNOWN[:5], [(10, 0)], "9.0+PTX"),  # a card newer than the toolkit runs the PTX
        (None, KNOWN, [(7, 5)], "8.0;8.6;8.9;9.0;10.0+PTX"),  # a card that the kernels do not serve
    ],
)
def test_architectures(given, known, visible, expected):
    assert build.architectures(given, known, visible) == expected


def test_an_architecture_without_asynchronous_copies_is_refused_in_words():
    with pytest.raises(build.BuildError, match=r"TORCH_CUDA_ARCH_LIST must .* from 8\.0 on .* got 7\.5 in '7\.5;9\.0'"):
        build.architectures("7.5;9.0", KNOWN, [])


def test_what_nvcc_compiles_for(tmp_path):
    nvcc = make_toolkit(tmp_path).joinpath("bin", "nvcc")
    assert build.known_architectures(nvcc) == [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)]


# --- CMake's side


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


# --- what is compiled


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
    assert extension.extra_link_args == [f"{tmp_path}/lib64/libcudart.so", f"{tmp_path}/lib64/libcublasLt.so"]
    assert extension.include_dirs[0] == f"{tmp_path}/include"
    assert "torch_python" not in extension.libraries
    assert not [flag for flags in extension.extra_compile_args.values() for flag in flags if "-std" in flag]


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
