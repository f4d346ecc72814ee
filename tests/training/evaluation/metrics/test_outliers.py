import pytest
import torch
from sklearn.metrics import roc_auc_score

from training.evaluation.metrics.outliers import weighted_auroc


def test_areas_are_those_of_scikit_learn_with_ties_and_weights():
    scores = torch.randint(0, 8, (60,)).double()
    positive = torch.rand(60) < 0.4
    weights = torch.randint(0, 3, (5, 60)).double()
    found = weighted_auroc(scores, positive, weights)
    for value, weight in zip(found, weights, strict=True):
        expected = roc_auc_score(positive, scores, sample_weight=weight)
        assert value.item() == pytest.approx(expected, abs=1e-9)
