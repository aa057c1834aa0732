"""Heads that no file held: attaching would freeze random numbers, so it is said once."""

import warnings

import pytest
import torch
import transformers
from tiny_models import SIZES, SPECIAL
from torch import nn

from adapterx import AdapterConfig, CheckpointError, SequenceClassifier, attach, load_adapter, save_adapter

CONFIG = AdapterConfig(bottleneck_dim=4)
WITH_HEAD = AdapterConfig(bottleneck_dim=4, modules_to_save=("classifier",))


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "base"
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(folder)
    return folder


def load(kind, folder):
    return getattr(transformers, kind).from_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("AutoModelForSequenceClassification", "classifier"),
        ("AutoModelForTokenClassification", "classifier"),
        ("AutoModelForQuestionAnswering", "qa_outputs"),
        ("AutoModelForMultipleChoice", "classifier"),
    ],
)
def test_a_fresh_head_is_named_once(base, kind, head):
    model = load(kind, base)
    with pytest.warns(UserWarning, match=rf"^attach: '{head}' of the Bert.* modules_to_save=\('{head}',\)") as caught:
        attach(model, CONFIG)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    attach(load(kind, base), AdapterConfig(bottleneck_dim=4, modules_to_save=(head,)))


class Wrapper(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(32, 2)


@pytest.mark.parametrize("wrap", [Wrapper, lambda encoder: SequenceClassifier(encoder, 2)])
def test_a_head_beside_a_loaded_base_is_named(base, wrap):
    with pytest.warns(UserWarning, match=r"^attach: 'head' of the (Wrapper|SequenceClassifier) was in no file"):
        attach(wrap(load("AutoModel", base)), CONFIG)
    model = wrap(load("AutoModel", base))
    attach(model, AdapterConfig(bottleneck_dim=4, modules_to_save=("head",)))
    model = wrap(load("AutoModel", base))
    attach(next(model.children()), CONFIG)
    assert model.head.weight.requires_grad if isinstance(model, Wrapper) else model.head.linear.weight.requires_grad


def test_a_saved_head_is_no_fresh_one(base, tmp_path):
    load("AutoModelForSequenceClassification", base).save_pretrained(tmp_path / "fine_tuned")
    model = load("AutoModelForSequenceClassification", tmp_path / "fine_tuned").float()
    attach(model, CONFIG)


def test_loading_an_adapter_without_its_head_is_the_same(base, tmp_path):
    model = load("AutoModel", base)
    attach(model, CONFIG)
    save_adapter(model, tmp_path / "adapter")
    with pytest.warns(UserWarning, match=r"^load_adapter: 'classifier' of the BertForSequenceClassification"):
        load_adapter(load("AutoModelForSequenceClassification", base), tmp_path / "adapter")


def test_other_models_are_left_in_peace(base, tmp_path):
    attach(load("AutoModel", base), CONFIG)
    attach(transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)), CONFIG)  # all is random
    config = transformers.LlamaConfig(**SIZES, **SPECIAL)
    for tied in (True, False):
        config.tie_word_embeddings = tied
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / str(tied))
        attach(load("AutoModelForCausalLM", tmp_path / str(tied)), CONFIG)
    bert = transformers.BertForPreTraining(transformers.BertConfig(**SIZES))
    bert.save_pretrained(tmp_path / "pretraining")
    attach(load("AutoModelForMaskedLM", tmp_path / "pretraining"), CONFIG)


def test_from_pretrained_names_the_adapters_that_it_drops(base, tmp_path):
    """`save_pretrained` writes adapters with the model; `from_pretrained` builds the plain model and says so."""
    model = load("AutoModelForSequenceClassification", base)
    attach(model, WITH_HEAD)
    model.save_pretrained(tmp_path / "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = transformers.AutoModelForSequenceClassification
        _, info = kind.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert any(".adapterx.default." in key for key in info["unexpected_keys"])
    assert any("classifier.adapterx_copies.default" in key for key in info["unexpected_keys"])
    pytest.importorskip("typer")
    from adapterx.cli.models import load_base

    with pytest.raises(CheckpointError, match=r"was written by save_pretrained with adapters inside \(\S+\.adapterx"):
        load_base(str(tmp_path / "whole"))
