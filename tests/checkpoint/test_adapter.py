"""What is saved loads again, the same; what does not fit is refused whole."""

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from saved_adapters import (
    CONFIG,
    HIDDEN_STATES,
    WEIGHTS,
    adapted_plain,
    randomise,
    rewrite,
    state_of,
)
from tiny_models import build, inputs_for, plain_model, run

import adapterx
from adapterx import (
    AdapterConfig,
    CheckpointError,
    ConfigError,
    UnknownAdapterError,
    adapter_names,
    adapter_parameters,
    attach,
    load_adapter,
    restore_adapter,
    save_adapter,
    set_active,
)
from adapterx.heads import SequenceClassifier


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])
@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_load_undoes_save(name, placement, tmp_path):
    model = build(name)
    inputs = inputs_for(name, model)
    twin = copy.deepcopy(model)
    config = AdapterConfig(reduction_factor=8, placement=placement, scaling="learned_per_channel", layers=(1,))
    attach(model, config, "mine")
    randomise(model)
    save_adapter(model, tmp_path)
    before = torch.get_rng_state()
    report = load_adapter(twin, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert (report.name, report.config) == ("mine", config)
    assert adapter_names(twin) == ("mine",)
    with torch.no_grad():
        assert torch.equal(run(twin, inputs), run(model, inputs))
    assert {n for n, p in twin.named_parameters() if p.requires_grad} == {n for n, _ in adapter_parameters(twin)}


def test_trained_copies_travel_with_the_adapter(saved):
    model = plain_model()
    load_adapter(model, saved)
    assert torch.equal(model(HIDDEN_STATES), adapted_plain()(HIDDEN_STATES))
    assert {"classifier.weight", "classifier.bias", "blocks.0.narrow.adapterx.scaling"} < load_file(
        saved / WEIGHTS
    ).keys()


def test_files_and_their_contents(tmp_path):
    model = build("bert")
    model.config._name_or_path = "organisation/tiny"
    model.config._commit_hash = "c0ffee"
    attach(model, AdapterConfig(bottleneck_dim=4), "mine")
    save_adapter(model, tmp_path, metadata={"accuracy": 0.5})
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    document = json.loads((tmp_path / CONFIG).read_text())
    assert document["format_version"] == 2
    assert document["name"] == "mine"
    assert AdapterConfig.from_dict(document["config"]) == AdapterConfig(bottleneck_dim=4)
    assert document["adapterx_version"] == adapterx.__version__
    assert document["base_model"] == {
        "name": "organisation/tiny",
        "commit": "c0ffee",
        "model_type": "bert",
        "class": "BertModel",
    }
    assert document["metadata"] == {"accuracy": 0.5}
    assert document["modules"]["encoder.layer.0.output.dense"] == {
        "position": "feed_forward",
        "input_size": 32,
        "hidden_size": 32,
    }
    key = "encoder.layer.1.attention.output.dense.adapterx.down_proj.weight"
    assert document["tensors"][key] == {"dtype": "float32", "shape": [4, 32]}
    assert len(document["tensors"]) == 16
    assert document["sha256"] == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    assert load_file(tmp_path / WEIGHTS).keys() == document["tensors"].keys()


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("organisation/model", "organisation/model"),
        ("model", "model"),
        ("/secret/person/model", "model"),
        ("./secret/model/", "model"),
        ("~/secret/model", "model"),
        ("a/secret/model", "model"),
        ("C:\\secret\\model", "model"),
        ("", None),
    ],
)
def test_no_local_path_is_written(given, written, tmp_path):
    model = build("bert")
    model.config._name_or_path = given
    attach(model, AdapterConfig(bottleneck_dim=4))
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model"]["name"] == written
    assert "secret" not in (tmp_path / CONFIG).read_text()


def test_an_existing_folder_is_a_local_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "model").mkdir(parents=True)
    model = build("bert")
    model.config._name_or_path = "secret/model"
    attach(model, AdapterConfig(bottleneck_dim=4))
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model"]["name"] == "model"


def test_which_adapter(tmp_path):
    model = plain_model()
    config = AdapterConfig(bottleneck_dim=2, target_modules=("narrow",))
    with pytest.raises(UnknownAdapterError, match=r"name must be given.*attached are none"):
        save_adapter(model, tmp_path)
    attach(model, config, "a")
    attach(model, config, "b")
    save_adapter(model, tmp_path)  # the active one
    assert json.loads((tmp_path / CONFIG).read_text())["name"] == "b"
    set_active(model, ["a", "b"])
    with pytest.raises(UnknownAdapterError, match=r"name must be given.*attached are 'a', 'b'"):
        save_adapter(model, tmp_path)
    with pytest.raises(UnknownAdapterError, match="got 'c'"):
        save_adapter(model, tmp_path, "c")
    save_adapter(model, tmp_path, "a")
    twin = plain_model()
    load_adapter(twin, tmp_path)
    load_adapter(twin, tmp_path, "other", active=False)
    assert adapter_names(twin) == ("a", "other")
    assert adapterx.active_adapters(twin) == ("a",)


