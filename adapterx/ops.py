"""The operator: loads the compiled library, or registers the operator in plain PyTorch, and offers Python functions."""

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from adapterx.errors import ExtensionError
from adapterx.plain.operators import register

if TYPE_CHECKING:
    from adapterx._operators import Operators

_FOLDER = Path(__file__).parent
# ADAPTERX_LIBRARY names another build of the same operators, for tests: one whose CUDA kernels are emulated on the
# host, for example. This word asks for plain PyTorch.
_PLAIN = "python"


def _minor(version: str) -> str:
    """Return the part of torch's version that its C++ interface belongs to: 2.13 of 2.13.0+cpu."""
    return ".".join(version.split(".")[:2])


def _library_for(version: str) -> Path:
    """Return where the library for a version of torch is, if there is one."""
    return _FOLDER / f"libadapterx-torch{_minor(version)}.so"


def _find_library() -> Path | None:
    """Return the library for the torch at hand; without one, plain PyTorch computes, which is said in words."""
    chosen = os.environ.get("ADAPTERX_LIBRARY")
    if chosen == _PLAIN:
        return None
    library = Path(chosen) if chosen else _library_for(torch.__version__)
    if library.exists():
        return library
    if chosen:
        raise ExtensionError(f"adapterx: ADAPTERX_LIBRARY must name a file that exists, or be {_PLAIN}, got {chosen!r}")
    minors = sorted(path.stem.removeprefix("libadapterx-torch") for path in _FOLDER.glob("libadapterx-torch*.so"))
    others = f"there are some for torch {', '.join(minors)}" if minors else "it was installed without any"
    warnings.warn(
        f"adapterx has no compiled operators for torch {_minor(torch.__version__)} ({others}): plain PyTorch computes "
        "instead, as exactly, slower and with more memory; in the source folder, `pip install --no-build-isolation .` "
        f"compiles them for the installed torch, and ADAPTERX_LIBRARY={_PLAIN} accepts plain PyTorch in silence",
        stacklevel=2,
    )
    return None


def _load_library() -> Path | None:
    """Make the operators known to PyTorch; return the file they are from, None for plain PyTorch."""
    library = _find_library()
    if library is None:
        register()
        return None
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ExtensionError(
            f"adapterx: the compiled operator library {library} does not load under torch {torch.__version__}: "
            f"{error}; it must be built against the installed torch: `pip install --no-build-isolation -e .`"
        ) from error
    return library


LIBRARY = _load_library()
"""The file that the operators are from: a program without adapterx loads it. `None`: they are in plain PyTorch."""

operators = cast("Operators", torch.ops.adapterx)
"""`torch.ops.adapterx` with types: every operator that the library registers, private ones too, by its schema."""


def bottleneck_adapter(
    hidden_states: Tensor,
    residual: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    activation: str,
    scaling: float,
    adapter_indices: Tensor | None = None,
) -> Tensor:
    """Compute `residual + scaling * (activation(hidden_states @ down_weight.T + down_bias) @ up_weight.T + up_bias)`.

    One compiled operator: scriptable, traceable, exportable and compilable as a single node, differentiable any number
    of times, batched by `torch.func.vmap`. Under `torch.autocast` the branch runs in the lower precision and the result
    has the dtype that `adapterx.reference.bottleneck_adapter` would have. Pass the very same tensor as `hidden_states`
    and `residual` (sequential placement) and the backward pass adds both gradients in one sweep. Kept for the backward
    pass: `hidden_states` where `down_weight` needs a gradient, and `(..., bottleneck_dim)` numbers.

    With `adapter_indices` each token picks the weights of one of several adapters. What that costs depends on the
    number of tokens, hardly on the number of adapters. Adapters of different widths are padded with zeros to the
    widest: zero columns of `up_weight` add nothing, whatever the activation makes of zero.

    The arguments stand in the order of the operator's schema, none of them keyword-only: TorchScript takes no
    keyword-only argument beside one with a default.

    Args:
        hidden_states: `(..., input_size)`, at least one dimension; float32, float64, bfloat16 or float16. Rows may be
            strided; other layouts are copied.
        residual: `(..., hidden_size)` with the leading dimensions of `hidden_states`, not broadcast; `None` gives the
            scaled branch alone.
        down_weight: `(bottleneck_dim, input_size)`; with `adapter_indices`, as the next three, with a leading dimension
            `num_adapters`.
        down_bias: `(bottleneck_dim,)` or `None`.
        up_weight: `(hidden_size, bottleneck_dim)`.
        up_bias: `(hidden_size,)` or `None`.
        activation: a key of `adapterx.reference.ACTIVATIONS`.
        scaling: finite factor on the branch, bias included.
        adapter_indices: int64 in [-1, num_adapters); the shape is the leading dimensions of `hidden_states`, or the
            first few of these: `(batch,)` gives all tokens of a sequence one adapter. -1 means no adapter. `None`: one
            adapter for all tokens. On CUDA also what `sort_tokens` returned for such indices.

    Returns:
        `(..., hidden_size)`, a new contiguous tensor of the arguments' dtype. A token without an adapter gets its
        residual bit for bit, or zeros.

    Raises:
        TypeError: a tensor has another dtype than `hidden_states`, or that dtype is not supported; `adapter_indices`
            is not int64.
        ValueError: a size, a device, an index, the activation's name or the scaling breaks a rule; the message names
            it. On CUDA, where reading the indices would stop the queue, an index out of range is a device-side
            assertion instead.
        RuntimeError: the storage of a tensor holds less than its shape says, as where FSDP has freed a parameter.
        NotImplementedError: the tensors are on a device, or have a layout, that the library has no kernel for.

    Source:
        Houlsby et al. 2019, section 2.1; scaling and parallel placement: He et al. 2021, section 3; one batch over many
        adapters: Chen et al. 2023 (Punica) for LoRA.
    """
    return torch.ops.adapterx.bottleneck_adapter(
        hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation, scaling, adapter_indices
    )


SORTING_DEVICES = ("cuda",)
"""Types of devices whose kernels want the tokens sorted by adapter, and on which `sort_tokens` does it beforehand."""


def sort_tokens(adapter_indices: Tensor, num_tokens: int, num_adapters: int) -> Tensor:
    """Sort tokens by adapter once, for all calls of `bottleneck_adapter` with the same indices.

    With plain indices each call sorts the tokens for itself, which costs as much as the products where tokens are few.

    Args:
        adapter_indices: int64 in [-1, num_adapters), on a CUDA device. Each is for equally many consecutive tokens.
        num_tokens: product of the leading dimensions of the hidden states; a multiple of the number of indices.
        num_adapters: of the weights in those calls.

    Returns:
        Bytes that hold the indices and the order, to be passed as `adapter_indices`. Only the operators read them.

    Raises:
        TypeError: the indices are not int64.
        ValueError: a number breaks its rule.
        NotImplementedError: the indices are not on a CUDA device.
    """
    return torch.ops.adapterx.sort_tokens(adapter_indices, num_tokens, num_adapters)


def build_info() -> dict[str, str | bool]:
    """Return what the library was built from and what it uses here.

    Returns:
        `version` (of adapterx), `compiler`, `torch` (built against), `cpu_capability` (instruction set in use on this
        machine), `cuda` (version of the toolkit), `cuda_architectures` (for which the kernels were compiled),
        `plan_table` (what the choice among the CUDA paths rests on: `"roofline"`, or `"measured on ..."`); the last
        three are `False` where the library has no CUDA kernels, and all but `version` and `torch` where plain PyTorch
        computes, for want of a library.
    """
    return json.loads(torch.ops.adapterx.build_info())
