"""The grouped formula in plain PyTorch: against numbers worked by hand, and against one adapter after the other."""

import pytest
import torch

from adapterx import reference


def grouped(hidden_states, residual, indices, *weights, activation="relu", scaling=2.0):
    options = {"activation": activation, "scaling": scaling, "adapter_indices": indices}
    return reference.bottleneck_adapter(hidden_states, residual, *weights, **options)


def test_numbers_worked_by_hand():
    hidden_states = torch.tensor([[1.0, 2.0], [3.0, -1.0], [5.0, 5.0]])
    residual = torch.tensor([[10.0], [20.0], [30.0]])
    down_weight = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]])  # a sum and a difference
    down_bias, up_weight, up_bias = torch.tensor([[0.5], [0.0]]), torch.tensor([[[1.0]], [[3.0]]]), torch.zeros(2, 1)
    weights = (down_weight, down_bias, up_weight, up_bias)
    output = grouped(hidden_states, residual, torch.tensor([0, 1, -1]), *weights)
    assert output.tolist() == [[10 + 2 * 3.5], [20 + 2 * 3 * 4], [30]]
    output = grouped(hidden_states, residual, torch.tensor([1, 1, 0]), *weights)
    assert output.tolist() == [[10.0], [20 + 2 * 3 * 4], [30 + 2 * 10.5]]
    assert grouped(hidden_states, None, torch.tensor([-1, 0, -1]), *weights).tolist() == [[0.0], [5.0], [0.0]]
    weights = (down_weight, None, up_weight, torch.tensor([[0.25], [100.0]]))
    assert grouped(hidden_states, None, torch.tensor([-1, 0, -1]), *weights).tolist() == [[0.0], [4.5], [0.0]]


def make(leading, groups=3, *, without=()):
    sizes = {
        "hidden_states": (*leading, 4),
        "residual": (*leading, 5),
        "down_weight": (groups, 2, 4),
        "down_bias": (groups, 2),
        "up_weight": (groups, 5, 2),
        "up_bias": (groups, 5),
    }
    return [None if name in without else torch.randn(size, dtype=torch.float64) for name, size in sizes.items()]


@pytest.mark.parametrize("without", [(), ("residual",), ("down_bias", "up_bias")], ids="-".join)
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 3, 4)], ids=str)
def test_indices_of_sequences_are_those_of_their_tokens(shape, without):
    hidden_states, residual, *weights = make((2, 3, 4), without=without)
    indices = torch.randint(-1, 3, shape)
    output = grouped(hidden_states, residual, indices, *weights, activation="gelu")
    every = indices.reshape(*shape, *[1] * (3 - len(shape))).expand(2, 3, 4)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        place, index = tuple(place), int(every[tuple(place)])
        base = None if residual is None else residual[place]
        if index < 0:
            expected = torch.zeros(5).double() if base is None else base
        else:
            own = [None if weight is None else weight[index] for weight in weights]
            expected = reference.bottleneck_adapter(hidden_states[place], base, *own, activation="gelu", scaling=2.0)
        torch.testing.assert_close(output[place], expected)


def test_gradients():
    hidden_states, residual, *weights = (tensor.requires_grad_() for tensor in make((2, 3)))
    indices = torch.tensor([2, -1])
    assert torch.autograd.gradcheck(lambda h, r, *w: grouped(h, r, indices, *w, activation="tanh"),
                                    (hidden_states, residual, *weights))  # fmt: skip
    grouped(hidden_states, residual, indices, *weights).sum().backward()
    for weight in weights:  # nobody picked these two: gradients of zero, not none
        assert not weight.grad[:2].any()
    assert torch.equal(residual.grad, torch.ones_like(residual))
    assert not hidden_states.grad[1].any()


@pytest.mark.parametrize("leading", [(0,), (2, 0)])
def test_no_tokens(leading):
    hidden_states, residual, *weights = make(leading)
    indices = torch.zeros(leading[:1], dtype=torch.int64)
    assert grouped(hidden_states, residual, indices, *weights).shape == (*leading, 5)
    assert grouped(hidden_states, None, indices, *weights).shape == (*leading, 5)


def test_refusals():
    arguments = make((2, 3))
    with pytest.raises(ValueError, match=r"adapter_indices must have the leading dimensions .* \(2, 3\), got \(3,\)"):
        grouped(*arguments[:2], torch.zeros(3, dtype=torch.int64), *arguments[2:])
    for indices in ([0, 3], [-2, 0]):
        with pytest.raises(ValueError, match=r"adapter_indices must be in \[-1, 3\), got values from"):
            grouped(*arguments[:2], torch.tensor(indices), *arguments[2:])
