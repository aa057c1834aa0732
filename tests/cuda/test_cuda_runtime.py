"""What a GPU adds to an operator: graphs, streams, several devices, compilers, memory that ends, and bits that stay."""

import pytest
import torch
from cuda_cases import (
    check_gradients,
    expect_grouped,
    grouped,
    make_grouped,
    needs_memory,
    to_device,
)
from ops_cases import NAMES, arguments_of, compute, copy_of, error, expect, gradients, make_arguments

from adapterx import ops

PATHS = ("auto", "tile:16x8", "tile:64x1", "cublas")
GROUPED_PATHS = ("auto", "tile:64x1", "segments")


def fill(targets, sources):
    """Copy new values into the tensors that a graph reads."""
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            if target is not None:
                target.copy_(source)


def captured(function):
    """Return the replay of a CUDA graph of the function, and the tensors that it writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph.replay, outputs


# CUDA graphs


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tokens", [8, 300])
def test_a_graph_of_the_forward_reads_new_inputs(path, tokens, gpu, pin):
    pin(path)
    shape = ((tokens,), 136, 136, 24)
    static = to_device(make_arguments(*shape, dtype=torch.bfloat16), gpu)
    replay, output = captured(lambda: compute(static))
    for _ in range(3):
        fresh = to_device(make_arguments(*shape, dtype=torch.bfloat16), gpu)
        fill(static, fresh)
        replay()
        assert torch.equal(output, compute(fresh))


@pytest.mark.parametrize("path", PATHS)
def test_a_graph_of_training_reads_new_inputs(path, gpu, pin):
    pin(path)
    shape = ((300,), 136, 136, 24)
    make = lambda: to_device(arguments_of("parallel", *shape, dtype=torch.bfloat16), gpu)  # noqa: E731
    static, cotangent = make(), torch.randn(300, 136, device=gpu).bfloat16()
    replay, found = captured(lambda: gradients(compute, static, cotangent))
    for _ in range(3):
        fresh = make()
        fill(static, fresh)
        cotangent.normal_()
        replay()
        for name, gradient in gradients(compute, fresh, cotangent).items():
            assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("path", GROUPED_PATHS)
def test_a_graph_of_the_grouped_form_reads_new_indices(path, gpu, pin):
    """The grids do not depend on how many tokens pick which adapter; all, none and one adapter for all are extremes."""
    pin(path)
    arguments, _ = make_grouped((300,), 136, 136, 24, 5, dtype=torch.bfloat16, requires_grad=NAMES)
    arguments, indices = to_device(arguments, gpu), torch.zeros(300, dtype=torch.int64, device=gpu)
    cotangent = torch.randn(300, 136, device=gpu).bfloat16()
    run = grouped(indices)
    replay, (output, found) = captured(lambda: (run(arguments), gradients(run, arguments, cotangent)))
    choices = [torch.randint(-1, 5, (300,)), torch.full((300,), -1), torch.full((300,), 4), torch.arange(300) % 5]
    for choice in choices:
        indices.copy_(choice)
        replay()
        own = grouped(choice.to(gpu))
        assert torch.equal(output, own(arguments))
        for name, gradient in gradients(own, arguments, cotangent).items():
            assert torch.equal(found[name], gradient), name


# Streams and devices


@pytest.mark.parametrize("path", PATHS)
def test_the_current_stream_is_used(path, gpu, pin):
    """The inputs are written late on a side stream: whoever runs elsewhere reads what was there before."""
    pin(path)
    arguments = to_device(arguments_of("parallel", (300,), 136, 136, 24, dtype=torch.bfloat16), gpu)
    late = torch.zeros_like(arguments[0]).requires_grad_()
    inputs = [late, *arguments[1:]]
    cotangent = torch.randn(300, 136, device=gpu).bfloat16()
    wanted = compute(arguments), gradients(compute, arguments, cotangent)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # clock cycles
        fill([late], [arguments[0]])
        output, found = compute(inputs), gradients(compute, inputs, cotangent)
    side.synchronize()
    assert torch.equal(output, wanted[0])
    for name, gradient in wanted[1].items():
        assert torch.equal(found[name], gradient), name


def test_the_device_of_the_tensors_is_used(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    arguments = arguments_of("parallel", (70,), 136, 136, 24, dtype=torch.bfloat16)
    cotangent = torch.randn(70, 136).bfloat16()
    on_first, on_second = (to_device(arguments, f"cuda:{index}") for index in range(2))
    assert torch.cuda.current_device() == 0
    wanted = gradients(compute, on_first, cotangent.to("cuda:0"))
    found = gradients(compute, on_second, cotangent.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    for name, gradient in wanted.items():
        assert found[name].device.index == 1
        assert torch.equal(found[name].cpu(), gradient.cpu())
    tensors, indices = make_grouped((70,), 136, 136, 24, 3, dtype=torch.bfloat16)
    outputs = [grouped(indices.to(where))(to_device(tensors, where)).cpu() for where in ("cuda:0", "cuda:1")]
    assert torch.equal(*outputs)


# Autocast and compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, device):
    arguments = to_device(arguments_of("sequential", (33,), 64, 64, 16, dtype=torch.float32), device)
    with torch.autocast(device, dtype=dtype):
        actual, wanted = compute(arguments), expect(arguments)
    assert actual.dtype == wanted.dtype == torch.float32
    assert error(actual.detach(), wanted.detach().double()) < 2e-2
    low = [tensor if index < 2 else tensor.detach().to(dtype) for index, tensor in enumerate(arguments)]
    with torch.autocast(device, dtype=dtype):
        assert compute([low[0], None, *low[2:]]).dtype == dtype
    found = torch.autograd.grad(actual.sum(), arguments[0])[0]
    assert found.dtype == torch.float32
    assert found.isfinite().all()


@pytest.mark.parametrize("form", ["plain", "grouped"])
def test_compile_of_the_full_graph(form, device):
    if device == "cuda":
        pytest.importorskip("triton", reason="torch.compile needs Triton on a GPU")
    torch._dynamo.reset()
    if form == "plain":
        arguments = to_device(arguments_of("parallel", (70,), 64, 64, 16, dtype=torch.bfloat16), device)
        run = compute
    else:
        arguments, indices = make_grouped((70,), 64, 64, 16, 3, dtype=torch.bfloat16, requires_grad=NAMES)
        arguments, run = to_device(arguments, device), grouped(indices.to(device))
    function = lambda *tensors: torch.sin(run(tensors)) * 2  # noqa: E731
    backend = "inductor" if device == "cuda" else "aot_eager"
    fast = torch.compile(function, fullgraph=True, backend=backend)
    found = torch.autograd.grad(fast(*arguments).float().square().sum(), arguments)
    wanted = torch.autograd.grad(function(*arguments).float().square().sum(), arguments)
    for name, mine, theirs in zip(NAMES, found, wanted, strict=True):
        assert error(mine, theirs.double()) < 2e-2, name
    with torch.no_grad():
        assert error(fast(*arguments), function(*arguments).double()) < 2e-2


# The same bits, always


@pytest.mark.parametrize("path", PATHS)
def test_a_hundred_runs_give_the_same_bits(path, device, pin):
    pin(path)
    arguments = to_device(arguments_of("parallel", (333,), 264, 264, 40, dtype=torch.bfloat16), device)
    check_repeats(compute, arguments, device)


@pytest.mark.parametrize("path", GROUPED_PATHS)
def test_a_hundred_runs_of_the_grouped_form_give_the_same_bits(path, device, pin):
    pin(path)
    arguments, indices = make_grouped((333,), 264, 264, 40, 6, dtype=torch.bfloat16, requires_grad=NAMES)
    check_repeats(grouped(indices.to(device)), to_device(arguments, device), device)


def check_repeats(operator, arguments, device):
    cotangent = torch.randn(333, 264, device=device).bfloat16()
    output, first = operator(arguments), gradients(operator, arguments, cotangent)
    noise = []
    for _ in range(100 if device == "cuda" else 2):
        # Other work beside it moves blocks to other processors, and other memory into the temporaries.
        noise = [torch.randn(1 << 16, device=device), *noise[:3]]
        assert torch.equal(operator(arguments), output)
        for name, gradient in gradients(operator, arguments, cotangent).items():
            assert torch.equal(gradient, first[name]), name


# Memory


@needs_memory
@pytest.mark.parametrize("path", ["tile", "cublas", "segments"])
def test_tensors_of_more_than_two_to_the_31_elements(path, gpu, pin):
    """Rows behind element 2^31 are as right as the first ones; the sums over all rows are compared with PyTorch's."""
    pin(path)
    size, bottleneck_dim, part = 4096, 16, 4096
    tokens = (1 << 31) // size + 100
    weights = to_device(make_arguments((), size, size, bottleneck_dim, dtype=torch.bfloat16)[2:], gpu)
    hidden_states = torch.empty(tokens, size, dtype=torch.bfloat16, device=gpu)
    cotangent = torch.empty_like(hidden_states)
    for begin in range(0, tokens, part):
        hidden_states[begin : begin + part].normal_()
        cotangent[begin : begin + part].normal_()
    assert hidden_states.numel() > 1 << 31
    leaves = [hidden_states, *weights]
    for tensor in leaves:
        tensor.requires_grad_()
    output = run_large(path, hidden_states, weights)
    found = torch.autograd.grad(output, leaves, cotangent)
    exact = [torch.zeros(weight.shape, dtype=torch.float64, device=gpu) for weight in weights]
    for begin in range(0, tokens, part):
        rows = hidden_states.detach()[begin : begin + part].requires_grad_()
        tensors = copy_of([rows, rows, *weights], torch.float64)
        wanted = expect(tensors)
        sums = torch.autograd.grad(wanted, [tensors[0], *tensors[2:]], cotangent[begin : begin + part].double())
        for total, share in zip(exact, sums[1:], strict=True):
            total += share
        if begin in (0, part) or begin + 2 * part > tokens:
            assert error(output[begin : begin + part].detach(), wanted.detach()) < 5e-3, begin
            assert error(found[0][begin : begin + part], sums[0]) < 5e-3, begin
    for name, gradient, total in zip(NAMES[2:], found[1:], exact, strict=True):
        assert error(gradient, total) < 1e-2, name


