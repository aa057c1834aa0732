"""Bases whose weights `accelerate` keeps elsewhere: adapters and trained copies are where the modules compute."""

import copy

import pytest
import torch
from tiny_adapters import randomise
from tiny_models import build, inputs_for, run

from adapterx import (
    AdapterConfig,
    BottleneckAdapter,
    CheckpointError,
    TargetError,
    adapter_parameters,
    attach,
    detach,
    disabled,
    load_adapter,
    mixed,
    restore_adapter,
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


def on_meta(model):
    with torch.device("meta"):
        return type(model)(model.config).eval()


META = AdapterConfig(bottleneck_dim=4, modules_to_save=("pooler",), train_norms=True)


@pytest.mark.parametrize("way", ["load", "restore"])
@pytest.mark.parametrize("first", ["adapter", "base"])
def test_a_meta_model_is_filled_by_base_and_adapter(way, first, tmp_path):
    """A model without memory gets its base weights by assignment and its adapter from a file, in either order."""
    plain = build("bert")
    attach(plain, META, "a", seed=1)
    randomise(plain)
    save_adapter(plain, tmp_path)
    base = build("bert")
    base.load_state_dict(plain.state_dict(), strict=False)
    with accelerate.init_empty_weights(include_buffers=False):
        model = type(plain)(plain.config).eval()
    if way == "restore":
        attach(model, META, "a")
    if first == "base":
        model.load_state_dict(base.state_dict(), strict=False, assign=True)
    load_adapter(model, tmp_path) if way == "load" else restore_adapter(model, tmp_path, "a")
    assert not any(parameter.is_meta for _, parameter in adapter_parameters(model))
    if first == "adapter":
        model.load_state_dict(base.state_dict(), strict=False, assign=True)
    inputs = inputs_for("bert", plain)
    for found, wanted in zip(model(**inputs)[:2], plain(**inputs)[:2], strict=True):
        assert torch.equal(found, wanted)
    run(model, inputs).sum().backward()
    assert all(p.grad is not None for name, p in adapter_parameters(model) if "pooler" not in name)


def test_an_empty_model_that_accelerate_fills_and_dispatches(tmp_path):
    plain = build("bert")
    plain.save_pretrained(tmp_path / "base")
    attach(plain, META, "a", seed=1)
    randomise(plain)
    save_adapter(plain, tmp_path / "adapter")
    with accelerate.init_empty_weights(include_buffers=False):
        model = type(plain)(plain.config).eval()
    places = {"embeddings": "cpu", "encoder.layer.0": "disk", "encoder.layer.1": "cpu", "pooler": "disk"}
    accelerate.load_checkpoint_and_dispatch(
        model, tmp_path / "base", device_map=places, offload_folder=tmp_path / "weights", force_hooks=True
    )
    load_adapter(model, tmp_path / "adapter")
    inputs = inputs_for("bert", plain)
    assert torch.equal(model(**inputs)[1], plain(**inputs)[1])


def test_what_does_not_fit_leaves_a_meta_adapter_without_memory(tmp_path):
    plain = build("bert")
    attach(plain, AdapterConfig(bottleneck_dim=5), "a")
    save_adapter(plain, tmp_path)
    model = on_meta(plain)
    attach(model, AdapterConfig(bottleneck_dim=4), "a")
    with pytest.raises(CheckpointError, match="another configuration"):
        restore_adapter(model, tmp_path, "a")
    assert all(parameter.is_meta for _, parameter in adapter_parameters(model))


def test_new_adapters_of_a_meta_model_are_initialised_when_they_have_memory():
    model, plain = on_meta(build("bert")), build("bert")
    attach(model, AdapterConfig(bottleneck_dim=4))
    model.load_state_dict(plain.state_dict(), strict=False, assign=True)
    for module in model.modules():
        if isinstance(module, BottleneckAdapter):
            module.to_empty(device="cpu")
            module.reset_parameters()
    model.embeddings.position_ids, model.embeddings.token_type_ids = (
        plain.embeddings.position_ids,
        plain.embeddings.token_type_ids,
    )
    inputs = inputs_for("bert", plain)
    assert torch.equal(run(model, inputs), run(plain, inputs))
