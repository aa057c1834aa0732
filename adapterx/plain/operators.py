"""Registers the operators with PyTorch, from Python: one schema each, and what runs for which dispatch key.

Only the public operators: those that the compiled library has for its own backward pass, PyTorch's autograd replaces.
"""

import json
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor
from torch.autograd import forward_ad

from adapterx.plain.checks import Arguments, check, check_given, sorted_size
from adapterx.plain.formula import formula

NAMESPACE = "adapterx"
SCHEMAS = (
    "bottleneck_adapter(Tensor hidden_states, Tensor? residual, Tensor down_weight, Tensor? down_bias, "
    "Tensor up_weight, Tensor? up_bias, str activation, float scaling, Tensor? adapter_indices=None) -> Tensor",
    "sort_tokens(Tensor adapter_indices, SymInt num_tokens, int num_adapters) -> Tensor",
    "build_info() -> str",
)
"""As in csrc/ops/schema.cpp; a test compares them."""

_DEVICES = {"AutocastCPU": "cpu", "AutocastCUDA": "cuda"}
_libraries: list[torch.library.Library] = []  # what they registered ends with them


def register() -> None:
    """Register the operators."""
    library = torch.library.Library(NAMESPACE, "DEF")
    for schema in SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl("bottleneck_adapter", _with_autograd, "Autograd")
    library.impl("bottleneck_adapter", _formula, "CompositeExplicitAutograd")
    library.impl("bottleneck_adapter", _formula, "FuncTorchBatched")
    library.impl("bottleneck_adapter", _shape, "Meta")
    for key, device in _DEVICES.items():
        library.impl("bottleneck_adapter", _autocast(key, device), key)
    library.impl("sort_tokens", _sort, "CompositeExplicitAutograd")
    facts = dict.fromkeys(("compiler", "cpu_capability", "cuda", "cuda_architectures", "plan_table"), False)
    info = json.dumps({"version": _version(), "torch": torch.__version__, **facts})
    library.impl("build_info", lambda: info, "CompositeExplicitAutograd")
    _libraries.append(library)


def _version() -> str:
    try:
        return version("adapterx")
    except PackageNotFoundError:  # used from its source folder
        return "unknown"


def _formula(*arguments: object) -> Tensor:
    return formula(Arguments(*arguments))


def _with_autograd(*arguments: object) -> Tensor:
    """Let PyTorch differentiate the formula; without anything to differentiate the operator stays one node."""
    a = Arguments(*arguments)
    check_given(a)
    # As in csrc/ops/autograd.cpp: the key, because functorch's own accessors are also set while graphs are traced.
    key = torch._C.DispatchKey.FuncTorchDynamicLayerBackMode
    transformed = torch._C._dispatch_tls_is_dispatch_key_included(key) or forward_ad._current_level >= 0
    wanted = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in a.tensors)
    if transformed or wanted:
        return formula(a)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.adapterx.bottleneck_adapter.default(*arguments)


def _shape(*arguments: object) -> Tensor:
    a = Arguments(*arguments)
    check(a)
    return a.hidden_states.new_empty((*a.hidden_states.shape[:-1], a.up_weight.shape[-2]))


def _autocast(key: str, device: str) -> object:
    """Compute the branch in the lower precision and add it to a residual that is not cast (csrc/ops/autocast.cpp)."""
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(tensor: Tensor | None) -> Tensor | None:
        lower = torch.get_autocast_dtype(device)
        eligible = tensor is not None and tensor.device.type == device and tensor.is_floating_point()
        return tensor.to(lower) if eligible and tensor.dtype != torch.float64 else tensor

    def autocast(hidden_states: Tensor, residual: Tensor | None, *others: object) -> Tensor:
        weights, (activation, scaling, *indices) = others[:4], others[4:]
        operator = torch.ops.adapterx.bottleneck_adapter.default
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            hidden_states, weights = cast(hidden_states), list(map(cast, weights))
            own = residual if residual is None or residual.dtype == hidden_states.dtype else None
            branch = operator(hidden_states, own, *weights, activation, scaling, *indices)
            return branch if own is residual else residual + branch

    return autocast


def _sort(adapter_indices: Tensor, num_tokens: int, num_adapters: int) -> Tensor:
    """Put the indices where the compiled operators put them; there is no order, for nothing here reads one."""
    torch._check_type(
        adapter_indices.dtype == torch.int64,
        lambda: f"sort_tokens: adapter_indices must have dtype int64, got {adapter_indices.dtype}",
    )
    torch._check_value(num_adapters >= 1, lambda: f"sort_tokens: num_adapters must be positive, got {num_adapters}")
    count = adapter_indices.numel()
    fits = num_tokens == 0 if count == 0 else num_tokens >= 0 and num_tokens % count == 0
    torch._check_value(
        fits,
        lambda: f"sort_tokens: num_tokens must be a multiple of the number of indices ({count}), got {num_tokens}",
    )
    if adapter_indices.device.type == "cpu":
        raise NotImplementedError(
            "sort_tokens: adapter_indices must be on a CUDA device, got CPU tensors; the operators take the indices "
            "themselves there"
        )
    result = adapter_indices.new_zeros(sorted_size(num_tokens, num_adapters), dtype=torch.uint8)
    if count:
        every = adapter_indices.reshape(count, 1).expand(count, num_tokens // count).reshape(-1)
        result[: num_tokens * 8].view(torch.int64).copy_(every)
    return result
