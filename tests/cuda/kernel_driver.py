"""Run every CUDA kernel once at small shapes, for compute-sanitizer; or the shapes of the targets, for a profiler.

    compute-sanitizer --tool memcheck python tests/cuda/kernel_driver.py
    ncu --profile-from-start off python tests/cuda/kernel_driver.py --targets
    python tests/cuda/kernel_driver.py --coverage     # fails where a kernel of csrc/kernels/cuda was not launched

Inputs are drawn on the CPU and copied, so that a checker of initialised memory sees them written.
"""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from adapterx import ops

KERNELS = Path(__file__).resolve().parents[2] / "csrc" / "kernels" / "cuda"
DEVICE = os.environ.get("ADAPTERX_TEST_DEVICE", "cuda")
TILES = tuple(f"tile:{rows}x{blocks}" for rows in (16, 64) for blocks in (1, 2, 8))
HALVES = (torch.bfloat16, torch.float16)
# Path, dtype, tokens, input_size, hidden_size, bottleneck_dim, activation, scaling.
PLAIN = (
    *((path, torch.bfloat16, 67, 136, 136, m, "gelu", 0.7) for path in TILES for m in (7, 24, 64, 100)),
    ("tile:64x1", torch.float16, 70, 37, 37, 16, "silu", 1.0),
    *(("cublas", dtype, 67, 40, 24, 13, "gelu", 0.7) for dtype in (torch.bfloat16, torch.float32, torch.float64)),
    ("cublas", torch.bfloat16, 64, 64, 64, 16, "relu", 1.0),
    ("cublas", torch.float16, 64, 64, 64, 16, "gelu_tanh", 1.0),
    *(("plain", dtype, 67, 40, 24, 13, "gelu", 0.7) for dtype in (*HALVES, torch.float32, torch.float64)),
    ("auto", torch.bfloat16, 8, 256, 256, 32, "relu", 1.0),
)
GROUPED = (
    *((path, torch.bfloat16, tokens, 72, 72, 24, "gelu", 0.7) for path in TILES for tokens in (40, 5000)),
    *(
        ("segments", dtype, tokens, 40, 24, 13, "gelu", 0.7)
        for dtype in (*HALVES, torch.float32, torch.float64)
        for tokens in (40, 3000)
    ),
)
CUBLAS = "cublas"
TARGETS = tuple((path, torch.bfloat16, 16384, 4096, 4096, 64, "gelu", 0.7) for path in ("tile:64x8", CUBLAS))
GROUPS = 5


def draw(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Draw on the CPU, and copy."""
    return (torch.randn(shape) * scale).to(dtype).to(DEVICE).requires_grad_()


@contextlib.contextmanager
def pinned(path: str) -> Iterator[None]:
    """Pin the path; the kernels of clusters are left out where the device has none."""
    os.environ["ADAPTERX_CUDA_PATH"] = path
    yield
    del os.environ["ADAPTERX_CUDA_PATH"]


def run_plain(dtype: torch.dtype, tokens: int, n: int, d: int, m: int, activation: str, scaling: float) -> None:
    """Run forward, training forward and backward, of the residual's two kinds."""
    weights = (draw(m, n, dtype=dtype, scale=n**-0.5), draw(m, dtype=dtype), draw(d, m, dtype=dtype, scale=m**-0.5))
    tensors = (draw(tokens, n, dtype=dtype), draw(tokens, d, dtype=dtype), *weights, draw(d, dtype=dtype))
    check(lambda: ops.bottleneck_adapter(*tensors, activation=activation, scaling=scaling), tensors)
    if n == d:
        same = (tensors[0], tensors[0], *tensors[2:])
        check(lambda: ops.bottleneck_adapter(*same, activation=activation, scaling=scaling), same)


def run_grouped(dtype: torch.dtype, tokens: int, n: int, d: int, m: int, activation: str, scaling: float) -> None:
    """Run the grouped form, with tokens that pick no adapter."""
    indices = torch.randint(-1, GROUPS, (tokens,)).to(DEVICE)
    down = (draw(GROUPS, m, n, dtype=dtype, scale=n**-0.5), draw(GROUPS, m, dtype=dtype))
    up = (draw(GROUPS, d, m, dtype=dtype, scale=m**-0.5), draw(GROUPS, d, dtype=dtype))
    hidden_states, residual = draw(tokens, n, dtype=dtype), draw(tokens, d, dtype=dtype)
    options = {"activation": activation, "scaling": scaling, "adapter_indices": indices}
    check(
        lambda: ops.bottleneck_adapter(hidden_states, residual, *down, *up, **options),
        (hidden_states, residual, *down, *up),
    )


def check(function: Callable[[], torch.Tensor], tensors: tuple[torch.Tensor, ...]) -> None:
    """Run forward and backward; nothing may be left that is not a number."""
    with torch.no_grad():
        function()
    output = function()
    leaves = list(dict.fromkeys(tensors))
    for result in (output, *torch.autograd.grad(output, leaves, torch.ones(output.shape).to(output))):
        if not result.isfinite().all():
            raise AssertionError(f"kernel_driver: results must be finite, got a {tuple(result.shape)} that is not")


def run_all(targets: bool, without: str | None = None) -> None:
    """Run the problems but those of the path `without`, and name each first: a checker may end it at any of them."""
    torch.manual_seed(0)
    clusters = DEVICE != "cuda" or torch.cuda.get_device_capability()[0] >= 9
    for run, problems in ((run_plain, TARGETS if targets else PLAIN), (run_grouped, () if targets else GROUPED)):
        for path, *problem in problems:
            if path != without and (clusters or not path.startswith("tile:") or path.endswith("x1")):
                print("kernel_driver:", run.__name__, path, *problem, flush=True)
                with pinned(path):
                    run(*problem)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def kernel_names() -> set[str]:
    """Return the names of all kernels, from their sources."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.cu*")))
    return set(re.findall(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", text))


def missing_kernels() -> list[str] | None:
    """Return the kernels that `run_all` does not launch, or None where the profiler sees no kernels at all."""
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        run_all(targets=False)
    seen = " ".join({event.name for event in profile.events()})
    if "_kernel" not in seen:
        return None
    return sorted(name for name in kernel_names() if name not in seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", action="store_true", help="the shapes of the targets, between profiler marks")
    parser.add_argument("--coverage", action="store_true", help="name the kernels that were not launched")
    parser.add_argument("--without-cublas", action="store_true", help="leave out the path through cuBLASLt")
    options = parser.parse_args()
    if options.coverage:
        missing = missing_kernels()
        if missing is None:
            print("kernel_driver: the profiler sees no kernels here: not known which were launched")
            return 0
        print(f"kernel_driver: {len(kernel_names())} kernels, not launched: {', '.join(missing) or 'none'}")
        return 1 if missing else 0
    if options.targets:
        run_all(targets=True)  # loads the kernels
        torch.cuda.profiler.start()
    run_all(targets=options.targets, without=CUBLAS if options.without_cublas else None)
    if options.targets:
        torch.cuda.profiler.stop()
    print("kernel_driver: all results are finite")
    return 0


if __name__ == "__main__":
    sys.exit(main())
