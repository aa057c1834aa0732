"""The base model that a file was written for is told from others by its weights."""

import pytest
import torch
from tiny_models import plain_model
from torch import nn

from adapterx import CheckpointError
from adapterx.checkpoint.base import checksum


def test_the_checksum_is_of_all_values_and_of_nothing_else():
    state = plain_model().state_dict()
    known = checksum(state)
    assert checksum(dict(reversed(state.items()))) == known
    assert checksum({name: nn.Parameter(tensor.clone()) for name, tensor in state.items()}) == known
    strided = {name: torch.stack([tensor, tensor], dim=-1)[..., 0] for name, tensor in state.items()}
    assert checksum(strided) == known
    for name, tensor in state.items():
        changed = tensor.clone()
        changed.view(-1)[-1] = torch.nextafter(changed.view(-1)[-1], torch.tensor(9.0))
        assert checksum(state | {name: changed}) != known
    assert checksum({name: tensor.double() for name, tensor in state.items()}) != known
    assert checksum({name: tensor[..., None] for name, tensor in state.items()}) != known
    assert checksum({f"x.{name}": tensor for name, tensor in state.items()}) != known
    assert checksum({}) == checksum({})


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
)
def test_the_checksum_takes_every_dtype(dtype):
    one, two = torch.zeros(3, 2).to(dtype), torch.ones(3, 2).to(dtype)
    assert checksum({"a": one, "scalar": one[0, 0], "empty": one[:0]}) != checksum({"a": two})


def freed():
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("make", [freed, lambda: torch.ones(4, device="meta"), lambda: torch.eye(2).to_sparse()])
def test_weights_that_are_not_in_memory_have_no_checksum(make):
    with pytest.raises(CheckpointError, match=r"must be in memory, got none for \['b'\]"):
        checksum({"a": torch.ones(2), "b": make()})
