"""Compositions computed the slow way: sequence by sequence, token by token, adapter by adapter."""

import torch
from torch.nn.functional import linear, softmax

from adapterx import Average, BatchSplit, Fuse, Split, Stack, reference


def branch(adapter, hidden_states):
    """Return what an adapter adds, by its formula."""
    hidden = reference.ACTIVATIONS[adapter.activation](
        linear(hidden_states, adapter.down_proj.weight, adapter.down_proj.bias)
    )
    return adapter.scaling * linear(hidden, adapter.up_proj.weight, adapter.up_proj.bias)


def slow(part, adapters, hidden_states, received=None, fusions=None):
    """Return what a composition makes of `(batch, tokens, size)`.

    `adapters` by name; those of which the name begins with "p" are parallel and read `received`.
    """

    def inner(part, hidden_states, received):
        return slow(part, adapters, hidden_states, received, fusions)

    if part is None or (isinstance(part, str) and part not in adapters):
        return hidden_states
    if isinstance(part, str):
        return hidden_states + branch(adapters[part], received if part.startswith("p") else hidden_states)
    if isinstance(part, Stack):
        for each in part.parts:
            hidden_states = inner(each, hidden_states, received)
        return hidden_states
    if isinstance(part, Average):
        return sum(f * inner(p, hidden_states, received) for p, f in zip(part.parts, part.factors(), strict=True))
    if isinstance(part, (BatchSplit, Split)):
        sizes, dim = (part.batch_sizes, 0) if isinstance(part, BatchSplit) else (part.splits, 1)
        pieces = zip(part.parts, hidden_states.split(sizes, dim), received.split(sizes, dim), strict=True)
        return torch.cat([inner(*piece) for piece in pieces], dim)
    assert isinstance(part, Fuse)
    return fused(part, adapters, hidden_states, received, fusions[part.key], inner)


def fused(part, adapters, hidden_states, received, fusion, inner):
    """Attend over the branch of each part's last adapter."""
    chains = [[each] if isinstance(each, str) else list(each.parts) for each in part.parts]
    chains = [chain for each in chains if (chain := [name for name in each if name in adapters])]
    values = []
    for chain in chains:
        before = inner(Stack(*chain[:-1]), hidden_states, received)
        values.append(branch(adapters[chain[-1]], received if chain[-1].startswith("p") else before))
    query = received if chains[-1][-1].startswith("p") else hidden_states
    q = linear(query, fusion.query.weight, fusion.query.bias)
    scores = torch.stack([(q * linear(v, fusion.key.weight, fusion.key.bias)).sum(-1) for v in values], -1)
    weights = softmax(scores, -1)
    mixed = sum(weights[..., i : i + 1] * linear(v, fusion.value.weight) for i, v in enumerate(values))
    return hidden_states + mixed
