"""Adapted Hugging Face models on a GPU give what they give on the CPU: outputs, gradients, training, mixed batches."""

import copy

import pytest
import torch

pytest.importorskip("transformers")
from ops_cases import error
from tiny_models import build, inputs_for, run

from adapterx import AdapterConfig, adapter_parameters, attach, disabled, mixed, ops, reference, set_active

FAMILIES = ("llama", "bert")
CONFIGS = {
    "houlsby": AdapterConfig(bottleneck_dim=5),
    "wide": AdapterConfig(bottleneck_dim=16, activation="silu", scaling=0.5),
    "parallel": AdapterConfig(bottleneck_dim=4, positions=("feed_forward",), placement="parallel"),
}


def adapted(family, dtype=torch.float32):
    """Return a model on the CPU with all adapters of CONFIGS, random ones, of which "houlsby" is active."""
    model = build(family).to(dtype)
    for name, config in CONFIGS.items():
        attach(model, config, name, active=name == "houlsby")
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for _, parameter in adapter_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def both(family, device, dtype=torch.float32):
    """Return a model on the CPU with its inputs, and a copy on the device with the same inputs there."""
    model = adapted(family, dtype)
    inputs = inputs_for(family, model, batch=4)
    twin = copy.deepcopy(model).to(device)
    return (model, inputs), (twin, {name: tensor.to(device) for name, tensor in inputs.items()})


def loss_of(output):
    """Return a number that depends on every element; the models normalise, so that a mean of squares would not."""
    return (output * torch.arange(output.numel(), device=output.device).view(output.shape).sin()).mean()


@pytest.mark.parametrize("name", [None, *CONFIGS])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_the_cpu(family, name, device):
    (model, inputs), (twin, moved) = both(family, device)
    set_active(model, name)
    set_active(twin, name)
    with torch.no_grad():
        wanted, actual = run(model, inputs), run(twin, moved)
        torch.testing.assert_close(actual.cpu(), wanted, atol=1e-4, rtol=1e-4)
        with disabled(twin):
            base = run(twin, moved)
    assert (name is None) == torch.equal(base, actual)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_that_of_the_cpu(family, device):
    (model, inputs), (twin, moved) = both(family, device)
    losses = []
    for trained, arguments in ((model, inputs), (twin, moved)):
        frozen = [p.detach().clone() for p in trained.parameters() if not p.requires_grad]
        optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=1.0)
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_of(run(trained, arguments))
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        left = [p for p in trained.parameters() if not p.requires_grad]
        assert all(torch.equal(before, after) for before, after in zip(frozen, left, strict=True))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][2] < losses[0][0]
    pairs = zip(adapter_parameters(twin, "houlsby"), adapter_parameters(model, "houlsby"), strict=True)
    for (name, mine), (_, theirs) in pairs:
        torch.testing.assert_close(
            mine.cpu(), theirs, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_at_most_twice_as_inexact_as_the_formula(family, device, monkeypatch):
    (model, inputs), (twin, moved) = both(family, device)
    twin = twin.bfloat16()
    with torch.no_grad():
        exact = run(copy.deepcopy(model).double(), inputs)
        mine = error(run(twin, moved).cpu(), exact)
        monkeypatch.setattr(ops, "bottleneck_adapter", reference.bottleneck_adapter)
        theirs = error(run(twin, moved).cpu(), exact)
    assert mine <= 2 * theirs + 1e-3
    assert mine > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batches_are_the_sequences_alone(family, dtype, device):
    _, (model, inputs) = both(family, device, dtype)
    names = ["wide", None, "houlsby", "parallel"]
    with torch.no_grad(), mixed(model, names):
        together = run(model, inputs)
    for row, name in enumerate(names):
        set_active(model, name)
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        with torch.no_grad():
            expected = run(model, alone)
        tolerance = 1e-4 if dtype == torch.float32 else 6e-2
        torch.testing.assert_close(together[row : row + 1], expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_mixed_batch_are_those_of_the_cpu(family, device):
    names = ["wide", None, "houlsby", "wide"]
    found = []
    for model, inputs in both(family, device):
        with mixed(model, names):
            loss_of(run(model, inputs)).backward()
        found.append({name: p.grad for name, p in adapter_parameters(model) if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name].cpu(), gradient, atol=1e-5, rtol=1e-3)


def test_decoding_through_a_cuda_graph_uses_the_adapters(gpu):
    """One token a sequence through the whole model, captured: what a server replays."""
    _, (model, _) = both("llama", gpu, torch.bfloat16)
    tokens = torch.randint(3, 99, (4, 1), device=gpu)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(input_ids=tokens, use_cache=False)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(input_ids=tokens, use_cache=False)[0]
        tokens.copy_(torch.randint(3, 99, (4, 1)))
        graph.replay()
        torch.testing.assert_close(output, model(input_ids=tokens, use_cache=False)[0], atol=1e-2, rtol=1e-2)
        with disabled(model):
            assert not torch.allclose(output, model(input_ids=tokens, use_cache=False)[0], atol=1e-2, rtol=1e-2)


def test_decoding_a_mixed_batch_through_a_cuda_graph(gpu):
    """The graph reads the order of a pass before it, which passes over other numbers of tokens must leave alone."""
    _, (model, _) = both("llama", gpu, torch.bfloat16)
    tokens, prompt = torch.randint(3, 99, (4, 1), device=gpu), torch.randint(3, 99, (4, 9), device=gpu)
    with torch.no_grad(), mixed(model, ["wide", None, "houlsby", "parallel"]):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(input_ids=tokens, use_cache=False)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(input_ids=tokens, use_cache=False)[0]
        for _ in range(2):
            model(input_ids=prompt, use_cache=False)
            tokens.copy_(torch.randint(3, 99, (4, 1)))
            graph.replay()
            torch.testing.assert_close(output, model(input_ids=tokens, use_cache=False)[0], atol=1e-2, rtol=1e-2)
