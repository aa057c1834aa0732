"""Heads of AdapterHub give here the logits that they gave there, and ours are written as theirs."""

import json

import pytest
import torch

pytest.importorskip("transformers")
from hub_goldens import TOLERANCE, Golden, cases

import adapterx
from adapterx import CheckpointError, ClassificationHead
from adapterx.integrations import adapterhub

CONFIG = "head_config.json"
REFUSED = {
    "head: tagging": "head_type of .*head_config.json must be 'classification' for a ClassificationHead, got 'tagging'",
    "head: two layers, relu": "activation_function of .* must be 'tanh' between two layers, got 'relu'",
}


@pytest.fixture(scope="module", params=list(cases.HEADS))
def golden(request, tmp_path_factory):
    return Golden(request.param, tmp_path_factory.mktemp(request.param))


def heads_of(golden):
    return [name for name, record in golden.cases.items() if record["kind"] == "head"]


def logits_of(golden, model, head):
    with torch.no_grad():
        return head(model(**golden.inputs)[0], golden.inputs["attention_mask"])


def test_logits_are_those_of_adapters(golden):
    model = golden.base()
    for name in heads_of(golden):
        adapterhub.load_adapter(model, golden.path(name))
        if name in REFUSED:
            with pytest.raises(CheckpointError, match=f"^load_head: {REFUSED[name]}"):
                adapterhub.load_head(golden.path(name), model)
        else:
            head = adapterhub.load_head(golden.path(name), model).eval()
            difference = float((logits_of(golden, model, head) - golden.outputs[name]).abs().max())
            assert difference < TOLERANCE, name
        adapterx.detach(model)


def test_what_is_written_is_read_again(golden, tmp_path):
    model = golden.base()
    for name in heads_of(golden):
        if name not in REFUSED:
            head = adapterhub.load_head(golden.path(name), model)
            adapterhub.save_head(head, tmp_path / "hub", "a", golden.model_type)
            again = adapterhub.load_head(tmp_path / "hub")
            assert again.to_dict() == head.to_dict()
            assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in head.state_dict().items())


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return Golden("bert", tmp_path_factory.mktemp("heads"))


def test_a_head_on_a_pooler_needs_the_model(bert):
    with pytest.raises(CheckpointError, match=r"^load_head: model must be a base model with a pooler, .* got NoneType"):
        adapterhub.load_head(bert.path("head: one layer, pooler"))
    with pytest.raises(CheckpointError, match=r"must be a base model with a pooler, .* got Linear"):
        adapterhub.load_head(bert.path("head: static"), torch.nn.Linear(2, 2))


def edited(bert, folder, change):
    source = bert.path("head: two layers")
    document = json.loads((source / CONFIG).read_text())
    change(document)
    (folder / CONFIG).write_text(json.dumps(document))
    (folder / "pytorch_model_head.bin").write_bytes((source / "pytorch_model_head.bin").read_bytes())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["config"].update(head_type="question_answering"), "head_type of .* got 'question_answering'"),
        (lambda d: d["config"].update(head_type="multilabel_classification"), "got 'multilabel_classification'"),
        (lambda d: d["config"].update(layers=3), "layers of .* must be 1, or 2 without use_pooler, .* got 3"),
        (lambda d: d["config"].update(use_pooler=True), "layers of .* must be 1, or 2 without use_pooler"),
        (lambda d: d["config"].update(bias=False), "bias of .* must be true, got False"),
        (lambda d: d["config"].update(num_labels=4), "must be those of a head of 4 labels"),
        (lambda d: d["config"].update(dropout_prob="x"), "does not describe a head: .*dropout must be a finite number"),
        (lambda d: d["config"].update(layers=1), r"must hold the tensors heads.a.1.bias, heads.a.1.weight of"),
        (lambda d: d.update(name="b"), "must hold the tensors heads.b.1.bias, .*got heads.a.1.bias"),
        (lambda d: d.update(config=None), "model_class of .* must be one whose head is .* got 'BertAdapterModel'"),
    ],
)  # fmt: skip
def test_other_heads_are_refused_in_words(bert, tmp_path, change, words):
    edited(bert, tmp_path, change)
    with pytest.raises(CheckpointError, match=f"^load_head: .*{words}"):
        adapterhub.load_head(tmp_path)


def test_heads_that_adapterhub_has_not(tmp_path):
    with pytest.raises(CheckpointError, match=r"^save_head: head must have pooling 'cls' for 'bert', got 'mean'"):
        adapterhub.save_head(ClassificationHead(4, 2), tmp_path, "a", "bert")
    with pytest.raises(CheckpointError, match=r"^save_head: model_type must be one of bert, .* got 't5'"):
        adapterhub.save_head(ClassificationHead(4, 2, pooling="cls"), tmp_path, "a", "t5")
