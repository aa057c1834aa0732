"""Where a module computes and in which dtype, also where `accelerate` keeps its weights elsewhere (offloading)."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import nn

ADAPTER_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What is trained in 16 bits loses small updates, and a GradScaler refuses gradients in float16.
_FROZEN_ONLY = (torch.bfloat16, torch.float16)


def trained_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which to train something on a module of this dtype: float32, or float64 if that is its."""
    return dtype if dtype in ADAPTER_DTYPES and dtype not in _FROZEN_ONLY else torch.float32


def compute_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """Return what an adapter with weights of this dtype computes in, here and now."""
    # Autocast leaves float64 as it is and refuses to say anything about the meta device. The call that asks whether it
    # knows a device breaks the graph of torch.compile under torch 2.11.
    if dtype != torch.float64 and device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype


def device_and_dtype(module: nn.Module, model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return where the module computes, and the dtype of its first tensor; else those of the model."""
    # The first one: behind it a module may have the parameters of thousands of adapters.
    first = next(chain(module.parameters(), module.buffers(), model.parameters()), None)
    if first is None:
        return torch.device("cpu"), torch.float32
    device = first.device
    if first.is_meta:
        device = next(_execution_devices(module), device)
    return device, first.dtype


def copy_in_memory(
    module: nn.Module, dtype: torch.dtype | None, inside: Sequence[nn.Module], *, without: Sequence[nn.Module] = ()
) -> nn.Module:
    """Return a copy of a module to be trained: its weights in memory, on the device where the module computes.

    Args:
        module: may be offloaded by `accelerate`.
        dtype: of the copy's floating-point tensors; None keeps theirs, and takes float32 for 16 bits.
        inside: itself and the modules inside of it.
        without: children in it for which the copy has an empty module.
    """
    offloaded = [each for each in inside if _hooks(each)]
    hooks = {id(each._hf_hook): each._hf_hook for each in offloaded}
    with ExitStack() as stack:
        for each in offloaded:
            if any(tensor.is_meta for tensor in each.parameters()):
                stack.callback(each._hf_hook.post_forward, each, None)
                each._hf_hook.pre_forward(each)
        # A hook knows the weights of the whole model: it is handed on as it is, and taken off.
        duplicate = copy.deepcopy(module, hooks | {id(each): nn.Module() for each in without})
    for each in duplicate.modules():
        if vars(each).pop("_hf_hook", None) is not None:
            del each.forward, each._old_forward
    half = any(tensor.dtype in _FROZEN_ONLY for tensor in duplicate.parameters())
    return duplicate.to(dtype=dtype or (torch.float32 if half else None))


def _execution_devices(module: nn.Module) -> Iterator[torch.device]:
    for each in module.modules():
        for hook in _hooks(each):
            device = getattr(hook, "execution_device", None)
            if device is not None and torch.device(device).type != "meta":
                yield torch.device(device)


def _hooks(module: nn.Module) -> list[Any]:
    """Return the hooks of `accelerate` on a module: it keeps one, which may hold several."""
    hook = vars(module).get("_hf_hook")
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
