"""What the operators compute, in operators of PyTorch that have derivatives of every order and rules for vmap."""

import torch
from torch import Tensor

from adapterx import reference
from adapterx.plain.checks import Arguments, check, check_memory, check_range


def formula(a: Arguments) -> Tensor:
    """Compute the adapter, arguments checked."""
    check(a)
    if _has_values(a):
        check_memory(a)
    output = reference.bottleneck_adapter(*_plain(a)) if a.adapter_indices is None else _grouped(a)
    return output.contiguous()


def _plain(a: Arguments) -> tuple:
    return (*a.tensors, a.activation, a.scaling)


def _has_values(a: Arguments) -> bool:
    """Whether the tensors have numbers to look at; a graph that is being traced, a meta tensor or vmap has none."""
    given = [tensor for tensor in (*a.tensors, a.adapter_indices) if tensor is not None]
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    ours = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return all(type(tensor) in ours and tensor.device.type != "meta" and not wrapped(tensor) for tensor in given)


def unsorted(adapter_indices: Tensor, leading: torch.Size) -> Tensor:
    """Return the indices themselves where `sort_tokens` has put them before their order."""
    if adapter_indices.dtype != torch.uint8:
        return adapter_indices
    return adapter_indices[: leading.numel() * 8].view(torch.int64).view(leading)


def _grouped(a: Arguments) -> Tensor:
    leading, num_adapters = a.hidden_states.shape[:-1], a.down_weight.shape[0]
    indices = unsorted(a.adapter_indices, leading)
    if _has_values(a):
        check_range(indices, leading, num_adapters)
        return reference.bottleneck_adapter(*_plain(a), indices)
    return _every_adapter_over_all_tokens(a, indices)


def _every_adapter_over_all_tokens(a: Arguments, indices: Tensor) -> Tensor:
    """Keep of each adapter the tokens that picked it, where their number cannot be known: in graphs, under vmap.

    The other tokens are zeros to it: what is not finite in them would reach the gradients of its weights.
    """
    picked_by = indices.reshape(*indices.shape, *[1] * (a.hidden_states.dim() - indices.dim()))
    output = a.residual
    for adapter in range(a.down_weight.shape[0]):
        picked = picked_by == adapter
        hidden_states = torch.where(picked, a.hidden_states, torch.zeros_like(a.hidden_states))
        weights = (None if tensor is None else tensor[adapter] for tensor in a.tensors[2:])
        own = reference.bottleneck_adapter(hidden_states, a.residual, *weights, a.activation, a.scaling)
        output = torch.where(picked, own, torch.zeros_like(own) if output is None else output)
    return output
