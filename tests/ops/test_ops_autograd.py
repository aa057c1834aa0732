"""The operator's autograd node: what it computes when little is asked for, what it keeps, when it is absent."""

import itertools

import pytest
import torch
from ops_cases import NAMES, WEIGHTS, arguments_of, compute, copy_of, expect, make_arguments
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint


class Calls(TorchDispatchMode):
    """Remember every operator that reaches the kernels."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append((function, args))
        return function(*args, **(kwargs or {}))

    def names(self):
        return [function.name() for function, _ in self.seen]

    def output_mask(self):
        return next(args[-1] for function, args in self.seen if function.name().endswith("_backward"))


@pytest.mark.parametrize(
    "wanted", list(itertools.product([False, True], repeat=6)), ids=lambda flags: "".join(map(str, map(int, flags)))
)
def test_every_subset_of_gradients(wanted):
    names = [name for name, flag in zip(NAMES, wanted, strict=True) if flag]
    arguments = make_arguments((7,), 6, 5, 3, requires_grad=names)
    with Calls() as calls:
        output = compute(arguments)
        assert output.requires_grad == any(wanted)
        if not any(wanted):
            assert calls.names() == ["adapterx::bottleneck_adapter"]
            return
        output.backward(torch.ones_like(output))
    # The kernels are asked for exactly these gradients; the residual's is no work of theirs.
    mask = [wanted[0], *wanted[2:]]
    if any(mask):
        assert list(calls.output_mask()) == mask
    else:
        assert "adapterx::bottleneck_adapter_backward" not in calls.names()
    theirs = copy_of(arguments)
    expect(theirs).sum().backward()
    for name, tensor, twin in zip(NAMES, arguments, theirs, strict=True):
        assert (tensor.grad is None) == (name not in names)
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, twin.grad)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=5))[1:], ids=str)
def test_every_subset_of_gradients_in_sequential_placement(wanted):
    names = [name for name, flag in zip(("hidden_states", *WEIGHTS), wanted, strict=True) if flag]
    arguments = arguments_of("sequential", (7,), 6, 6, 3, requires_grad=names)
    with Calls() as calls:
        output = compute(arguments)
        output.backward(torch.ones_like(output))
    assert list(calls.output_mask()) == list(wanted)
    theirs = copy_of(arguments)
    assert theirs[0] is theirs[1]
    expect(theirs).sum().backward()
    for tensor, twin in zip(arguments, theirs, strict=True):
        assert (tensor.grad is None) == (twin.grad is None)
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, twin.grad)


@pytest.mark.parametrize("names", [("hidden_states",), ("down_bias",), ("residual", "up_weight")], ids=str)
def test_gradients_asked_for_by_name_only(names):
    arguments = make_arguments((7,), 6, 5, 3, requires_grad=NAMES)
    inputs = [arguments[NAMES.index(name)] for name in names]
    with Calls() as calls:
        actual = torch.autograd.grad(compute(arguments).sum(), inputs)
    assert sum(calls.output_mask()) == len([name for name in names if name != "residual"])
    wanted = torch.autograd.grad(expect(arguments).sum(), inputs)
    for mine, theirs in zip(actual, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_sequential_placement_adds_both_gradients_in_one_operator():
    arguments = arguments_of("sequential", (7,), 6, 6, 3)
    output = compute(arguments)
    with Calls() as calls:
        output.backward(torch.ones_like(output))
    assert calls.names().count("adapterx::bottleneck_adapter_backward") == 1
    assert not {"aten::add.Tensor", "aten::add_.Tensor"} & set(calls.names())
    assert output.grad_fn.next_functions[1][0] is not None
    assert len(output.grad_fn.next_functions) == 5


def saved_by(arguments):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        compute(arguments)
    return saved


def test_what_is_kept_for_the_backward_pass():
    num_tokens, size, bottleneck_dim = 50, 32, 4
    arguments = arguments_of("parallel", (num_tokens,), size, size, bottleneck_dim)
    known = {tensor.data_ptr(): name for name, tensor in zip(NAMES, arguments, strict=True)}
    saved = saved_by(arguments)
    names = sorted(known.get(tensor.data_ptr(), tuple(tensor.shape)) for tensor in saved if tensor.data_ptr() in known)
    assert names == ["down_weight", "hidden_states", "up_weight"]
    assert [tuple(t.shape) for t in saved if t.data_ptr() not in known] == [(num_tokens, bottleneck_dim)]


@pytest.mark.parametrize(
    ("requires_grad", "kept"),
    [
        (("hidden_states",), {"down_weight", "up_weight", "pre_activation"}),  # a frozen adapter above a trained one
        (WEIGHTS, {"hidden_states", "up_weight", "pre_activation"}),  # the lowest layer
        (("down_bias",), {"up_weight", "pre_activation"}),
        (("up_weight",), {"pre_activation"}),
        (("residual", "up_bias"), set()),
    ],
)
def test_nothing_is_kept_that_no_gradient_needs(requires_grad, kept):
    arguments = make_arguments((50,), 32, 32, 4, requires_grad=requires_grad)
    known = {tensor.data_ptr(): name for name, tensor in zip(NAMES, arguments, strict=True)}
    assert {known.get(tensor.data_ptr(), "pre_activation") for tensor in saved_by(arguments)} == kept


def test_backward_operator_leaves_unwanted_gradients_out():
    tensors = [torch.randn(4, 5), None, torch.randn(4, 3), None, torch.randn(5, 3)]
    mask = [False, False, True, False, True]
    results = torch.ops.adapterx.bottleneck_adapter_backward(*tensors, "gelu", 0.7, False, mask)
    assert [result is not None for result in results] == mask


def test_the_graph_is_freed_and_can_be_retained():
    arguments = make_arguments(requires_grad=NAMES)
    output = compute(arguments).sum()
    output.backward(retain_graph=True)
    once = arguments[2].grad.clone()
    output.backward()
    torch.testing.assert_close(arguments[2].grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        output.backward()


def test_arguments_changed_in_place_after_the_forward_pass_are_noticed():
    arguments = make_arguments(requires_grad=WEIGHTS)
    output = compute(arguments)
    arguments[0].add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        output.sum().backward()


def test_an_output_that_nothing_uses_costs_nothing():
    arguments = make_arguments(requires_grad=NAMES)
    compute(arguments)
    other = compute(arguments, "relu")
    other.sum().backward()
    theirs = copy_of(arguments)
    expect(theirs, "relu").sum().backward()
    torch.testing.assert_close(arguments[2].grad, theirs[2].grad)


def test_no_grad_and_inference_mode_run_the_inference_operator():
    arguments = make_arguments(requires_grad=NAMES)
    for context in (torch.no_grad, torch.inference_mode):
        with context(), Calls() as calls:
            output = compute(arguments)
        assert calls.names() == ["adapterx::bottleneck_adapter"]
        assert not output.requires_grad
        torch.testing.assert_close(output.clone(), expect(arguments).detach())
    with torch.inference_mode():
        made_inside = make_arguments()
    torch.testing.assert_close(compute(made_inside), expect(made_inside))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    arguments = arguments_of("sequential", (5,), 6, 6, 3)

    def block(hidden_states):
        return compute([hidden_states, hidden_states, *arguments[2:]])

    checkpoint(block, arguments[0], use_reentrant=use_reentrant).sum().backward()
    theirs = copy_of(arguments)
    expect(theirs).sum().backward()
    for tensor, twin in zip(arguments, theirs, strict=True):
        torch.testing.assert_close(tensor.grad, twin.grad)
