"""The build: where a CUDA toolkit is looked for, and what it compiles for."""

import os
import subprocess

import pytest
from toolkit_cases import NVCC, build, make_program, make_toolkit


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


def test_without_torch_any_toolkit_serves_and_needs_our_own_headers_only(tmp_path, find):
    root = make_toolkit(tmp_path / "old", "12.4", headers=build.OWN_HEADERS)
    assert find(torch_cuda=None, CUDA_HOME=str(root)).toolkit.root == root
