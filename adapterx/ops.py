"""The operator: loads the compiled library and offers it as Python functions."""

from pathlib import Path

import torch
from torch import Tensor

from adapterx.errors import ExtensionError

LIBRARY = Path(__file__).parent / "libadapterx.so"


def _load_library() -> None:
    if not LIBRARY.exists():
        raise ExtensionError(
            f"the compiled operator library is missing: looked for {LIBRARY}; "
            "build it with `pip install --no-build-isolation -e .` in the source folder (torch must be installed first)"
        )
    torch.ops.load_library(str(LIBRARY))


_load_library()


def bottleneck_adapter(
    hidden_states: Tensor,
    residual: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    *,
    activation: str,
    scaling: float,
) -> Tensor:
    """Compute the adapter with the compiled kernels; arguments and result as in `adapterx.reference`."""
    return torch.ops.adapterx.bottleneck_adapter(
        hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation, scaling
    )
