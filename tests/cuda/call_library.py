"""Load the operator library, say what it is as a fact, and call it once on the GPU: it must have kernels for it."""

import os
import sys

import torch
from facts import write_fact

from adapterx import build_info, ops

DEVICE = os.environ.get("ADAPTERX_TEST_DEVICE", "cuda")


def main() -> int:
    info = build_info()
    write_fact("library", path=str(ops.LIBRARY), **info)
    if not info["cuda"]:
        print("call_library: the library must have CUDA kernels, got one without", file=sys.stderr)
        return 1
    hidden_states, weight = torch.randn(5, 16, device=DEVICE), torch.randn(4, 16, device=DEVICE)
    output = ops.bottleneck_adapter(hidden_states, None, weight, None, weight.t(), None, "relu", 1.0)
    exact = torch.relu(hidden_states.double() @ weight.double().t()) @ weight.double()
    error = ((output.double() - exact).norm() / exact.norm()).item()
    write_fact("first call", relative_error=error)
    return 0 if error < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
