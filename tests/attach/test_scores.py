"""Scores of several labels and of numbers, against scikit-learn and SciPy."""

import math

import pytest
import torch

from adapterx.errors import DataError
from adapterx.scores import multi_label_scores, regression_scores


@pytest.mark.parametrize("seed", range(6))
def test_multi_label_scores_are_those_of_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    torch.manual_seed(seed)
    truth, guessed = torch.rand(30, 5) > 0.6, torch.rand(30, 5) > 0.5
    truth[:, 4] = guessed[:, 4] = False  # never right and never predicted
    if seed == 5:
        guessed[:] = False
    found = multi_label_scores(guessed, truth)
    for average in ("micro", "macro"):
        theirs = metrics.f1_score(truth.numpy(), guessed.numpy(), average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(theirs)
    assert found["subset_accuracy"] == pytest.approx(metrics.accuracy_score(truth.numpy(), guessed.numpy()))


@pytest.mark.parametrize("seed", range(4))
def test_regression_scores_are_those_of_scipy(seed):
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(seed)
    truth = torch.randn(40, 2) * 100
    guessed = truth + torch.randn(40, 2) * 80
    if seed % 2:
        truth, guessed = truth.round(decimals=-2), guessed.round(decimals=-2)  # ties
    found = regression_scores(guessed, truth)
    columns = [(guessed[:, i].numpy(), truth[:, i].numpy()) for i in range(2)]
    assert found["pearson"] == pytest.approx(sum(stats.pearsonr(*pair)[0] for pair in columns) / 2)
    assert found["spearman"] == pytest.approx(sum(stats.spearmanr(*pair)[0] for pair in columns) / 2)
    assert found["mse"] == pytest.approx(((guessed - truth) ** 2).double().mean().item())
    assert found["mae"] == pytest.approx((guessed - truth).double().abs().mean().item())


def test_a_correlation_with_a_constant_is_no_number():
    found = regression_scores(torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [3.0]]))
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])
    assert found["mse"] == pytest.approx(14 / 3)


def test_other_shapes_are_refused():
    for scores in (multi_label_scores, regression_scores):
        for one, other in [((2, 3), (3, 2)), ((0, 2), (0, 2)), ((4,), (4,))]:
            with pytest.raises(DataError, match="must have the same shape of two dimensions above 0"):
                scores(torch.zeros(one), torch.zeros(other))
