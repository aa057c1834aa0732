"""What a training loop needs: groups of parameters, finite numbers, splits, scores, seeds."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapterx import AdapterConfig, attach
from adapterx.errors import ConfigError, DataError, TrainingError
from adapterx.heads import SequenceClassifier
from adapterx.training import (
    check_finite_loss,
    check_finite_parameters,
    classification_scores,
    examples_per_class,
    head_parameters,
    parameter_groups,
    seed_everything,
    stratified_split,
)

LABELS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=2, max_size=60)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 8})()
        self.first, self.norm, self.second = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, input_ids, attention_mask=None):
        return (self.second(self.norm(self.first(input_ids))),)


def adapted_classifier():
    model = SequenceClassifier(Base(), 2)
    attach(model.base_model, AdapterConfig(bottleneck_dim=3, target_modules=("second",)), seed=0)
    return model


def in_group(group):
    return {id(parameter) for parameter in group["params"]}


def test_groups_of_an_adapted_classifier():
    model = adapted_classifier()
    groups = parameter_groups(model, learning_rate=1e-3, head_learning_rate=1e-2, weight_decay=0.1)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("adapters", 1e-3, 0.1),
        ("adapters, not decayed", 1e-3, 0.0),
        ("head", 1e-2, 0.1),
        ("head, not decayed", 1e-2, 0.0),
    ]
    assert in_group(groups[2]) == {id(model.head.linear.weight)}
    assert in_group(groups[3]) == {id(model.head.linear.bias)}
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(trainable) == sorted(i for group in groups for i in in_group(group))
    torch.optim.AdamW(groups)


def test_groups_of_full_training_keep_norms_undecayed():
    model = SequenceClassifier(Base(), 2)
    groups = {g["name"]: g for g in parameter_groups(model, learning_rate=1e-4, weight_decay=0.1)}
    base = model.base_model
    decayed = next(g for name, g in groups.items() if g["weight_decay"] and "head" not in name)
    assert in_group(decayed) == {id(base.first.weight), id(base.second.weight)}
    assert {g["lr"] for g in groups.values()} == {1e-4}


def test_head_of_a_model_without_base_model_is_what_no_adapter_owns():
    model = nn.Sequential()
    model.body, model.classifier = Base(), nn.Linear(8, 2)
    attach(model, AdapterConfig(bottleneck_dim=3, target_modules=("body.second",)))
    model.classifier.requires_grad_(True)
    assert {id(p) for p in head_parameters(model)} == {id(p) for p in model.classifier.parameters()}


def test_nothing_trainable_is_an_error():
    with pytest.raises(TrainingError, match="trainable"):
        parameter_groups(Base().requires_grad_(False), learning_rate=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_names_step_epoch_rate_and_cure(value):
    with pytest.raises(TrainingError, match=r"step 7 \(epoch 1.50\) with learning rate 0.01; try .*0.001"):
        check_finite_loss(torch.tensor(value), step=7, epoch=1.5, learning_rate=0.01)


def test_finite_loss_passes():
    check_finite_loss(torch.tensor(0.7), step=7, epoch=None, learning_rate=0.01)
    check_finite_loss(1e30, step=7, epoch=0.0, learning_rate=0.01)


def test_parameters_that_are_not_finite_are_named():
    model = adapted_classifier()
    check_finite_parameters(model, step=3)
    with torch.no_grad():
        model.base_model.first.weight[0, 0] = math.nan  # frozen, so not our business
    check_finite_parameters(model, step=3)
    with torch.no_grad():
        model.head.linear.bias[1] = math.inf
    with pytest.raises(TrainingError, match=r"head.linear.bias .* step 3"):
        check_finite_parameters(model, step=3)


@given(LABELS, st.integers(0, 5))
def test_few_shot_draws_exactly_k_of_each_class(labels, seed):
    smallest = min(labels.count(label) for label in set(labels))
    drawn = examples_per_class(labels, smallest, seed=seed)
    assert drawn == sorted(set(drawn)) == examples_per_class(labels, smallest, seed=seed)
    assert {labels[i] for i in drawn} == set(labels)
    assert len(drawn) == smallest * len(set(labels))


def test_few_shot_depends_on_the_seed():
    labels = ["a", "b"] * 50
    assert len({tuple(examples_per_class(labels, 4, seed=seed)) for seed in range(5)}) == 5


def test_few_shot_names_the_class_that_is_too_small():
    with pytest.raises(DataError, match=r"at least 3 examples, but 'b' has 2"):
        examples_per_class(["a", "a", "a", "b", "b"], 3, seed=0)
    with pytest.raises(ConfigError, match="count"):
        examples_per_class(["a"], 0, seed=0)


@given(LABELS.filter(lambda labels: len(set(labels)) < len(labels)), st.floats(0.05, 0.95), st.integers(0, 3))
def test_split_keeps_every_class_in_training_and_shares_it(labels, fraction, seed):
    training, held_out = stratified_split(labels, fraction, seed=seed)
    assert sorted(training + held_out) == list(range(len(labels)))
    for label in set(labels):
        total, apart = labels.count(label), sum(labels[i] == label for i in held_out)
        assert apart < total
        assert apart >= (total > 1)
        assert abs(apart - total * fraction) <= 1


def test_split_that_cannot_be_made():
    with pytest.raises(ConfigError, match="fraction"):
        stratified_split(["a", "a"], 1.0, seed=0)
    with pytest.raises(DataError, match="two examples"):
        stratified_split(["a", "b"], 0.5, seed=0)


def test_scores_against_numbers_worked_by_hand():
    # class 0: precision 2/3, recall 2/2, F1 4/5; class 1: 1/1, 1/3, F1 1/2; class 2: predicted once, wrongly, F1 0
    scores = classification_scores([0, 0, 0, 1, 2], [0, 0, 1, 1, 1])
    assert scores == pytest.approx({"accuracy": 0.6, "macro_f1": (0.8 + 0.5 + 0.0) / 3})
    assert classification_scores([1, 1], [1, 1]) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_scores_need_equal_lengths():
    for predictions, labels in ([1], [1, 0]), ([], []):
        with pytest.raises(DataError, match="length"):
            classification_scores(predictions, labels)


def test_seed_everything_repeats_python_and_torch():
    seed_everything(5)
    first = random.random(), torch.rand(3)
    seed_everything(5)
    assert random.random() == first[0]
    assert torch.equal(torch.rand(3), first[1])


def test_frozen_base_stays_bitwise_the_same_in_a_plain_loop():
    model = adapted_classifier()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-2, weight_decay=0.1))
    for _ in range(3):
        model(torch.randn(4, 5, 8), torch.ones(4, 5), labels=torch.tensor([0, 1, 0, 1]))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
