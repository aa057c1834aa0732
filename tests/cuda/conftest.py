"""Where the tests of the GPU run.

On "cuda". With ADAPTERX_TEST_DEVICE=cpu on the CPU instead, so that the tests themselves are known to be right before
they see a GPU; with ADAPTERX_LIBRARY the operators are then those of CUDA with emulated kernels. ADAPTERX_TEST_PART=1/4
runs every fourth test from the second on; where ADAPTERX_FACTS names a file, each test is a fact in it.
"""

import os
from pathlib import Path

import facts
import pytest
import torch
from cuda_cases import DEVICE, capability

from adapterx import build_info

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items):
    # The machine with the GPU has versions of its own; what its libraries warn of is shown there and fails no test.
    for item in items:
        if item.path.parent == FOLDER:
            item.add_marker(pytest.mark.filterwarnings("default"))
    part, parts = map(int, os.environ.get("ADAPTERX_TEST_PART", "0/1").split("/"))
    items[:] = items[part::parts]


def pytest_runtest_logreport(report):
    """Write what became of a test as soon as it is known."""
    if facts.PLACE in os.environ and (report.when == "call" or report.outcome != "passed"):
        words = "" if report.passed else str(report.longrepr)[-300:]
        name = report.nodeid.rpartition("/")[2]
        seconds = round(report.duration, 2)
        facts.write_fact("test", shown=False, name=name, outcome=report.outcome, seconds=seconds, words=words)


@pytest.fixture(scope="session")
def device():
    """Name the device; skip where there is none."""
    if DEVICE == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU that PyTorch finds")
        if not build_info()["cuda"]:
            pytest.fail("this machine has a GPU, but the operator library was built without CUDA (ADAPTERX_CUDA=1)")
    return DEVICE


@pytest.fixture(scope="session")
def gpu(device):
    """Name the device; skip what the CPU cannot stand in for."""
    if device != "cuda":
        pytest.skip("streams, graphs and device memory need a GPU")
    return device


@pytest.fixture
def pin(device, monkeypatch):
    """Return a function that pins the path of the operators, or skips what the device has no kernel for."""
    if not build_info()["cuda"]:
        pytest.skip("the paths are those of the CUDA operators; this library has none")

    def pin_path(path):
        if path.startswith("tile:") and not path.endswith("x1") and capability() < 90:
            pytest.skip("thread-block clusters need compute capability 9.0")
        monkeypatch.setenv("ADAPTERX_CUDA_PATH", path)

    return pin_path
