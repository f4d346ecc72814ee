import pytest
import torch

from training.evaluation.features import StoredFeatures
from training.evaluation.metrics.fidelity import adaptor_fidelity, fidelity_scores
from training.evaluation.models.base import Features


def stored(summary: torch.Tensor | None, features: torch.Tensor, adaptor: str = "") -> StoredFeatures:
    """What a model said, or one of its adaptors."""
    prefix = f"{adaptor}/" if adaptor else ""
    arrays = {
        f"{prefix}features": features.flatten(2).transpose(1, 2).flatten(0, 1),
        f"{prefix}grids": torch.tensor(features.shape[2:]).expand(len(features), 2),
        f"{prefix}mean_features": features.mean((2, 3)),
    }
    if summary is not None:
        arrays[f"{prefix}summary"] = summary
    return StoredFeatures([arrays], len(features))


def answers(seed: int, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 5, generator=generator), torch.randn(6, 8, size, size, generator=generator)


def means(student, teacher) -> dict[str, float]:
    scores = fidelity_scores(stored(*student, "a"), stored(*teacher), "a")
    assert all(values.shape == (6,) for values in scores.values())
    return {name: values.mean().item() for name, values in scores.items()}


def test_a_perfect_copy_scores_one_whatever_its_scale():
    summary, features = answers(0)
    found = means((summary * 3, features * 0.5), (summary, features))
    assert (found["summary"], found["features"]) == pytest.approx((1.0, 1.0))
    assert list(means((summary, features), (summary, features)).values()) == pytest.approx([1.0] * 4)


def test_answering_the_mean_scores_high_only_before_centering():
    summary, features = (answer + 5 for answer in answers(0))
    mean = features.mean(dim=(0, 2, 3))[None, :, None, None].expand_as(features)
    noise = 1e-3 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    found = means((summary.mean(0).expand_as(summary), mean + noise), (summary, features))
    assert found["features"] > 0.95
    assert abs(found["centered features"]) < 0.1


def test_a_teacher_without_summary_gives_none():
    assert set(means(answers(1), (None, answers(0)[1]))) == {"features", "centered features"}


def test_different_grids_are_brought_together():
    summary, features = answers(0)
    finer = features.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert means((summary, finer), (summary, features))["features"] > 0.9


def test_different_widths_are_refused():
    summary, features = answers(0)
    with pytest.raises(ValueError, match="`adaptor` must have as many channels as its teacher, 8, got 7 of 'a'"):
        means((summary, features[:, :7]), (summary, features))
    with pytest.raises(ValueError, match="`teacher` must have the student's 6 images, got 5"):
        means((summary, features), (summary[:5], features[:5]))


def _features(seed: int, size: int = 4) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(6, 5, generator=generator), torch.randn(6, 8, size, size, generator=generator))


def test_a_perfect_copy_scores_one_whatever_its_scale_of_pairs():
    teacher = _features(0)
    copy = Features(teacher.summary * 3, teacher.features * 0.5)
    assert adaptor_fidelity(copy, teacher)[:2] == pytest.approx((1.0, 1.0))
    assert adaptor_fidelity(teacher, teacher) == pytest.approx((1.0,) * 4)


def test_answering_the_mean_scores_high_only_before_centering_of_pairs():
    teacher = _features(0)
    teacher = Features(teacher.summary + 5, teacher.features + 5)
    mean = teacher.features.mean(dim=(0, 2, 3))[None, :, None, None].expand_as(teacher.features)
    noise = 1e-3 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    constant = Features(teacher.summary.mean(0).expand_as(teacher.summary), mean + noise)
    fidelity = adaptor_fidelity(constant, teacher)
    assert fidelity.features > 0.95
    assert abs(fidelity.centered_features) < 0.1


def test_a_teacher_without_summary_gives_none_of_pairs():
    teacher = _features(0)._replace(summary=None)
    fidelity = adaptor_fidelity(_features(1), teacher)
    assert fidelity.summary is None
    assert fidelity.centered_summary is None


def test_different_grids_are_brought_together_of_pairs():
    teacher = _features(0)
    finer = Features(teacher.summary, teacher.features.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert adaptor_fidelity(finer, teacher).features > 0.9


def test_different_widths_are_refused_of_pairs():
    teacher = _features(0)
    with pytest.raises(ValueError, match=r"`adaptor` must have .* as `teacher`, got features \(6, 7, 4, 4\) beside "):
        adaptor_fidelity(Features(None, teacher.features[:, :7]), teacher)


def test_scores_of_images_are_those_of_pairs():
    student, teacher = answers(1), answers(0)
    scores, pair = means(student, teacher), adaptor_fidelity(Features(*student), Features(*teacher))
    assert scores["features"] == pytest.approx(pair.features, abs=1e-6)
    assert scores["summary"] == pytest.approx(pair.summary, abs=1e-6)
    assert scores["centered features"] == pytest.approx(pair.centered_features, abs=1e-6)
    assert scores["centered summary"] == pytest.approx(pair.centered_summary, abs=1e-6)
