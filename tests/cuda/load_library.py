"""Load a CUDA build of the operator library where there is no GPU, and run a CPU operator of it: `make cuda-check`.

python tests/cuda/load_library.py FILE.so --cuda 13.0 --architectures 9.0+PTX
"""

import argparse
import json
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same outcome on a machine that has a GPU

import torch

OPERATORS = [f"bottleneck_adapter{direction}" for direction in ("", "_train", "_backward")]


def check_operator() -> list[str]:
    """Compare the CPU operator with the formula."""
    torch.manual_seed(0)
    shapes = ((5, 8), (3, 8), (3,), (8, 3), (8,))
    h, down, down_bias, up, up_bias = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    exact = h + 0.5 * (torch.nn.functional.gelu(h @ down.T + down_bias) @ up.T + up_bias)
    actual = torch.ops.adapterx.bottleneck_adapter(h, h, down, down_bias, up, up_bias, "gelu", 0.5)
    return [] if torch.allclose(actual, exact, rtol=1e-12) else ["the CPU operator differs from the formula"]


def check_registrations() -> list[str]:
    """Return the operators that have no kernel for CUDA tensors."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [f"adapterx::{name}" for name in OPERATORS]
    return [f"{name} has no CUDA kernel" for name in names if not has_kernel(name, "CUDA")]


def main() -> int:
    """Load, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--cuda", required=True, help="version of the toolkit that build_info() must name")
    parser.add_argument("--architectures", required=True, help="what build_info() must say it is compiled for")
    arguments = parser.parse_args()
    torch.ops.load_library(arguments.library)
    info = json.loads(torch.ops.adapterx.build_info())
    print("loaded:", ", ".join(f"{key} {value}" for key, value in info.items()))
    wanted = {"cuda": arguments.cuda, "cuda_architectures": arguments.architectures}
    problems = [f"build_info() says {key} {info.get(key)!r}, not {value!r}" for key, value in wanted.items()
                if info.get(key) != value]  # fmt: skip
    problems += check_registrations() + check_operator()
    print(
        "\n".join(problems)
        if problems
        else f"{len(OPERATORS)} operators have CUDA kernels, a CPU operator gives the right numbers"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
