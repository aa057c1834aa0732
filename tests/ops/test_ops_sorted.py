"""Sorted indices, which several calls of the operator share. They are made on CUDA, or where CUDA is emulated."""

import pytest
import torch
from functorch.compile import make_boxed_func
from ops_cases import NAMES
from test_ops_grouped import GROUPS, compute, gradients, make_arguments, make_indices
from torch._dynamo.backends.common import aot_autograd

from adapterx import ops

EMULATED = ops.build_info()["cuda"] == "emulated"
needs_the_sort = pytest.mark.skipif(not EMULATED, reason="the CPU does not sort beforehand")
# Leading dimensions of the tokens and of the indices.
FORMS = (
    ((7,), (7,)),
    ((2, 5), (2,)),
    ((2, 5), (2, 5)),
    ((2, 1, 3), (2, 1)),
    ((4, 2), ()),
    ((3, 130), (3,)),
    ((0,), (0,)),
)


def sort(indices, leading, groups=GROUPS):
    return ops.sort_tokens(indices, torch.Size(leading).numel(), groups)


@needs_the_sort
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("leading", "shape"), FORMS)
def test_the_bits_are_those_of_plain_indices(leading, shape, dtype):
    arguments = make_arguments(leading, (32, 32, 8), dtype=dtype, requires_grad=NAMES)
    indices = make_indices(shape)
    order = sort(indices, leading)
    assert torch.equal(compute(arguments, order), compute(arguments, indices))
    cotangent = torch.randn(*leading, 32).to(dtype)
    expected = gradients(compute, arguments, indices, cotangent)
    for _ in range(2):
        for name, gradient in gradients(compute, arguments, order, cotangent).items():
            assert torch.equal(gradient, expected[name]), name


@needs_the_sort
def test_one_order_serves_weights_of_any_size():
    indices = make_indices((300,))
    order = sort(indices, (300,))
    for sizes, dtype in (((32, 32, 8), torch.bfloat16), ((64, 64, 100), torch.float16), ((6, 10, 4), torch.float32)):
        arguments = make_arguments((300,), sizes, dtype=dtype)
        assert torch.equal(compute(arguments, order), compute(arguments, indices))


@needs_the_sort
@pytest.mark.parametrize("groups", [1, 2, 17, 300, 4096])
def test_the_size_holds_what_the_kernels_keep(groups):
    """The library asserts it; a size says for how many tokens and adapters an order is."""
    sizes = {}
    for count in (0, 1, 2, 15, 16, 17, 255, 256, 257, 1000, 4097):
        order = ops.sort_tokens(torch.full((count,), groups - 1), count, groups)
        assert order.dtype == torch.uint8
        assert (
            order.shape
            == torch.ops.adapterx.sort_tokens(torch.empty(count, device="meta", dtype=torch.int64), count, groups).shape
        )
        sizes.setdefault(len(order), []).append(count)
    assert all(len(counts) == 1 for counts in sizes.values())


@needs_the_sort
def test_second_derivatives_and_transforms():
    """The formula takes their place; it reads the indices out of the order."""
    arguments, indices = make_arguments((2, 2), (3, 3, 2), requires_grad=NAMES), torch.tensor([1, -1])
    order = sort(indices, (2, 2))
    assert torch.autograd.gradgradcheck(lambda *tensors: compute(tensors, order, "gelu"), arguments)

    def loss(weight, choice):
        return compute([*arguments[:2], weight, *arguments[3:]], choice).square().sum()

    weight = arguments[2].detach()
    expected = torch.func.grad(loss)(weight, indices)
    torch.testing.assert_close(torch.func.grad(loss)(weight, order), expected)
    batch = torch.randn(5, *arguments[0].shape, dtype=torch.float64)
    run = lambda choice: torch.func.vmap(lambda h: compute([h, h, *arguments[2:]], choice))(batch)  # noqa: E731
    torch.testing.assert_close(run(order), run(indices))
    inside = torch.func.vmap(lambda h: compute([h, h, *arguments[2:]], sort(indices, (2, 2))))(batch)
    torch.testing.assert_close(inside, run(indices))


@needs_the_sort
def test_opcheck():
    torch.library.opcheck(torch.ops.adapterx.sort_tokens.default, (torch.tensor([0, -1, 2]), 12, 3))
    order = sort(torch.tensor([0, -1, 2]), (3, 2))
    arguments = make_arguments((3, 2), requires_grad=NAMES)
    torch.library.opcheck(torch.ops.adapterx.bottleneck_adapter.default, (*arguments, "gelu", 0.5, order))


