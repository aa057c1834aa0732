"""What AdapterHub's configuration can say of an adapter of ours is written, and what it cannot is refused in words."""

import json

import pytest
import torch

pytest.importorskip("transformers")
from hub_goldens import TOLERANCE, Golden

import adapterx
from adapterx import AdapterConfig, CheckpointError, UnknownAdapterError
from adapterx.integrations import adapterhub

CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return Golden("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Golden("llama", tmp_path_factory.mktemp("llama"))


def attached(golden, **options):
    model = golden.base()
    adapterx.attach(model, AdapterConfig(**({"bottleneck_dim": 4} | options)), "a", seed=0)
    for _, parameter in adapterx.adapter_parameters(model):
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bottleneck_dim": 3}, {"reduction_factor": 16 / 3, "original_ln_before": False, "leave_out": []}),
        ({"bottleneck_dim": None, "reduction_factor": 0.5}, {"reduction_factor": 0.5}),
        ({"bottleneck_dim": {0: 2, "default": 4}}, {"reduction_factor": {"0": 8, "1": 4, "default": 8}}),
        ({"layers": (1,)}, {"leave_out": [0]}),
        ({"positions": ("feed_forward",)}, {"mh_adapter": False, "output_adapter": True}),
        ({"placement": "normed_sum"}, {"original_ln_before": True, "residual_before_ln": True}),
        ({"placement": "normed_sum", "added_to": "normed"}, {"original_ln_after": False, "residual_before_ln": False}),
        ({"placement": "parallel", "scaling": 4.0}, {"is_parallel": True, "scaling": 4.0}),
        ({"activation": "gelu_tanh"}, {"non_linearity": "gelu_new"}),
        ({"activation": "identity"}, {"non_linearity": "linear"}),
        ({"scaling": "learned_per_channel"}, {"scaling": "channel"}),
        ({"norm_after": "sum"}, {"ln_after": True, "adapter_residual_before_ln": True}),
        ({"phm": {"dim": 2}}, {"phm_layer": True, "phm_dim": 2, "hypercomplex_nonlinearity": "glorot-normal"}),
        ({"stochastic_depth": 0.1, "dropout": 0.2}, {"stochastic_depth": 0.1, "dropout": 0.2}),
    ],
)
def test_what_is_written(bert, tmp_path, options, expected):
    model = attached(bert, **options)
    outputs = bert.run(model)
    adapterhub.save_adapter(model, tmp_path)
    document = json.loads((tmp_path / CONFIG).read_text())
    assert {key: document["config"][key] for key in expected} == expected
    assert len(document["config"]) == 33
    assert {key: document[key] for key in ("name", "model_type", "hidden_size", "model_class", "version")} == {
        "name": "a", "model_type": "bert", "hidden_size": 16, "model_class": "BertModel", "version": "adapters.1.3.0"
    }  # fmt: skip
    adapterx.detach(model)
    adapterhub.load_adapter(model, tmp_path)
    assert (bert.run(model) - outputs).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"down_bias": False}, "down_bias must be True for an adapter of AdapterHub, got False"),
        ({"up_bias": False}, "up_bias must be True"),
        ({"modules_to_save": ("pooler",)}, r"modules_to_save must be \(\) for an adapter of AdapterHub"),
        ({"train_norms": True}, "train_norms must be False"),
        ({"activation": "selu"}, "activation must be one that AdapterHub knows, got 'selu'"),
        ({"placement": "parallel", "norm_after": "sum"}, "norm_after must be 'branch' or None for a parallel adapter"),
        ({"placement": "normed_sum", "norm_after": "sum"}, "placement must be one that adapters has behind attention"),
        ({"target_modules": ("embeddings.LayerNorm",)}, "adapters has no place for an adapter of placement"),
        ({"target_modules": ("0.output.dense", "1.attention.output.dense")}, "same sublayers of each block"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused(bert, tmp_path, options, words):
    with pytest.raises(CheckpointError, match=f"^save_adapter: .*{words}"):
        adapterhub.save_adapter(attached(bert, **options), tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_placements_of_models_that_norm_before(llama, tmp_path):
    """There AdapterHub reads the residual stream as it is, and has nothing that reads what was normed of it."""
    adapterhub.save_adapter(attached(llama, placement="residual_sum", added_to="sum_plus_residual"), tmp_path / "a")
    options = json.loads((tmp_path / "a" / CONFIG).read_text())["config"]
    assert (options["original_ln_before"], options["residual_before_ln"]) == (True, False)
    adapterhub.save_adapter(attached(llama, placement="parallel_residual"), tmp_path / "a")
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["config"]["is_parallel"] is True
    with pytest.raises(CheckpointError, match=r"placement must be one that adapters has .* got \('parallel', 'sum'\)"):
        adapterhub.save_adapter(attached(llama, placement="parallel"), tmp_path / "b")


def test_folders(bert, tmp_path):
    model = attached(bert)
    adapterhub.save_adapter(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, "pytorch_adapter.bin", "adapter.safetensors"}
    adapterx.detach(model)
    adapterx.attach(model, AdapterConfig(bottleneck_dim=2, norm_before=True), "b")
    adapterhub.save_adapter(model, tmp_path)  # one tensor under two names, which safetensors cannot hold
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, "pytorch_adapter.bin"}
    assert adapterx.checkpoint.format_of(tmp_path) == "adapterhub"
    adapterx.save_adapter(model, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"^save_adapter: .*ours must not hold the files of another library"):
        adapterhub.save_adapter(model, tmp_path / "ours")
    with pytest.raises(UnknownAdapterError, match=r"^save_adapter: name must be an attached adapter"):
        adapterhub.save_adapter(model, tmp_path, "c")


def test_other_models_are_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    adapterx.attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("0",)))
    with pytest.raises(
        CheckpointError, match=r"^save_adapter: model must be of a type whose places .* got None; known"
    ):
        adapterhub.save_adapter(model, tmp_path)


def test_half_bases_are_written_in_float32(bert, tmp_path):
    model = bert.base().bfloat16()
    adapterx.attach(model, AdapterConfig(bottleneck_dim=2), dtype=torch.bfloat16)
    adapterhub.save_adapter(model, tmp_path)
    tensors = torch.load(tmp_path / "pytorch_adapter.bin")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    adapterx.detach(model)
    adapterhub.load_adapter(model, tmp_path)
    assert {p.dtype for _, p in adapterx.adapter_parameters(model)} == {torch.float32}
