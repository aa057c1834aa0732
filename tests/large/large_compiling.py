"""Steps of training under `torch.compile`, for every kind of adapter: one graph for all lengths of a bucket."""

import pytest
import torch
from compiled_training import check_one_graph, language_model, train
from torch._dynamo import utils as dynamo

from adapterx import AdapterConfig, attach


@pytest.mark.parametrize("order", ["compiled first", "attached first"])
@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig(bottleneck_dim=4),
        AdapterConfig(bottleneck_dim=4, placement="parallel"),
        AdapterConfig(bottleneck_dim=4, dropout=0.1, norm_before=True),
        AdapterConfig(bottleneck_dim=4, modules_to_save=("lm_head",), scaling="learned"),
    ],
    ids=["sequential", "parallel", "dropout and norm", "trained copy"],
)
def test_one_graph_for_a_bucket_of_lengths(config, order):
    check_one_graph(config, order, layers=2)


def test_padded_buckets_are_a_graph_each():
    model = language_model()
    attach(model, AdapterConfig(bottleneck_dim=4), seed=1)
    torch._dynamo.reset()
    dynamo.counters.clear()
    run = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    _, graphs = train(run, model, (8, 8, 16, 8, 16, 16), dynamic=False)
    assert graphs == [1, 1, 2, 2, 2, 2]


def test_the_default_compiler():
    model, alone = language_model(), language_model()
    for each in (model, alone):
        attach(each, AdapterConfig(bottleneck_dim=4), seed=1)
    torch._dynamo.reset()
    dynamo.counters.clear()
    losses, graphs = train(torch.compile(model, fullgraph=True), model, (13, 16, 9), dynamic=True)
    assert graphs == [1, 1, 1]
    torch.testing.assert_close(losses, train(alone, alone, (13, 16, 9), dynamic=False)[0], atol=1e-4, rtol=1e-4)
