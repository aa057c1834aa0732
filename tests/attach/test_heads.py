"""Heads: pooling without padding, losses, exported graphs, copies."""

import copy
import pickle

import pytest
import torch
from torch import nn

from adapterx.errors import ConfigError
from adapterx.heads import POOLINGS, ClassificationHead, SequenceClassifier, pool


class Base(nn.Module):
    """Stands for a Hugging Face model; records with which arguments it was called."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 6})()
        self.embedding = nn.Embedding(11, 6, dtype=dtype)
        self.seen = None

    def forward(self, input_ids, attention_mask=None):
        if not torch.compiler.is_exporting():
            self.seen = {"attention_mask": attention_mask}
        return (self.embedding(input_ids),)


class BaseWithMore(Base):
    def forward(self, input_ids, attention_mask=None, token_type_ids=None, use_cache=None, **kwargs):
        self.seen = {"token_type_ids": token_type_ids, "use_cache": use_cache, **kwargs}
        return (self.embedding(input_ids),)


def padded(left):
    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0], [1, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    return (ids.flip(1), mask.flip(1)) if left else (ids, mask)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_reads_each_row_without_its_padding(pooling, left):
    hidden = torch.randn(3, 5, 6)
    _, mask = padded(left)
    pooled = pool(hidden, mask, pooling)
    for row in range(3):
        own = hidden[row][mask[row].bool()]
        expected = {"mean": own.mean(0), "cls": own[0], "last": own[-1]}[pooling]
        torch.testing.assert_close(pooled[row], expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_never_changes_the_logits(pooling):
    head = ClassificationHead(6, 3, pooling=pooling)
    hidden, mask = torch.randn(2, 5, 6), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
    poisoned = hidden.clone()
    poisoned[:, 3:] = 1e6
    torch.testing.assert_close(head(poisoned, mask), head(hidden[:, :3]))


def test_mean_is_taken_in_float32():
    # 300 equal values that are not powers of two: a bfloat16 sum would be off by more than a per cent.
    hidden = torch.full((1, 300, 2), 0.1, dtype=torch.bfloat16)
    pooled = pool(hidden, torch.ones(1, 300), "mean")
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, hidden[:, 0].float(), rtol=1e-5, atol=0)


def test_empty_row_gives_a_finite_mean():
    assert pool(torch.randn(1, 4, 6), torch.zeros(1, 4), "mean").eq(0).all()


def test_loss_is_the_mean_cross_entropy_and_comes_first():
    model = SequenceClassifier(Base(), 3).eval()
    ids, mask = padded(False)
    labels = torch.tensor([2, 0, 1])
    output = model(ids, mask, labels=labels)
    assert list(output) == ["loss", "logits"]
    expected = -torch.stack([output["logits"].log_softmax(-1)[i, label] for i, label in enumerate(labels)]).mean()
    torch.testing.assert_close(output["loss"], expected)
    assert list(model(ids, mask)) == ["logits"]


def test_base_gets_only_the_arguments_it_knows():
    ids, mask = padded(False)
    plain = SequenceClassifier(Base(), 2)
    plain(ids, mask, torch.ones_like(ids))
    assert plain.base_model.seen == {"attention_mask": mask}
    rich = SequenceClassifier(BaseWithMore(), 2)
    rich(ids, mask, torch.ones_like(ids))
    assert rich.base_model.seen["token_type_ids"].eq(1).all()
    assert rich.base_model.seen["use_cache"] is False
    rich(ids)
    assert rich.base_model.seen["token_type_ids"] is None


def test_without_a_mask_every_token_counts():
    model = SequenceClassifier(Base(), 2)
    ids = padded(False)[0]
    torch.testing.assert_close(model(ids)["logits"], model(ids, torch.ones_like(ids))["logits"])


def test_half_precision_base_with_float_head():
    model = SequenceClassifier(Base(torch.bfloat16), 2)
    output = model(padded(False)[0], labels=torch.tensor([0, 1, 0]))
    assert output["loss"].dtype == torch.float32
    output["loss"].backward()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_traces_and_exports_at_other_shapes(pooling):
    class Logits(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids, mask):
            return self.model(ids, mask)["logits"]

    model = Logits(SequenceClassifier(Base(), 3, pooling=pooling)).eval()
    ids, mask = padded(False)
    traced = torch.jit.trace(model, (ids, mask))
    shapes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    exported = torch.export.export(model, (ids, mask), dynamic_shapes=(shapes, shapes)).module()
    other_ids, other_mask = torch.randint(0, 11, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    other_mask[1, 4:] = 0
    expected = model(other_ids, other_mask)
    torch.testing.assert_close(traced(other_ids, other_mask), expected)
    torch.testing.assert_close(exported(other_ids, other_mask), expected)


def test_copies_and_pickles():
    model = SequenceClassifier(Base(), 2).eval()
    ids, mask = padded(False)
    expected = model(ids, mask)["logits"]
    assert torch.equal(copy.deepcopy(model)(ids, mask)["logits"], expected)
    head = pickle.loads(pickle.dumps(model.head))
    assert torch.equal(head(model.base_model(ids)[0], mask), expected)


def test_head_is_rebuilt_from_its_description():
    for dense in (False, True):
        head = ClassificationHead(6, 3, pooling="last", dropout=0.25, dense=dense)
        assert ClassificationHead(**head.to_dict()).to_dict() == head.to_dict()


def test_a_head_with_a_dense_layer():
    """Its description differs from that of a head without; the formula is written by hand."""
    head = ClassificationHead(6, 3, pooling="cls", dense=True).double()
    assert head.to_dict() == ClassificationHead(6, 3, pooling="cls").to_dict() | {"dense": True}
    hidden = torch.randn(2, 4, 6, dtype=torch.float64)
    dense = torch.tanh(hidden[:, 0] @ head.dense.weight.T + head.dense.bias)
    torch.testing.assert_close(head(hidden), dense @ head.linear.weight.T + head.linear.bias, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"dropout": 1.0}, "dropout"),
        ({"num_labels": 0}, "num_labels"),
        ({"dense": 1}, "dense"),
    ],
)
def test_values_that_break_a_rule(values, word):
    with pytest.raises(ConfigError, match=word):
        ClassificationHead(**{"hidden_size": 4, "num_labels": 2} | values)


def test_hidden_size_must_be_known():
    with pytest.raises(ConfigError, match="hidden_size"):
        SequenceClassifier(nn.Linear(2, 2), 2)
    assert SequenceClassifier(nn.Linear(2, 2), 2, hidden_size=2).config is None
