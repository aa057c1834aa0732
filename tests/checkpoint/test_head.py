"""Heads are saved, built and restored."""

import json

import pytest
import torch
from saved_adapters import edit, state_of
from tiny_models import build

import adapterx
from adapterx import CheckpointError, load_head, restore_head, save_head
from adapterx.heads import SequenceClassifier


def test_heads_round_trip(tmp_path):
    classifier = SequenceClassifier(build("bert"), 3, pooling="cls", dropout=0.1)
    save_head(classifier, tmp_path, metadata={"labels": ["a", "b", "c"]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head_config.json", "head_model.safetensors"]
    twin = SequenceClassifier(classifier.base_model, 3, pooling="cls")
    ids = torch.arange(10).view(2, 5)
    assert not torch.equal(twin.eval()(ids)["logits"], classifier.eval()(ids)["logits"])
    restore_head(twin, tmp_path)
    assert torch.equal(twin(ids)["logits"], classifier(ids)["logits"])
    built = load_head(tmp_path)
    assert built.to_dict() == classifier.head.to_dict()
    assert torch.equal(built.linear.weight, classifier.head.linear.weight)
    document = json.loads((tmp_path / "head_config.json").read_text())
    assert (document["pooling"], document["metadata"]["labels"]) == ("cls", ["a", "b", "c"])


def test_heads_that_do_not_fit(tmp_path):
    save_head(SequenceClassifier(build("bert"), 3), tmp_path)
    other = SequenceClassifier(build("bert"), 2, pooling="cls")
    before = state_of(other.head)
    with pytest.raises(CheckpointError, match="num_labels 3 instead of 2, pooling 'mean' instead of 'cls'"):
        restore_head(other, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(other.head).items())
    for changes, message in (({"num_labels": -1}, "does not describe a head"), ({"num_labels": 4}, "wrong shapes")):
        edit(tmp_path, "head_config.json", **changes)
        with pytest.raises(CheckpointError, match=message):
            load_head(tmp_path)
    (tmp_path / "head_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"restore_head: .*head_model.safetensors does not exist"):
        restore_head(SequenceClassifier(build("bert"), 3), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 50_000, "num_labels": 50_000},  # 10 GB, had it been built before it was checked
        {"hidden_size": 10**400},
        {"num_labels": -1},
        {"num_labels": "3"},
        {"hidden_size": None},
        {"dropout": 10**400},
        {"dropout": [0.1]},
        {"pooling": ["mean"]},
        {"pooling": "x" * 10**6},
    ],
)
def test_a_hostile_head_costs_nothing(changes, tmp_path):
    save_head(SequenceClassifier(torch.nn.Linear(2, 2), 3, hidden_size=2), tmp_path)
    edit(tmp_path, "head_config.json", **changes)
    with pytest.raises(
        CheckpointError, match=r"^load_head: [^\n]*(does not describe a head|wrong shapes)[^\n]*"
    ) as error:
        load_head(tmp_path)
    assert len(str(error.value)) < 2100


def test_the_two_words_are_told_apart(tmp_path):
    classifier = SequenceClassifier(build("bert"), 3)
    with pytest.raises(CheckpointError, match=r"^load_head: folder must be a path, got SequenceClassifier; restore"):
        load_head(classifier)
    with pytest.raises(CheckpointError, match=r"^load_head: .*head_config\.json does not exist"):
        load_head(tmp_path)
    assert not hasattr(adapterx, "build_head")
    assert adapterx.SequenceClassifier is SequenceClassifier
    assert isinstance(classifier.head, adapterx.ClassificationHead)


def test_restoring_keeps_the_parameters_and_the_dropout(tmp_path):
    save_head(SequenceClassifier(build("bert"), 3, dropout=0.5), tmp_path)
    classifier = SequenceClassifier(build("bert"), 3, dropout=0.1)
    weight = classifier.head.linear.weight
    restore_head(classifier, tmp_path)
    assert classifier.head.linear.weight is weight  # optimizers hold it
    assert classifier.head.dropout.p == 0.1
    assert load_head(tmp_path).dropout.p == 0.5
