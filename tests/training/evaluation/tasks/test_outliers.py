"""Known areas under the curve, and detectors that tell held-out classes."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from training.evaluation.data import Examples, Part, Stacked
from training.evaluation.models.pretrained import RawPixels
from training.evaluation.tasks import dense_prediction
from training.evaluation.tasks.base import Evaluation, TaskSettings
from training.evaluation.tasks.dense_prediction import _divided, measure_out_of_distribution, weighted_auroc


class Shades:
    """Noise of four brightnesses, which are the classes."""

    name = "shades"

    def __init__(self, with_train: bool, groups: torch.Tensor | None = None) -> None:
        labels = torch.arange(80) % 4
        images = (labels * 50)[:, None, None, None] + torch.randint(0, 40, (80, 3, 16, 16))
        examples = Examples(Stacked(images.to(torch.uint8)), "x", labels=labels, groups=groups)
        names = tuple(f"shade {number}" for number in range(4))
        self.given = Part("shades", examples, examples if with_train else None, names)

    def part(self, kind):
        return self.given


@pytest.mark.parametrize("with_train", [True, False])
def test_classes_that_were_held_out_are_told(with_train):
    torch.manual_seed(1)
    evaluation = Evaluation(RawPixels(8, 16), Shades(with_train), TaskSettings(neighbors=3))
    found = {each.metric: each for each in measure_out_of_distribution(evaluation)}
    assert set(found) == {"AUROC, kNN distance", "AUROC, Mahalanobis"}
    vectors, labels, seen, tested = _divided(evaluation)
    known = labels[seen].unique()
    assert len(known) == 2
    assert not set(seen.tolist()) & set(tested.tolist())
    units = torch.nn.functional.normalize(vectors, dim=1)
    distance = torch.cdist(units[tested], units[seen]).topk(3, largest=False).values[:, -1]
    expected = roc_auc_score(~torch.isin(labels[tested], known), distance)
    value = found["AUROC, kNN distance"]
    assert value.value == pytest.approx(expected, abs=1e-3)
    assert value.low <= value.value <= value.high
    assert found["AUROC, Mahalanobis"].value > 0.8


@pytest.mark.parametrize("with_train", [True, False])
def test_sources_stay_together(with_train, monkeypatch):
    data = Shades(with_train, torch.arange(80) // 8)
    evaluation = Evaluation(RawPixels(8, 16), data, TaskSettings(neighbors=3))
    seen, tested = _divided(evaluation)[2:]
    if not with_train:
        assert not set((seen // 8).tolist()) & set((tested // 8).tolist())
    grouped = measure_out_of_distribution(evaluation)[0]
    drawn = []
    monkeypatch.setattr(dense_prediction, "bootstrap_interval", lambda *args, groups, **options: drawn.append(groups))
    assert measure_out_of_distribution(evaluation)[0].value == grouped.value
    expected = torch.arange(80) // 8 if with_train else tested // 8
    assert torch.equal(drawn[0], expected)


def test_one_source_cannot_be_divided():
    data = Shades(False, torch.zeros(80, dtype=torch.long))
    with pytest.raises(ValueError, match="known images of several sources, got one"):
        _divided(Evaluation(RawPixels(8, 16), data, TaskSettings(neighbors=3)))


def test_areas_are_those_of_scikit_learn_with_ties_and_weights():
    scores = torch.randint(0, 8, (60,)).double()
    positive = torch.rand(60) < 0.4
    weights = torch.randint(0, 3, (5, 60)).double()
    found = weighted_auroc(scores, positive, weights)
    for value, weight in zip(found, weights, strict=True):
        expected = roc_auc_score(positive, scores, sample_weight=weight)
        assert value.item() == pytest.approx(expected, abs=1e-9)
