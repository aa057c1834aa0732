"""Files that earlier versions wrote (tests/fixtures) load and give the outputs that those versions gave."""

import json
import shutil

import pytest
import recorded
import torch
from safetensors.torch import load_file

import adapterx
from adapterx import attach, load_adapter
from adapterx.checkpoint.folder import verify_seal
from adapterx.checkpoint.trained import restore_trained
from adapterx.heads import SequenceClassifier

FOLDER = recorded.FIXTURES / "0.1.0"


@pytest.fixture(scope="module")
def expected():
    return load_file(FOLDER / "outputs.safetensors")


def assert_same(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("name", recorded.ADAPTERS)
def test_adapters(name, expected):
    model = recorded.base_model()
    report = load_adapter(model, FOLDER / "adapters" / name)
    assert (report.name, report.config) == (name, recorded.ADAPTERS[name])
    assert_same(recorded.outputs_of(model.eval()), expected[f"adapters/{name}"])
    with adapterx.disabled(model):
        bare = recorded.outputs_of(model)
    assert_same(bare, recorded.outputs_of(recorded.base_model()))
    assert (bare - expected[f"adapters/{name}"]).abs().max() > 0.05, "or agreement would prove nothing"


def test_restore_into_an_attached_adapter(expected):
    model = recorded.base_model()
    attach(model, recorded.ADAPTERS["with-copy"], "mine")
    adapterx.restore_adapter(model, FOLDER / "adapters" / "with-copy")
    assert_same(recorded.outputs_of(model.eval()), expected["adapters/with-copy"])


def test_an_adapter_whose_saving_was_cut_short_behind_the_document(tmp_path, expected):
    folder = shutil.copytree(FOLDER / "adapters" / "learned", tmp_path / "cut")
    digest = json.loads((folder / "adapter_config.json").read_text())["sha256"]
    (folder / "adapter_model.safetensors").rename(folder / f".adapter_model.{digest[:16]}.pending")
    shutil.copy(FOLDER / "adapters" / "suffixes" / "adapter_model.safetensors", folder)
    model = recorded.base_model()
    load_adapter(model, folder)
    assert_same(recorded.outputs_of(model.eval()), expected["adapters/learned"])


def test_a_head(expected):
    model = recorded.adapted_classifier()
    with torch.no_grad():
        model.head.linear.weight.zero_()
    adapterx.restore_head(model, FOLDER / "head")
    assert_same(recorded.outputs_of(model), expected["classifier"])
    built = adapterx.load_head(FOLDER / "head")
    assert (built.pooling, built.dropout.p, built.num_labels) == ("cls", 0.1, 3)
    assert torch.equal(built.linear.weight, model.head.linear.weight)


def test_a_checkpoint_of_the_trainer(expected):
    verify_seal(FOLDER / "checkpoint-7")
    model = recorded.classifier()
    attach(model.base_model, recorded.ADAPTERS["learned"], "learned")
    restore_trained(model, FOLDER / "checkpoint-7")
    assert_same(recorded.outputs_of(model.eval()), expected["classifier"])


def test_a_run(tmp_path):
    pytest.importorskip("typer")
    from adapterx.cli.data.wanted import Wanted
    from adapterx.cli.runs import load_run
    from adapterx.cli.scoring import predict

    recorded.save_base_model(tmp_path / "base")
    run = load_run(FOLDER / "run", model=str(tmp_path / "base"))
    assert isinstance(run.model, SequenceClassifier)
    known = json.loads((FOLDER / "run_predictions.json").read_text())
    texts = Wanted(recorded.TEXTS, [{} for _ in recorded.TEXTS])
    for found, wanted in zip(predict(run, texts), known, strict=True):
        assert (found["text"], found["label"]) == (wanted["text"], wanted["label"])
        assert found["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
    with adapterx.disabled(run.model):
        bare = predict(run, texts)
    assert max(abs(b["probability"] - k["probability"]) for b, k in zip(bare, known, strict=True)) > 0.01
