import pytest
import torch

from training.evaluation.extractors import Features
from training.evaluation.metrics.adaptor_fidelity import adaptor_fidelity


def _features(seed: int, size: int = 4) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(6, 5, generator=generator), torch.randn(6, 8, size, size, generator=generator))


def test_a_perfect_copy_scores_one_whatever_its_scale():
    teacher = _features(0)
    copy = Features(teacher.summary * 3, teacher.features * 0.5)
    assert adaptor_fidelity(copy, teacher)[:2] == pytest.approx((1.0, 1.0))
    assert adaptor_fidelity(teacher, teacher) == pytest.approx((1.0,) * 4)


def test_answering_the_mean_scores_high_only_before_centering():
    teacher = _features(0)
    teacher = Features(teacher.summary + 5, teacher.features + 5)
    mean = teacher.features.mean(dim=(0, 2, 3))[None, :, None, None].expand_as(teacher.features)
    noise = 1e-3 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    constant = Features(teacher.summary.mean(0).expand_as(teacher.summary), mean + noise)
    fidelity = adaptor_fidelity(constant, teacher)
    assert fidelity.features > 0.95
    assert abs(fidelity.centered_features) < 0.1


def test_a_teacher_without_summary_gives_none():
    teacher = _features(0)._replace(summary=None)
    fidelity = adaptor_fidelity(_features(1), teacher)
    assert fidelity.summary is None
    assert fidelity.centered_summary is None


def test_different_grids_are_brought_together():
    teacher = _features(0)
    finer = Features(teacher.summary, teacher.features.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert adaptor_fidelity(finer, teacher).features > 0.9


def test_different_widths_are_refused():
    teacher = _features(0)
    with pytest.raises(ValueError, match=r"`adaptor` must have .* as `teacher`, got features \(6, 7, 4, 4\) beside "):
        adaptor_fidelity(Features(None, teacher.features[:, :7]), teacher)
