"""Bases whose weights `accelerate` keeps elsewhere: adapters and trained copies are where the modules compute."""

import copy

import pytest
import torch
from tiny_adapters import randomise
from tiny_models import build, inputs_for, run

from adapterx import (
    AdapterConfig,
    TargetError,
    adapter_parameters,
    attach,
    detach,
    disabled,
    load_adapter,
    mixed,
    save_adapter,
)

accelerate = pytest.importorskip("accelerate")

CONFIGS = pytest.mark.parametrize(
    "config",
    [
        AdapterConfig(bottleneck_dim=4),
        AdapterConfig(bottleneck_dim=4, placement="parallel"),
        AdapterConfig(bottleneck_dim=4, placement="normed_sum"),
        AdapterConfig(bottleneck_dim=4, modules_to_save=("pooler", "embeddings")),
    ],
    ids=["sequential", "parallel", "normed sum", "trained copies"],
)


def to_cpu(model, folder):
    return accelerate.cpu_offload(model, execution_device="cpu")


def to_disk(model, folder):
    return accelerate.disk_offload(model, str(folder), execution_device="cpu")


def dispatched(model, folder):
    places = {"embeddings": "cpu", "encoder.layer.0": "disk", "encoder.layer.1": "cpu", "pooler": "disk"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.mark.parametrize("offload", [to_cpu, to_disk, dispatched])
@CONFIGS
def test_adapters_are_where_the_modules_compute(offload, config, tmp_path):
    plain = build("bert")
    model = offload(copy.deepcopy(plain), tmp_path / "weights")
    assert any(parameter.is_meta for parameter in model.parameters())
    inputs = inputs_for("bert", plain)
    base = model(**inputs)
    attach(plain, config, seed=1)
    attach(model, config, seed=1)
    assert not any(parameter.is_meta for _, parameter in adapter_parameters(model))
    for found, wanted in zip(model(**inputs)[:2], base[:2], strict=True):
        assert torch.equal(found, wanted)
    randomise(plain)
    randomise(model)
    assert torch.equal(model(**inputs)[1], plain(**inputs)[1])
    run(model, inputs).sum().backward()
    run(plain, inputs).sum().backward()
    for (name, mine), (_, other) in zip(adapter_parameters(model), adapter_parameters(plain), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        assert mine.grad is None or torch.equal(mine.grad, other.grad), name
    with mixed(model, ["default", None]):
        run(model, inputs)
    with disabled(model):
        assert torch.equal(model(**inputs)[1], base[1])
    save_adapter(model, tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter", "loaded")
    assert torch.equal(model(**inputs)[1], plain(**inputs)[1])
    detach(model)
    assert torch.equal(model(**inputs)[1], base[1])


def test_a_meta_model_without_hooks_gets_meta_adapters():
    with torch.device("meta"):
        model = build("bert")
    attach(model, AdapterConfig(bottleneck_dim=4, modules_to_save=("pooler",)))
    assert all(parameter.is_meta for _, parameter in adapter_parameters(model))


def test_offloading_after_attaching_is_refused_in_words():
    model = build("bert")
    inputs = inputs_for("bert", model)
    attach(model, AdapterConfig(bottleneck_dim=4))
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(
        TargetError, match=r"attach: adapter 'default' of encoder\.layer\.0\..* offload the model before"
    ):
        run(model, inputs)
