"""The build: who decides whether the library gets CUDA kernels, and what errors say."""

from pathlib import Path

import pytest
from toolkit_cases import build

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


def test_without_torch_cuda_is_built_where_it_is_asked_for():
    decision = build.decide("1", None, None, fake_search("found"))
    assert decision == build.Decision(TOOLKIT, "kernels alone, with those for CUDA: CUDA 13.0 in /toolkit")
    for setting in (None, "0"):
        assert build.decide(setting, None, None, fake_search("found")).toolkit is None
    assert "ADAPTERX_CUDA=ON adds those for CUDA" in build.decide(None, None, None, fake_search("found")).message


def test_without_torch_a_toolkit_that_is_missing_is_named():
    with pytest.raises(build.BuildError, match=r"ADAPTERX_CUDA=ON, but no CUDA toolkit .* CUDA_HOME \(not set\); PATH"):
        build.decide("1", None, None, fake_search("none"))
