"""Steps of training under `torch.compile`, and how many graphs they took."""

import torch
import transformers
from tiny_models import SIZES
from torch._dynamo import utils as dynamo

from adapterx import adapter_parameters, attach

BUCKET = (13, 16, 9)  # lengths that one graph must serve; two of them would be read as the rule


def language_model(layers=2):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES | {"num_hidden_layers": layers}, use_cache=False)
    return transformers.LlamaForCausalLM(config).train()


def batch(length, generator=None):
    ids = torch.randint(3, 99, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def compiled(model):
    torch._dynamo.reset()
    dynamo.counters.clear()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def train(run, model, lengths, *, dynamic):
    """Train and return the losses, and how many graphs there were after each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses, graphs, generator = [], [], torch.Generator().manual_seed(5)
    for length in lengths:
        inputs = batch(length, generator)
        if dynamic:
            for tensor in inputs.values():
                torch._dynamo.mark_dynamic(tensor, 1)
        loss = run(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        graphs.append(dynamo.counters["stats"]["unique_graphs"])
    return losses, graphs


def check_one_graph(config, order, layers):
    """Train compiled and uncompiled models on lengths of one bucket; `order` says what comes first."""
    model, alone = language_model(layers), language_model(layers)
    if order == "compiled first":
        run = compiled(model)
    attach(model, config, seed=1)
    attach(alone, config, seed=1)
    if order == "attached first":
        run = compiled(model)
    losses, graphs = train(run, model, BUCKET, dynamic=True)
    assert graphs == [1] * len(BUCKET)
    assert not dynamo.counters["graph_break"]
    if not config.dropout:  # whose masks a compiled program draws in another order
        torch.testing.assert_close(losses, train(alone, alone, BUCKET, dynamic=False)[0], atol=1e-5, rtol=1e-5)
        for (_, one), (_, other) in zip(adapter_parameters(model), adapter_parameters(alone), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
