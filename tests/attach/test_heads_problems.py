"""`problem_type`: the losses of transformers, and a head that remembers what its logits say."""

import pytest
import torch
from torch import nn

from adapterx import ClassificationHead, SequenceClassifier, load_head, restore_head, save_head
from adapterx.errors import CheckpointError, ConfigError, DataError


class Embedding(nn.Module):
    """A base of one table: each token's hidden state is its row."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 6)

    def forward(self, input_ids, attention_mask=None):
        return (self.table(input_ids),)


def classifier(num_labels, problem_type, **settings):
    torch.manual_seed(0)
    return SequenceClassifier(Embedding(), num_labels, hidden_size=6, problem_type=problem_type, **settings)


IDS = torch.arange(12).view(4, 3) % 9
CASES = [
    (3, "single_label_classification", torch.tensor([0, 2, 1, 1])),
    (3, "multi_label_classification", torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])),
    (3, "multi_label_classification", torch.rand(4, 3)),
    (3, "regression", torch.randn(4, 3)),
    (1, "regression", torch.randn(4)),
    (1, "regression", torch.randn(4, 1)),
]


@pytest.mark.parametrize(("num_labels", "problem_type", "labels"), CASES)
def test_losses_are_those_of_transformers(num_labels, problem_type, labels):
    losses = pytest.importorskip("transformers.loss.loss_utils")
    from transformers import BertConfig

    config = BertConfig(num_labels=num_labels, problem_type=problem_type)
    output = classifier(num_labels, problem_type)(IDS, labels=labels)
    theirs = labels.float() if problem_type != "single_label_classification" else labels
    expected = losses.ForSequenceClassificationLoss(theirs, output["logits"], config)
    torch.testing.assert_close(output["loss"], expected)
    assert output["loss"].requires_grad


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "labels", "match"),
    [
        (2, "multi_label_classification", torch.tensor([0, 1, 1, 0]), r"of shape .* \(4, 2\), got \(4,\), int64"),
        (2, "multi_label_classification", torch.tensor([[0, 2]] * 4), "lie from 0 to 1, got 2"),
        (2, "multi_label_classification", torch.tensor([[0.0, float("nan")]] * 4), "lie from 0 to 1, got nan"),
        (2, "regression", torch.zeros(4), r"numbers of shape .* \(4, 2\), got \(4,\), float32"),
        (1, "regression", torch.zeros(3), r"\(4, 1\), got \(3,\)"),
        (1, "regression", torch.tensor([0.0, 1.0, float("inf"), 0.0]), "be finite, got inf"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(num_labels, problem_type, labels, match):
    with pytest.raises(DataError, match=f"^SequenceClassifier: labels of {problem_type} must .*{match}"):
        classifier(num_labels, problem_type)(IDS, labels=labels)


def test_unknown_problem_type():
    with pytest.raises(ConfigError, match=r"problem_type must be one of single_label_classification, .* got 'ranking'"):
        ClassificationHead(6, 2, problem_type="ranking")


def test_a_saved_head_remembers(tmp_path):
    model = classifier(3, "multi_label_classification", pooling="cls")
    save_head(model, tmp_path / "multi")
    head = load_head(tmp_path / "multi")
    assert (head.problem_type, head.pooling) == ("multi_label_classification", "cls")
    other = classifier(3, "multi_label_classification", pooling="cls")
    restore_head(other, tmp_path / "multi")
    torch.testing.assert_close(other(IDS)["logits"], model(IDS)["logits"])
    plain = classifier(3, "single_label_classification", pooling="cls")
    with pytest.raises(CheckpointError, match="problem_type 'multi_label_classification' instead of 'single_label"):
        restore_head(plain, tmp_path / "multi")
    assert "problem_type" not in plain.head.to_dict()  # as earlier versions wrote and read it


def test_the_trainer_smooths_no_labels_that_are_no_classes(tmp_path):
    pytest.importorskip("transformers")
    from quick_arguments import quick_arguments

    from adapterx.errors import TrainingError
    from adapterx.integrations.transformers import AdapterTrainer

    rows = [{"input_ids": [1, 2, 3], "labels": [1.0, 0.0]}] * 4
    arguments = quick_arguments(tmp_path, label_smoothing_factor=0.1, max_steps=1, save_strategy="no")
    trainer = AdapterTrainer(classifier(2, "multi_label_classification"), arguments, train_dataset=rows)
    with pytest.raises(
        TrainingError, match=r"label_smoothing_factor must be 0 for multi_label_classification, got 0.1"
    ):
        trainer.train()