def run_large(path, hidden_states, weights):
    if path != "segments":
        return compute([hidden_states, hidden_states, *weights])
    indices = torch.zeros(len(hidden_states), dtype=torch.int64, device=hidden_states.device)
    stacked = [weight.unsqueeze(0) for weight in weights]
    options = {"activation": "gelu", "scaling": 0.7, "adapter_indices": indices}
    return ops.bottleneck_adapter(hidden_states, hidden_states, *stacked, **options)


def test_a_request_beyond_all_memory_leaves_nothing_broken(gpu):
    arguments = to_device(make_arguments((70,), 136, 136, 24, dtype=torch.bfloat16), gpu)
    wanted = compute(arguments)
    row = arguments[0][:1]
    huge = [row.expand(1 << 33, 136), None, *arguments[2:]]  # 2 TB of output
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            compute(huge)
        assert torch.equal(compute(arguments), wanted)


@pytest.mark.parametrize("path", ["tile", "cublas"])
def test_running_out_of_memory_in_training_leaves_nothing_broken(path, gpu, pin):
    pin(path)
    arguments = to_device(arguments_of("sequential", (8192,), 1024, 1024, 64, dtype=torch.bfloat16), gpu)
    cotangent = torch.randn(8192, 1024, device=gpu).bfloat16()
    wanted = gradients(compute, arguments, cotangent)
    output = compute(arguments)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 20)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.autograd.grad(output, arguments[0], cotangent, retain_graph=True)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    found = gradients(lambda *_: output, arguments, cotangent)
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("path", ["tile", "cublas"])
def test_nothing_as_large_as_the_hidden_states_is_kept_or_used_on_the_way(path, gpu, pin):
    """In training: the output, the narrow pre-activation and a workspace, but no temporary of T x d."""
    pin(path)
    tokens, size, bottleneck_dim = 16384, 4096, 16
    arguments = to_device(arguments_of("sequential", (tokens,), size, size, bottleneck_dim, dtype=torch.bfloat16), gpu)
    cotangent = torch.randn(tokens, size, device=gpu).bfloat16()
    gradients(compute, arguments, cotangent)  # workspaces of cuBLAS
    torch.cuda.synchronize()
    rows, narrow = tokens * size * 2, tokens * bottleneck_dim * 2
    for function, results in ((lambda: compute(arguments), 1), (lambda: gradients(compute, arguments, cotangent), 2)):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        used = torch.cuda.max_memory_allocated() - before
        assert used < results * rows + 40 * narrow + (64 << 20), f"{used / rows:.2f} times the hidden states"


def test_gradients_through_the_two_forms_agree(device):
    """One adapter in the grouped form is the plain operator."""
    arguments = arguments_of("parallel", (40,), 64, 64, 16, dtype=torch.bfloat16)
    indices = torch.zeros(40, dtype=torch.int64)

    def one_group(tensors, **options):
        stacked = [tensor if index < 2 else tensor.unsqueeze(0) for index, tensor in enumerate(tensors)]
        return grouped(indices.to(tensors[0].device))(stacked, **options)

    check_gradients(one_group, arguments, device)
    formula = expect_grouped(indices)
    plain = expect(copy_of(arguments, torch.float64))
    stacked = [tensor if index < 2 else tensor.unsqueeze(0) for index, tensor in enumerate(arguments)]
    assert error(formula(stacked).detach(), plain.detach()) < 1e-2
