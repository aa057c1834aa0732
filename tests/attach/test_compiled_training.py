"""A step of training under `torch.compile`: one graph, no break, and none anew for other lengths of one bucket."""

import pytest
import torch
from compiled_training import batch, check_one_graph, compiled, language_model, train

from adapterx import AdapterConfig, attach, load_adapter, save_adapter

# transformers 4.57 builds its masks in a way that PyTorch warns of.
pytestmark = pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated:DeprecationWarning")

# The others are tried by `make large`: each takes a second or ten.


def test_one_graph_for_a_bucket_of_lengths():
    check_one_graph(AdapterConfig(bottleneck_dim=4), "compiled first", layers=1)


def test_attached_to_saved_from_and_loaded_from_the_compiled_model(tmp_path):
    model = language_model(layers=1)
    run = compiled(model)
    attach(run, AdapterConfig(bottleneck_dim=4), seed=1)
    train(run, model, (9,), dynamic=True)
    save_adapter(run, tmp_path)
    other = language_model(layers=1)
    load_adapter(other, tmp_path)
    inputs = batch(9)
    with torch.no_grad():
        torch.testing.assert_close(other(**inputs).loss, model(**inputs).loss)
