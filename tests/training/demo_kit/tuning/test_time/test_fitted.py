"""What is fitted to one half is measured on the other."""

import pytest
import torch

from training.demo_kit.tuning.test_time import fitted
from training.demo_kit.tuning.test_time.fitted import (
    fit_calibration,
    fit_thresholds,
    mean_f1,
    measure_fitted,
    split_in_halves,
)
from training.finetuning.examination.evidence import Evidence, Ranking, join, rank_classes


def evidence_of(logits, labels):
    """Of several labels, image by image."""
    return [
        Evidence(torch.zeros(1), rank_classes(logit[None].sigmoid(), label[None]), None, logit[None], label[None])
        for logit, label in zip(logits, labels, strict=True)
    ]


def drawn(count=600, distortion=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 3, generator=generator)
    return evidence_of(logits * distortion, torch.bernoulli(logits.sigmoid(), generator=generator).long())


def test_halves_have_nothing_in_common_and_are_others_for_each_seed():
    first, second = split_in_halves(7, 0)
    assert (len(first), len(second)) == (4, 3)
    assert sorted(first + second) == list(range(7))
    assert split_in_halves(7, 0) == (first, second)
    assert split_in_halves(7, 1) != (first, second)


def test_the_half_that_is_fitted_to_is_not_the_half_that_is_measured(monkeypatch):
    """Each image is known by its logit, which a temperature of 1 and thresholds leave as they are."""
    numbers = torch.arange(8.0)[:, None].repeat(1, 3) / 8
    fits, measured = [], []

    def remember(place, values):
        place.append({round(8 * float(value)) for value in values})

    def fit_temperature(logits, labels):
        remember(fits, logits[:, 0])
        return 1.0

    def calibration_error(logits, labels):
        remember(measured, logits[:, 0])
        return 0.0

    def best_thresholds(ranking):
        remember(fits, ranking.scores.double().logit())
        return [0.5] * 3, [0.0] * 3

    def f1(ranking, thresholds):
        remember(measured, ranking.scores.double().logit())
        return 0.0

    for name, stand_in in {"fit_temperature": fit_temperature, "calibration_error": calibration_error}.items():
        monkeypatch.setattr(fitted, name, stand_in)
    for name, stand_in in {"best_thresholds": best_thresholds, "mean_f1": f1}.items():
        monkeypatch.setattr(fitted, name, stand_in)
    measure_fitted("numbers", 0, evidence_of(numbers, torch.ones(8, 3).long()), has_thresholds=True)
    assert len(fits) == 4  # a temperature and thresholds, each half in either role
    for index, fit in enumerate(fits):
        before, held_out, same = measured[3 * index : 3 * index + 3]
        assert before == held_out == set(range(8)) - fit
        assert same == fit


def test_a_distortion_of_both_halves_is_undone_and_one_of_the_first_alone_does_harm():
    both = fit_calibration(join(drawn(distortion=3.0)), join(drawn(distortion=3.0, seed=1)))
    assert both.held_out < both.before / 2
    alone = fit_calibration(join(drawn(distortion=3.0)), join(drawn(seed=1)))
    assert alone.held_out > 2 * alone.before
    assert alone.same < alone.held_out


def test_f1_at_thresholds():
    ranking = Ranking(
        torch.tensor([0, 0, 0, 1, 2]),
        torch.tensor([0.9, 0.6, 0.4, 0.3, 0.9]),
        torch.tensor([True, False, True, True, False]),
        torch.tensor([2, 1, 0]),  # nothing of the last is there to be found
    )
    assert mean_f1(ranking, [0.5] * 3) == pytest.approx((2 * 1 / (2 + 2) + 0) / 2)
    assert mean_f1(ranking, [0.35, 0.2, 0.5]) == pytest.approx((2 * 2 / (3 + 2) + 1) / 2)


def test_thresholds_help_where_all_scores_are_low():
    fit = fit_thresholds(*(join(shifted(seed)) for seed in (0, 1)))
    assert fit.before < 0.2
    assert fit.held_out > fit.before + 0.3
    assert fit.same >= fit.held_out - 0.05


def shifted(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(400, 3, generator=generator)
    return evidence_of(logits - 5, torch.bernoulli(logits.sigmoid(), generator=generator).long())


def test_what_has_neither_logits_nor_thresholds_has_nothing_to_fit():
    images = [Evidence(torch.zeros(1)) for _ in range(4)]
    assert measure_fitted("masks", 0, images, has_thresholds=False) == []
    names = [(score.subject, score.measure) for score in measure_fitted("labels", 3, drawn(20), has_thresholds=True)]
    assert names == [("labels", "calibration error"), ("labels", "f1")]
