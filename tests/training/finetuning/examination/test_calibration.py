"""A known distortion of probabilities is found and undone; thresholds have the best F1 that there is."""

import pytest
import torch

from training.finetuning.examination.calibration import (
    NO_THRESHOLD,
    best_thresholds,
    calibrate,
    fit_temperature,
)
from training.finetuning.examination.evidence import Ranking, rank_classes


@pytest.mark.parametrize("distortion", [0.4, 1.0, 3.0])
def test_temperature_undoes_a_distortion(distortion):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=generator, dtype=torch.double)
    labels = logits.softmax(-1).multinomial(1, generator=generator).squeeze(1)
    found = calibrate(logits * distortion, labels)
    assert found.temperature == pytest.approx(distortion, rel=0.06)
    assert found.error_after < 0.03
    if distortion != 1:
        assert found.error_before > 3 * found.error_after


def test_temperature_of_several_labels():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 3, generator=generator, dtype=torch.double)
    labels = torch.bernoulli(logits.sigmoid(), generator=generator).long()
    assert calibrate(logits * 2.5, labels).temperature == pytest.approx(2.5, rel=0.06)


def test_temperature_is_where_the_loss_is_least():
    logits = 3 * torch.randn(50, 4, dtype=torch.double)
    labels = (logits / 2).softmax(-1).multinomial(1).squeeze(1)
    best = fit_temperature(logits, labels)

    def loss(temperature):
        return torch.nn.functional.cross_entropy(logits / temperature, labels)

    assert loss(best) <= min(loss(best * 1.05), loss(best / 1.05))


@pytest.mark.parametrize("sign", [1, -1])
def test_answers_that_are_all_right_or_all_wrong_have_no_temperature(sign):
    found = calibrate(torch.eye(3).repeat(4, 1) * 9 * sign, torch.arange(3).repeat(4))
    assert found.temperature == 1
    assert found.error_after == found.error_before


def test_thresholds_have_the_best_f1():
    generator = torch.Generator().manual_seed(0)
    truths = torch.rand(200, 2, generator=generator) < 0.3
    scores = (0.6 * truths + 0.7 * torch.rand(200, 2, generator=generator)).clamp(0, 1)
    ranking = rank_classes(scores, truths)
    thresholds, measured = best_thresholds(ranking)

    def f1(number, threshold):
        found = scores[:, number].double() > threshold
        return float(2 * (found & truths[:, number]).sum() / (found.sum() + truths[:, number].sum()))

    for number in range(2):
        assert measured[number] == pytest.approx(f1(number, thresholds[number]))
        assert measured[number] >= max(f1(number, threshold) for threshold in torch.linspace(0, 1, 101).tolist())


def test_answers_of_one_score_are_taken_together():
    ranking = Ranking(
        torch.zeros(4, dtype=torch.long),
        torch.tensor([0.8, 0.8, 0.8, 0.1]),
        torch.tensor([True, False, False, False]),
        torch.tensor([1]),
    )
    (threshold,), (f1,) = best_thresholds(ranking)
    assert (threshold, f1) == (pytest.approx(0.45), pytest.approx(0.5))


def test_classes_without_images_have_the_usual_threshold():
    ranking = rank_classes(torch.rand(5, 2), torch.tensor([[1, 0]] * 5))
    assert best_thresholds(ranking)[0][1] == NO_THRESHOLD