def test_a_taken_or_bad_name_is_refused(saved):
    model = plain_model()
    load_adapter(model, saved)
    before = state_of(model)
    with pytest.raises(ConfigError, match="load_adapter: name must be new, got 'default'"):
        load_adapter(model, saved)
    with pytest.raises(ConfigError, match="letters, digits"):
        load_adapter(model, saved, "a.b")
    assert state_of(model).keys() == before.keys()


def test_other_dtypes_are_converted(saved):
    model = plain_model().bfloat16()
    load_adapter(model, saved, dtype=torch.bfloat16)
    assert {parameter.dtype for _, parameter in adapter_parameters(model)} == {torch.bfloat16}
    for (_, low), (_, full) in zip(adapter_parameters(model), adapter_parameters(adapted_plain()), strict=True):
        assert torch.equal(low, full.bfloat16())


def test_named_targets_survive_prefixes(tmp_path):
    config = build("bert").config
    for number, target in enumerate((r"encoder\.layer\.0\..*dense", ("bert.encoder.layer.0.output.dense",))):
        inner, outer = build("bert"), transformers.BertForMaskedLM(config).eval()
        outer.bert.load_state_dict(inner.state_dict(), strict=False)  # it has no pooler
        source = inner if number == 0 else outer
        attach(source, AdapterConfig(bottleneck_dim=4, target_modules=target, modules_to_save=()))
        randomise(source)
        save_adapter(source, tmp_path / str(number))
        load_adapter(outer if number == 0 else inner, tmp_path / str(number))
        pairs = zip(adapter_parameters(inner), adapter_parameters(outer), strict=True)
        for (name, tensor), (outer_name, other) in pairs:
            assert outer_name == f"bert.{name}"
            assert torch.equal(tensor, other)
        save_adapter(outer, tmp_path / "again")  # what was loaded can be saved and loaded
        load_adapter(build("bert"), tmp_path / "again", check_base=False)


def test_prefix_of_wrappers_both_ways(tmp_path):
    config = build("bert").config
    base = build("bert")
    bare, task = copy.deepcopy(base), transformers.BertForSequenceClassification(config)
    task.bert.load_state_dict(base.state_dict())
    attach(base, AdapterConfig(bottleneck_dim=4, modules_to_save=("pooler",)))
    randomise(base)
    save_adapter(base, tmp_path / "base")
    classifier = SequenceClassifier(copy.deepcopy(bare), 3)
    load_adapter(classifier, tmp_path / "base")
    load_adapter(task, tmp_path / "base")
    save_adapter(classifier, tmp_path / "wrapped")
    assert all(key.startswith("base_model.") for key in load_file(tmp_path / "wrapped" / WEIGHTS))
    again = bare
    load_adapter(again, tmp_path / "wrapped")
    assert [name for name, _ in adapter_parameters(again)] == [name for name, _ in adapter_parameters(base)]
    for (_, one), (_, other) in zip(adapter_parameters(again), adapter_parameters(base), strict=True):
        assert torch.equal(one, other)


def test_restore_into_an_attached_adapter(saved, tmp_path):
    model = adapted_plain(seed=2)
    parameters = dict(adapter_parameters(model))
    restore_adapter(model, saved)
    assert all(parameters[name] is parameter for name, parameter in adapter_parameters(model))  # optimizers hold these
    assert torch.equal(model(HIDDEN_STATES), adapted_plain()(HIDDEN_STATES))
    other = plain_model()
    attach(other, AdapterConfig(bottleneck_dim=3, positions=("feed_forward",)))
    before = state_of(other)
    with pytest.raises(CheckpointError, match=r"restore_adapter: .* holds an adapter of another configuration"):
        restore_adapter(other, saved)
    rewrite(saved, lambda tensors: {**tensors, "classifier.bias": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"wrong shapes \['classifier.bias \[4\] instead of \[3\]'\]"):
        restore_adapter(model, saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(other).items())
    with pytest.raises(UnknownAdapterError):
        restore_adapter(plain_model(), saved)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_non_finite_weights_are_kept_as_they_are(tmp_path):
    model = adapted_plain()
    with torch.no_grad():
        model.classifier.adapterx_copies["default"].bias.fill_(float("nan"))
    save_adapter(model, tmp_path)
    twin = plain_model()
    load_adapter(twin, tmp_path)
    assert twin.classifier.adapterx_copies["default"].bias.isnan().all()


def test_a_checkpoint_is_read_in_a_fresh_process(saved):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tiny_models import plain_model; import adapterx, torch;"
        "m = plain_model(); adapterx.load_adapter(m, sys.argv[2]); print(m(torch.ones(1, 8)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[1] / "support"), str(saved)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == adapted_plain()(torch.ones(1, 8)).tolist()
