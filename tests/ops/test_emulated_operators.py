"""The CUDA implementation of the operators, from the dispatcher to the kernels, on CPU tensors in the emulator.

The operators' own tests and those of the GPU run in a process of their own with ADAPTERX_LIBRARY; each of these runs
counts as one test here. What they print is shown where one fails.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulator_build import ROOT, build_emulated_operators

PLAIN = ("tests/ops/test_ops.py", "tests/ops/test_ops_gradients.py")
GROUPED = ("tests/ops/test_ops_grouped.py",)
REST = (
    "tests/ops/test_ops_autograd.py",
    "tests/ops/test_ops_compile.py",
    "tests/ops/test_ops_errors.py",
    "tests/ops/test_ops_memory.py",
    "tests/ops/test_ops_sorted.py",
    "tests/compose/test_mixed_sorting.py",
    "tests/ops/test_ops_transforms.py",
)
RUNS = {
    "the tests of a GPU, even ones": ({"ADAPTERX_TEST_PART": "0/2"}, ("tests/cuda",)),
    "the tests of a GPU, odd ones": ({"ADAPTERX_TEST_PART": "1/2"}, ("tests/cuda",)),
    "the table": ({}, (*PLAIN, *GROUPED, *REST)),
    "cuBLASLt": ({"ADAPTERX_CUDA_PATH": "cublas"}, PLAIN),
    "no cuBLASLt": ({"ADAPTERX_CUDA_PATH": "plain"}, PLAIN),
    "segments": ({"ADAPTERX_CUDA_PATH": "segments"}, GROUPED),
    "a device without clusters": ({"ADAPTERX_EMULATED_CAPABILITY": "80"}, (*PLAIN, *GROUPED)),
}


@pytest.fixture(scope="module")
def library():
    return build_emulated_operators()


def run_tests(library, run):
    settings, files = RUNS[run]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=0", *files]
    environment = {**os.environ, "ADAPTERX_LIBRARY": str(library), "ADAPTERX_TEST_DEVICE": "cpu", **settings}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runs(library):
    """Two at a time: each run is one process with one thread."""
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        yield {run: pool.submit(run_tests, library, run) for run in RUNS}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("run", RUNS)
def test_operators_on_emulated_cuda(run, runs):
    done = runs[run].result()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-2000:]
    assert int(passed[1]) > 100


def test_the_emulated_library_says_what_it_is(library):
    code = "from adapterx import build_info; print(build_info())"
    environment = {**os.environ, "ADAPTERX_LIBRARY": str(library)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "'cuda': 'emulated'" in done.stdout


@pytest.mark.parametrize(
    ("pin", "words"),
    [
        ("tile", "dtype must be bfloat16 or float16"),
        ("tile:64", "the plan must have a row_tile of 16 or 64"),
        ("tile:64x9", "the plan must have a row_tile of 16 or 64"),
        ("segments", "it serves the grouped form only"),
        ("fastest", "it must be auto, tile, tile:<row_tile>x<cluster_size>, cublas, plain or segments"),
    ],
)
def test_a_pin_that_cannot_serve_is_refused(library, pin, words):
    code = """
import torch
from adapterx import ops
dtype = torch.float32 if "{pin}" == "tile" else torch.bfloat16
h = torch.zeros(4, 8, dtype=dtype)
try:
    ops.bottleneck_adapter(h, h, h[:2], None, h[:2].t(), None, activation="relu", scaling=1.0)
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "ADAPTERX_LIBRARY": str(library), "ADAPTERX_CUDA_PATH": pin}
    done = subprocess.run(
        [sys.executable, "-c", code.replace("{pin}", pin)], env=environment, capture_output=True, text=True, check=True
    )
    expected = f"bottleneck_adapter: ADAPTERX_CUDA_PATH must name a path that serves this call, got '{pin}': {words}"
    assert expected in done.stdout
