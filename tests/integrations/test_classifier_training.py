"""`SequenceClassifier` under what the Trainer offers: checkpointing, NEFTune, label smoothing, and wrong labels."""

import warnings

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import tiny_training
from quick_arguments import quick_arguments
from torch import nn
from transformers import BertForSequenceClassification, BertModel, TrainingArguments

from adapterx import AdapterConfig, ConfigError, DataError, TrainingError, adapter_parameters, attach
from adapterx.heads import SequenceClassifier
from adapterx.integrations.transformers import AdapterTrainer

NEWER = hasattr(TrainingArguments, "activation_checkpointing")  # transformers 5.24
CONFIG = AdapterConfig(bottleneck_dim=4, init_up="near_zero")


class Rows(torch.utils.data.Dataset):
    def __init__(self, label=lambda i: i % 2):
        self.label = label

    def __len__(self):
        return 8

    def __getitem__(self, i):
        ids = torch.arange(5) + i
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": self.label(i)}


def classifier(num_labels=2):
    config = tiny_training.tiny_config()
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(0)
    model = SequenceClassifier(BertModel(config, add_pooling_layer=False), num_labels)
    attach(model.base_model, CONFIG, seed=0)
    return model


def plain_head():
    config = tiny_training.tiny_config()
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    attach(model, AdapterConfig(bottleneck_dim=4, init_up="near_zero", modules_to_save=("classifier",)), seed=0)
    return model


def train(model, folder, rows=None, **settings):
    settings = {
        "max_steps": 2,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
    } | settings
    arguments = quick_arguments(folder, **settings)
    AdapterTrainer(model=model, args=arguments, train_dataset=rows or Rows()).train()
    return model


@pytest.mark.parametrize("make", [classifier, plain_head])
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_gradient_checkpointing_trains_the_same(make, reentrant, tmp_path):
    plain = train(make(), tmp_path)
    name = "activation" if NEWER else "gradient"
    options = {f"{name}_checkpointing": True}
    if reentrant is not None:
        options[f"{name}_checkpointing_kwargs"] = {"use_reentrant": reentrant}
    model = make()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="AdapterTrainer")
        if make is plain_head and reentrant and not NEWER:
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
            with pytest.raises(TrainingError, match=r"none reached 'default' on .*use_reentrant"):
                train(model, tmp_path, **options)
            return
        train(model, tmp_path, **options)
    base = model.base_model if make is classifier else model
    assert any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    pairs = list(zip(adapter_parameters(model), adapter_parameters(plain), strict=True))
    assert pairs
    for (name, mine), (_, other) in pairs:
        torch.testing.assert_close(mine, other, msg=name)
        assert not torch.equal(mine, dict(adapter_parameters(make()))[name]) or "bias" in name


def test_checkpointing_is_switched_through_to_the_base():
    model = classifier()
    assert model.supports_gradient_checkpointing
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    assert model.is_activation_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_a_base_without_the_method_is_named():
    model = SequenceClassifier(nn.Linear(8, 8), 2, hidden_size=8)
    assert not model.supports_gradient_checkpointing
    for ask in (model.gradient_checkpointing_enable, model.gradient_checkpointing_disable, model.get_input_embeddings):
        with pytest.raises(ConfigError, match=r"SequenceClassifier: base_model must have \w+, Linear has none"):
            ask()


def test_neftune_adds_noise_to_the_embeddings(tmp_path):
    plain, noisy = train(classifier(), tmp_path), train(classifier(), tmp_path, neftune_noise_alpha=5.0)
    assert any(
        not torch.equal(mine, other)
        for (_, mine), (_, other) in zip(adapter_parameters(plain), adapter_parameters(noisy), strict=True)
    )
    assert not noisy.get_input_embeddings()._forward_hooks


def test_label_smoothing(tmp_path):
    train(classifier(), tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(DataError, match=r"labels must be class ids of shape \(batch,\), int64, got \(4, 2\), int64"):
        train(classifier(), tmp_path, Rows(lambda i: torch.tensor([1, 0])), label_smoothing_factor=0.1)


@pytest.mark.parametrize(
    ("label", "num_labels", "match"),
    [
        (lambda i: torch.tensor([1.0, 0.0]), 2, r"labels must be class ids of shape \(batch,\), int64, got \(4, 2\)"),
        (lambda i: torch.tensor([1, 0]), 2, r".*got \(4, 2\), int64; for multi-label targets or regression"),
        (lambda i: torch.tensor([1]), 2, r".*got \(4, 1\), int64"),
        (lambda i: 0.5, 2, r"labels must be class ids of shape \(batch,\), int64, got \(4,\), float32"),
        (lambda i: i % 3, 2, r"labels must lie from 0 to 1, or be -100 to be left out, got 2"),
        (lambda i: -1, 2, r"labels must lie from 0 to 1, .*got -1"),
        (lambda i: 0, 1, r"num_labels must be at least 2 where labels are given, got 1, of which the loss is always 0"),
        (lambda i: 0.5, 1, r"num_labels must be at least 2 where labels are given, got 1"),
    ],
)
def test_wrong_labels_are_refused_in_words(label, num_labels, match, tmp_path):
    with pytest.raises(DataError, match=f"^SequenceClassifier: {match}"):
        train(classifier(num_labels), tmp_path, Rows(label))


def test_labels_that_are_right():
    model = classifier()
    ids = torch.arange(10).view(2, 5)
    wanted = model(ids, labels=torch.tensor([0, 1]))["loss"]
    assert torch.equal(model(ids, labels=torch.tensor([0, 1], dtype=torch.int32))["loss"], wanted)
    assert torch.isfinite(model(ids, labels=torch.tensor([-100, 1]))["loss"])
    with pytest.raises(DataError, match="as many as there are texts, got 3 for 2"):
        model(ids, labels=torch.tensor([0, 1, 1]))
    with pytest.raises(DataError, match="bool"):
        model(ids, labels=torch.tensor([True, False]))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(ids, labels=torch.tensor([0, 1]))["loss"], wanted)
    assert classifier(1)(ids)["logits"].shape == (2, 1)  # for a loss of one's own
