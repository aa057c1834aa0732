"""Tensors whose storage holds less than their shape says, as FSDP leaves its parameters, are refused in words."""

import pytest
import torch
from ops_cases import NAMES, compute, expect, make_arguments

UNALLOCATED = r"{}: {} must have a storage of at least \d+ bytes for shape .*, got 0 bytes: .*data is not allocated yet"
TOO_SMALL = r"{}: {} must have a storage of at least \d+ bytes for shape .*, got 8 bytes"
WORDS = {0: UNALLOCATED, 8: TOO_SMALL}
BACKWARD = ("grad_output", "hidden_states", "pre_activation", "down_weight", "up_weight")


def freed(tensor, num_bytes):
    tensor = tensor.detach().clone()
    tensor.untyped_storage().resize_(num_bytes)
    return tensor


def grouped_arguments():
    tokens, weights = make_arguments((4,))[:2], [torch.stack([tensor] * 2) for tensor in make_arguments((4,))[2:]]
    return [*tokens, *weights], torch.tensor([0, 1, -1, 0])


def forward(operator, arguments, indices):
    return getattr(torch.ops.adapterx, operator)(*arguments, "gelu", 0.7, indices)


def backward(arguments, indices):
    options = ["gelu", 0.7, False, [True] * 5, indices, 0 if indices is None else 2]
    return torch.ops.adapterx.bottleneck_adapter_backward(*arguments, *options)


def with_freed(names, name, arguments, indices, num_bytes):
    if name == "adapter_indices":
        return arguments, freed(indices, num_bytes)
    index = names.index(name)
    return [*arguments[:index], freed(arguments[index], num_bytes), *arguments[index + 1 :]], indices


@pytest.mark.parametrize("num_bytes", WORDS)
@pytest.mark.parametrize("operator", ["bottleneck_adapter", "bottleneck_adapter_train"])
@pytest.mark.parametrize("name", [*NAMES, "adapter_indices"])
def test_every_argument_of_the_forward_operators(name, operator, num_bytes):
    words = "^" + WORDS[num_bytes].format("bottleneck_adapter", name)
    plain = [] if name == "adapter_indices" else [(make_arguments((4,)), None)]
    for arguments, indices in (*plain, grouped_arguments()):
        forward(operator, arguments, indices)
        with pytest.raises(RuntimeError, match=words):
            forward(operator, *with_freed(NAMES, name, arguments, indices, num_bytes))


@pytest.mark.parametrize("num_bytes", WORDS)
@pytest.mark.parametrize("name", [*BACKWARD, "adapter_indices"])
def test_every_argument_of_the_backward_operator(name, num_bytes):
    words = "^" + WORDS[num_bytes].format("bottleneck_adapter_backward", name)
    plain = [] if name == "adapter_indices" else [(make_arguments((4,)), None)]
    for made, indices in (*plain, grouped_arguments()):
        hidden_states, _, down_weight, _, up_weight, _ = made
        arguments = [torch.randn(4, 8).double(), hidden_states, torch.randn(4, 4).double(), down_weight, up_weight]
        backward(arguments, indices)
        with pytest.raises(RuntimeError, match=words):
            backward(*with_freed(BACKWARD, name, arguments, indices, num_bytes))


def test_a_strided_view_of_a_freed_storage():
    """It would be copied before the kernel sees it; the copy must not read what is not there either."""
    for view in (lambda tensor: tensor[:, ::2], lambda tensor: tensor[2:].expand(2, 2, 16)[..., :8]):
        wide = torch.randn(4, 16, dtype=torch.float64)
        tensor = view(wide)
        arguments = [tensor, None, *make_arguments((4,))[2:]]
        compute(arguments)
        wide.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="hidden_states must have a storage"):
            compute(arguments)


@pytest.mark.parametrize("name", ["hidden_states", "down_weight", "up_weight"])
def test_memory_freed_between_forward_and_backward(name):
    arguments = make_arguments((4,), requires_grad=NAMES)
    output = compute(arguments)
    arguments[NAMES.index(name)].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=rf"^bottleneck_adapter_backward: {name} must have .* not allocated yet"):
        output.sum().backward()


def test_memory_that_comes_back_before_the_backward_pass():
    """What FSDP does: the parameter is freed behind the forward pass and gathered again for the backward pass."""
    arguments = make_arguments((4,), requires_grad=NAMES)
    expected = torch.autograd.grad(expect(arguments).sum(), arguments)
    output = compute(arguments)
    storage = arguments[2].untyped_storage()
    kept, size = arguments[2].detach().clone(), storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(arguments[2]):
        arguments[2].copy_(kept)
    for got, right in zip(torch.autograd.grad(output.sum(), arguments), expected, strict=True):
        torch.testing.assert_close(got, right)


def test_no_elements_need_no_memory():
    arguments = make_arguments((0,))
    arguments[0], arguments[1] = freed(arguments[0], 0), freed(arguments[1], 0)
    assert compute(arguments).shape == (0, 8)


def test_fake_tensors_have_no_memory_and_none_is_asked_for():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor).requires_grad_() for tensor in make_arguments((4,))]
        output = compute(fake)
        output.sum().backward()
    assert output.shape == (4, 8)
    meta = [tensor.to("meta") for tensor in make_arguments((4,))]
    assert compute(meta).device.type == "meta"
