"""The checks of the operators' arguments, with the words of the compiled ones (csrc/ops/checks.cpp).

Sizes may be symbolic: `torch._check_value` then records a condition as a fact about them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adapterx.reference import ACTIVATIONS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAME = "bottleneck_adapter"


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call of `bottleneck_adapter`, in the order of its schema."""

    hidden_states: Tensor
    residual: Tensor | None
    down_weight: Tensor
    down_bias: Tensor | None
    up_weight: Tensor
    up_bias: Tensor | None
    activation: str
    scaling: float
    adapter_indices: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Those that gradients flow to."""
        return (self.hidden_states, self.residual, self.down_weight, self.down_bias, self.up_weight, self.up_bias)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _value(condition: bool, words: Callable[[], str]) -> None:
    torch._check_value(condition, lambda: f"{NAME}: {words()}")


def _type(condition: bool, words: Callable[[], str]) -> None:
    torch._check_type(condition, lambda: f"{NAME}: {words()}")


def check_given(a: Arguments) -> None:
    """Refuse None where a tensor is needed; the dispatcher lets it pass."""
    for name in ("hidden_states", "down_weight", "up_weight"):
        _type(getattr(a, name) is not None, lambda name=name: f"{name} must be a tensor, got None")


def check(a: Arguments) -> None:
    """Refuse arguments that break a rule.

    Raises:
        TypeError: a tensor is missing or has the wrong dtype.
        ValueError: a size, a device, the activation's name or the scaling breaks a rule.
        NotImplementedError: a tensor is not strided.
    """
    known = ", ".join(ACTIVATIONS)
    _value(a.activation in ACTIVATIONS, lambda: f"activation must be one of {known}, got '{a.activation}'")
    _value(math.isfinite(a.scaling), lambda: f"scaling must be finite, got {a.scaling}")
    check_given(a)
    _check_hidden_states(a.hidden_states)
    if a.adapter_indices is not None:
        _check_indices(a)
    _check_weights(a)
    if a.residual is not None:
        _check_residual(a)


def _check_hidden_states(tensor: Tensor) -> None:
    _type(
        tensor.dtype in DTYPES,
        lambda: f"hidden_states must have dtype float32, float64, bfloat16 or float16, got {_name_of(tensor.dtype)}",
    )
    if tensor.layout is not torch.strided:
        raise NotImplementedError(f"{NAME}: hidden_states must be strided, got {tensor.layout}")
    _value(tensor.dim() >= 1, lambda: "hidden_states must have at least one dimension, got a tensor without dimensions")
    _value(tensor.shape[-1] > 0, lambda: f"hidden_states must have at least one column, got shape {list(tensor.shape)}")


def _matches(name: str, tensor: Tensor, anchor: Tensor) -> None:
    _type(
        tensor.dtype == anchor.dtype,
        lambda: f"{name} must have the dtype of hidden_states ({_name_of(anchor.dtype)}), got {_name_of(tensor.dtype)}",
    )
    _same_device(name, tensor, anchor)


def _same_device(name: str, tensor: Tensor, anchor: Tensor) -> None:
    _value(
        tensor.device == anchor.device,
        lambda: f"{name} must be on the device of hidden_states ({anchor.device}), got {tensor.device}",
    )


def _check_indices(a: Arguments) -> None:
    indices, leading = a.adapter_indices, a.hidden_states.shape[:-1]
    kind = _name_of(indices.dtype)
    _type(indices.dtype in (torch.int64, torch.uint8), lambda: f"adapter_indices must have dtype int64, got {kind}")
    _same_device("adapter_indices", indices, a.hidden_states)
    if indices.dtype == torch.uint8:
        return  # _check_order looks at it

    def words() -> str:
        shape = list(a.hidden_states.shape)
        rule = f"adapter_indices must have the first of the leading dimensions of hidden_states {shape}"
        return f"{rule}, got shape {list(indices.shape)}"

    _value(indices.dim() <= len(leading), words)
    for ours, theirs in zip(indices.shape, leading, strict=False):
        _value(ours == theirs, words)


def sorted_size(num_tokens: int, num_adapters: int) -> int:
    """Return the size of sorted indices in bytes, as in csrc/ops/sorted_indices.h."""
    return num_tokens * 18 + num_adapters * 73 + 4096


def _check_order(a: Arguments, num_adapters: int) -> None:
    indices, num_tokens = a.adapter_indices, a.hidden_states.shape[:-1].numel()

    def words() -> str:
        rule = f"or be what sort_tokens returned for {num_tokens} tokens and {num_adapters} adapters"
        return f"adapter_indices must have dtype int64, {rule}, got uint8 of shape {list(indices.shape)}"

    _type(indices.dim() == 1 and indices.is_contiguous(), words)
    _type(indices.shape[0] == sorted_size(num_tokens, num_adapters), words)


def _check_matrix(name: str, a: Arguments, rows: str, columns: str) -> None:
    tensor, grouped = getattr(a, name), a.adapter_indices is not None
    _matches(name, tensor, a.hidden_states)
    first, also, form = ("num_adapters, ", " and one adapter", "with") if grouped else ("", "", "without")
    _value(
        tensor.dim() == (3 if grouped else 2),
        lambda: f"{name} must have shape ({first}{rows}, {columns}), got {list(tensor.shape)} {form} adapter_indices",
    )
    for size in tensor.shape:
        _value(
            size > 0,
            lambda: f"{name} must have at least one row and one column{also}, got shape {list(tensor.shape)}",
        )


def _check_weights(a: Arguments) -> None:
    _check_matrix("down_weight", a, "bottleneck_dim", "input_size")
    _check_matrix("up_weight", a, "hidden_size", "bottleneck_dim")
    down, up = a.down_weight, a.up_weight
    num_adapters = None if a.adapter_indices is None else down.shape[0]
    if num_adapters is not None:
        if a.adapter_indices.dtype == torch.uint8:
            _check_order(a, num_adapters)
        _value(
            up.shape[0] == num_adapters,
            lambda: (
                f"up_weight must be for as many adapters as the other arguments ({num_adapters}), "
                f"got shape {list(up.shape)}"
            ),
        )
    columns = a.hidden_states.shape[-1]
    _value(
        down.shape[-1] == columns,
        lambda: f"down_weight must have as many columns as hidden_states ({columns}), got shape {list(down.shape)}",
    )
    _value(
        up.shape[-1] == down.shape[-2],
        lambda: (
            f"up_weight must have as many columns as down_weight has rows ({down.shape[-2]}), "
            f"got shape {list(up.shape)}"
        ),
    )
    _check_bias("down_bias", a, num_adapters, down.shape[-2], "bottleneck_dim")
    _check_bias("up_bias", a, num_adapters, up.shape[-2], "hidden_size")


def _check_bias(name: str, a: Arguments, num_adapters: int | None, size: int, size_name: str) -> None:
    tensor = getattr(a, name)
    if tensor is None:
        return
    _matches(name, tensor, a.hidden_states)
    wanted = (size,) if num_adapters is None else (num_adapters, size)

    def words() -> str:
        names = f"({size_name},) = ({size},)"
        if num_adapters is not None:
            names = f"(num_adapters, {size_name}) = ({num_adapters}, {size})"
        return f"{name} must have shape {names}, got {list(tensor.shape)}"

    _value(tensor.dim() == len(wanted), words)
    for ours, theirs in zip(tensor.shape, wanted, strict=True):
        _value(ours == theirs, words)


def _check_residual(a: Arguments) -> None:
    residual, size = a.residual, a.up_weight.shape[-2]
    _matches("residual", residual, a.hidden_states)

    def words() -> str:
        shape = list(a.hidden_states.shape)
        rule = f"residual must have the leading dimensions of hidden_states {shape} and {size} columns (hidden_size)"
        return f"{rule}, got {list(residual.shape)}"

    _value(residual.dim() == a.hidden_states.dim(), words)
    for ours, theirs in zip(residual.shape, (*a.hidden_states.shape[:-1], size), strict=True):
        _value(ours == theirs, words)


def check_range(indices: Tensor, leading: torch.Size, num_adapters: int) -> None:
    """Refuse an index that is no adapter's; `leading`: the dimensions of the tokens."""
    wrong = (indices < -1) | (indices >= num_adapters)
    if not wrong.any():
        return
    every = indices.reshape(*indices.shape, *[1] * (len(leading) - indices.dim())).expand(leading).reshape(-1)
    token = int(((every < -1) | (every >= num_adapters)).nonzero()[0])
    raise ValueError(
        f"{NAME}: adapter_indices must be -1 (no adapter) or the number of one of the {num_adapters} adapters, "
        f"got {int(every[token])} for token {token}"
    )


def check_memory(a: Arguments) -> None:
    """Refuse tensors whose storage has been freed, as FSDP and its kin do; the operators of PyTorch would read it."""
    names = ("hidden_states", "residual", "down_weight", "down_bias", "up_weight", "up_bias", "adapter_indices")
    for name in names:
        tensor = getattr(a, name)
        if tensor is None or tensor.numel() == 0:
            continue
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
        held = tensor.untyped_storage().nbytes()
        if held < needed:
            hint = "" if held else ": the tensor has a non-zero number of elements, but its data is not allocated yet"
            raise RuntimeError(
                f"{NAME}: {name} must have a storage of at least {needed} bytes for shape {list(tensor.shape)}, "
                f"got {held} bytes{hint}"
            )
