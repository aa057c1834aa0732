"""What tells one base model from another: the weights."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from adapterx.errors import CheckpointError, speaker


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of all tensors, whatever order they come in.

    A gigabyte takes a core about a second; the tensors are shared out among the cores.

    Raises:
        CheckpointError: a tensor has no values in memory, as on the meta device or where a model is offloaded.
    """
    without = sorted(name for name, tensor in tensors.items() if not has_values(tensor))
    if without:
        raise CheckpointError(f"{speaker()}: the base weights must be in memory, got none for {without[:8]}")
    names = sorted(tensors)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves the interpreter to others
        digests = pool.map(_digest, [tensors[name] for name in names])
        lines = [
            f"{name!r} {tensors[name].dtype} {list(tensors[name].shape)} {digest}"
            for name, digest in zip(names, digests, strict=True)
        ]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()


def has_values(tensor: Tensor) -> bool:
    """Tell whether a tensor is a plain one whose values are in memory: not meta, sharded, offloaded or packed."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    if tensor.is_meta or tensor.is_quantized:
        return False
    if tensor.numel() == 0:
        return True
    # FSDP takes the memory of parameters away and leaves their shapes.
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy()).hexdigest()
