"""Run every CUDA kernel once at small shapes, for compute-sanitizer; or one path at the headline, for a profiler.

    compute-sanitizer --tool memcheck python tests/cuda/kernel_driver.py    # --paths tile:16,cublas: these alone
    ncu --profile-from-start off python tests/cuda/kernel_driver.py --target tile:64x8
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
TILES = tuple(f"tile:{rows}x{blocks}" for rows in (16, 32, 64) for blocks in (1, 2, 8))
MAY_REFUSE = "tile:32"  # serves aligned rows, and devices with clusters
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
TARGET = (16384, 4096, 64)
GROUPS = 5


def draw(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Draw on the CPU, and copy."""
    return (torch.randn(shape) * scale).to(dtype).to(DEVICE).requires_grad_()


@contextlib.contextmanager
def pinned(path: str) -> Iterator[None]:
    """Pin the path."""
    os.environ["ADAPTERX_CUDA_PATH"] = path
    try:
        yield
    finally:
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


def run_all(paths: tuple[str, ...] = ("",), without: str | None = None) -> None:
    """Run the problems of the paths that begin so, but those of `without`; name each: a checker may end it at any."""
    torch.manual_seed(0)
    clusters = DEVICE != "cuda" or torch.cuda.get_device_capability()[0] >= 9
    for run, problems in ((run_plain, PLAIN), (run_grouped, GROUPED)):
        for path, *problem in problems:
            if path != without and path.startswith(paths) and (clusters or is_alone(path)):
                print("kernel_driver:", run.__name__, path, *problem, flush=True)
                with pinned(path):
                    run_unless_refused(path, lambda run=run, problem=problem: run(*problem))
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def is_alone(path: str) -> bool:
    """Return whether a path needs no cluster of blocks."""
    return not path.startswith("tile:") or path.endswith("x1")


def run_unless_refused(path: str, run: Callable[[], None]) -> bool:
    """Run; where the path is one that may say no in words, that is told and no failure."""
    try:
        run()
    except ValueError as error:
        if not path.startswith(MAY_REFUSE) or "ADAPTERX_CUDA_PATH" not in str(error):
            raise
        print("kernel_driver: refused:", error, flush=True)
        return False
    return True


def run_target(path: str) -> None:
    """Run a path forward and backward at the headline between the marks of a profiler, its kernels loaded before."""
    tokens, d, m = TARGET if DEVICE == "cuda" else (16, 72, 6)

    def leaf(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, device=DEVICE) * scale).bfloat16().requires_grad_()

    hidden_states, weights = leaf(tokens, d), (leaf(m, d, scale=d**-0.5), leaf(m), leaf(d, m, scale=m**-0.5), leaf(d))
    cotangent = torch.randn(tokens, d, device=DEVICE).bfloat16()

    def forward_and_backward() -> None:
        output = ops.bottleneck_adapter(hidden_states, hidden_states, *weights, activation="gelu", scaling=0.7)
        torch.autograd.grad(output, (hidden_states, *weights), cotangent)

    with pinned(path):
        if run_unless_refused(path, forward_and_backward) and DEVICE == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            forward_and_backward()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def kernel_names() -> set[str]:
    """Return the names of all kernels, from their sources."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.cu*")))
    return set(re.findall(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", text))


def missing_kernels() -> list[str] | None:
    """Return the kernels that `run_all` does not launch, or None where the profiler sees no kernels at all."""
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        run_all()
    seen = " ".join({event.name for event in profile.events()})
    if "_kernel" not in seen:
        return None
    return sorted(name for name in kernel_names() if name not in seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", metavar="PATH", help="one path at the headline, between profiler marks")
    parser.add_argument("--coverage", action="store_true", help="name the kernels that were not launched")
    parser.add_argument("--paths", default="", help="only paths that begin so, with commas between")
    parser.add_argument("--without-cublas", action="store_true", help="leave out the path through cuBLASLt")
    options = parser.parse_args()
    if options.coverage:
        missing = missing_kernels()
        if missing is None:
            print("kernel_driver: the profiler sees no kernels here: not known which were launched")
            return 0
        print(f"kernel_driver: {len(kernel_names())} kernels, not launched: {', '.join(missing) or 'none'}")
        return 1 if missing else 0
    if options.target:
        run_target(options.target)
        return 0
    run_all(tuple(options.paths.split(",")), without=CUBLAS if options.without_cublas else None)
    print("kernel_driver: all results are finite")
    return 0


if __name__ == "__main__":
    sys.exit(main())
