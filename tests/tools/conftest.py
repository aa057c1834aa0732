"""What several tests of the benchmarks need."""

import cuda_timing
import pytest
import torch
from fake_gpu import fake_machine


@pytest.fixture
def gpu(monkeypatch):
    """Let the CPU stand in for a GPU; compiling is left out, it is slow."""

    def capture(function, calls):
        return lambda: [function() for _ in range(calls)]

    monkeypatch.setattr(cuda_timing, "cuda_machine", fake_machine)
    monkeypatch.setattr(cuda_timing, "capture", capture)
    monkeypatch.setattr(cuda_timing, "launch_count", lambda function: 3)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