@needs_the_sort
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_training_sorts_once(dynamic):
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    def twice(arguments, indices):
        for _ in range(2):
            order = ops.sort_tokens(indices, arguments[0].shape[:-1].numel(), GROUPS)
            arguments = [compute(arguments, order), *arguments[1:]]
        return arguments[0]

    compiler = aot_autograd(
        fw_compiler=keep,
        bw_compiler=keep,
        partition_fn=torch._functorch.partitioners.min_cut_rematerialization_partition,
    )
    compiled = torch.compile(twice, backend=compiler, fullgraph=True, dynamic=dynamic)
    arguments, cotangent = make_arguments((2, 5), requires_grad=NAMES), torch.randn(2, 5, 6, dtype=torch.float64)
    expected = gradients(twice, arguments, torch.tensor([1, -1]), cotangent)
    for name, gradient in gradients(compiled, arguments, torch.tensor([1, -1]), cotangent).items():
        torch.testing.assert_close(gradient, expected[name])
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert targets.count("adapterx.sort_tokens.default") == 1
    assert targets.count("adapterx.bottleneck_adapter_backward.default") == 2


@needs_the_sort
def test_an_order_for_others_is_refused():
    arguments = make_arguments((6,))
    words = "must have dtype int64, or be what sort_tokens returned for 6 tokens and 3 adapters, got uint8 of shape"
    wrong = [
        sort(make_indices((7,)), (7,)),
        sort(make_indices((6,)), (6,), groups=4),
        sort(make_indices((6,)), (6,))[:-1],
        sort(make_indices((6,)), (6,)).repeat_interleave(2)[::2],
        sort(make_indices((6,)), (6,)).unsqueeze(0),
        torch.zeros(6, dtype=torch.uint8),
    ]
    for order in wrong:
        with pytest.raises(TypeError, match=words):
            compute(arguments, order)
    backward = torch.ops.adapterx.bottleneck_adapter_backward
    tensors = (torch.zeros(6, 6), arguments[0].float(), torch.zeros(6, 4), arguments[2].float(), arguments[4].float())
    with pytest.raises(TypeError, match=words):
        backward(*tensors, "gelu", 1.0, False, [True] * 5, wrong[0], 3)


@needs_the_sort
def test_an_order_that_was_written_to_is_noticed_by_the_backward_pass():
    arguments, order = make_arguments((6,), requires_grad=NAMES), sort(make_indices((6,)), (6,))
    output = compute(arguments, order)
    order.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(4), 4, 2), TypeError, "adapter_indices must have dtype int64, got Float"),
        ((torch.zeros(4, dtype=torch.int64), 6, 2), ValueError, r"multiple of the number of indices \(4\), got 6"),
        ((torch.zeros(0, dtype=torch.int64), 6, 2), ValueError, r"multiple of the number of indices \(0\), got 6"),
        ((torch.zeros(4, dtype=torch.int64), -4, 2), ValueError, r"multiple of the number of indices \(4\), got -4"),
        ((torch.zeros(4, dtype=torch.int64), 4, 0), ValueError, "num_adapters must be positive, got 0"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(arguments, error, words, device):
    indices, *numbers = arguments
    with pytest.raises(error, match=f"^sort_tokens: .*{words}"):
        ops.sort_tokens(indices.to(device), *numbers)


@needs_the_sort
def test_what_cannot_be_sorted_is_refused():
    with pytest.raises(
        ValueError, match=r"^sort_tokens: down_weight must be for at most 4096 adapters on CUDA, got 4097"
    ):
        ops.sort_tokens(torch.zeros(4, dtype=torch.int64), 4, 4097)
    with pytest.raises(RuntimeError, match="adapter_indices must be -1 or the number of an adapter"):
        ops.sort_tokens(torch.tensor([0, 3]), 4, 3)


@pytest.mark.skipif(EMULATED, reason="CPU tensors stand for those of a GPU there")
def test_the_cpu_does_not_sort_beforehand():
    with pytest.raises(NotImplementedError, match="sort_tokens: adapter_indices must be on a CUDA device, got CPU"):
        sort(make_indices((4,)), (4,))
