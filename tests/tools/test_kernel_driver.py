"""The program that compute-sanitizer and Nsight Compute run on a GPU, on the processor."""

import os
import sys
from pathlib import Path

import pytest

from adapterx import ops

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))
import kernel_driver

RIGHT = ops.bottleneck_adapter
PIN = "ADAPTERX_CUDA_PATH"


@pytest.fixture
def driver(monkeypatch, capsys):
    """Return a function that runs the driver on the processor, and gives back the paths that it has run."""
    monkeypatch.setattr(kernel_driver, "DEVICE", "cpu")
    monkeypatch.delenv(PIN, raising=False)

    def run(operator, *options):
        monkeypatch.setattr(ops, "bottleneck_adapter", operator)
        monkeypatch.setattr(sys, "argv", ["kernel_driver.py", *options])
        assert kernel_driver.main() == 0
        assert PIN not in os.environ
        output = capsys.readouterr().out
        lines = [line.split() for line in output.splitlines() if " run_" in line]
        return {line[2] for line in lines}, output

    return run


def test_the_driver_runs_the_paths_that_are_asked_for(driver):
    paths, output = driver(RIGHT, "--paths", "tile:16x1,tile:32x8")
    assert paths == {"tile:16x1", "tile:32x8"}
    assert output.endswith("kernel_driver: all results are finite\n")
    assert driver(RIGHT, "--paths", "cublas,tile:64x8", "--without-cublas")[0] == {"tile:64x8"}


def test_the_driver_goes_on_behind_a_refusal_of_a_path_that_may_refuse(driver):
    def refuses(*tensors, **options):
        raise ValueError("bottleneck_adapter: ADAPTERX_CUDA_PATH must name a path that serves this call")

    output = driver(refuses, "--paths", "tile:32x1")[1]
    assert "refused" in output
    assert "finite" in output
    assert "refused" in driver(refuses, "--target", "tile:32x8")[1]
    with pytest.raises(ValueError, match="must name a path"):
        driver(refuses, "--paths", "tile:64x1")


def test_the_driver_sees_what_is_not_finite(driver):
    with pytest.raises(AssertionError, match="results must be finite"):
        driver(lambda *tensors, **options: RIGHT(*tensors, **options) * float("nan"), "--paths", "tile:16x1")


def test_the_driver_runs_the_headline_for_a_profiler(driver):
    pins = []

    def look(*tensors, **options):
        pins.append(os.environ[PIN])
        return RIGHT(*tensors, **options)

    driver(look, "--target", "tile:32x8")
    assert set(pins) == {"tile:32x8"}
