"""What the harness needs to know of a GPU: its clock, its cache, CUDA graphs, and how many kernels a call launches."""

import re
from collections.abc import Callable

import torch
from harness import Machine
from torch.autograd import DeviceType


def cuda_machine() -> Machine:
    """Return the current GPU.

    Raises:
        RuntimeError: PyTorch finds no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("cuda_machine: PyTorch must find a GPU, got none")
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    label = f"{properties.name} (sm_{properties.major}{properties.minor})"
    slug = re.sub(r"[^A-Za-z0-9.]+", "_", properties.name).strip("_")
    return Machine("cuda", label, slug, event_sampler, properties.L2_cache_size)


def event_sampler(function: Callable[[], object], calls: int) -> float:
    """Return milliseconds per call between two CUDA events: what the device needs, or the host if that is slower."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def capture(function: Callable[[], object], calls: int) -> Callable[[], object]:
    """Return the replay of a CUDA graph of `calls` calls: the device's time without the host's."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # workspaces and lazily loaded kernels must exist before the capture
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    return graph.replay


def launch_count(function: Callable[[], object]) -> int:
    """Return how many kernels, copies and fills one call starts on the device; 0 where the profiler sees none."""
    function()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    return sum(
        event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
        for event in profile.events()
    )
