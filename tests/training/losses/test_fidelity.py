"""Fidelity, patterns, shifts, sizes and positions on maps of known answers."""

import pytest
import torch
from torch.nn import functional as F

from modeling_radio.evaluation.features import StoredFeatures
from modeling_radio.evaluation.tasks.representation import fidelity_scores
from modeling_radio.metrics.feature_model import Features
from modeling_radio.training.losses.fidelity import (
    adaptor_fidelity,
    canonical_correlation,
    feature_consistency,
    fixed_pattern_energy,
    linear_fidelity,
    map_agreement,
    position_r2,
    shift_error,
)


def stored(summary: torch.Tensor | None, features: torch.Tensor, prefix: str = "") -> StoredFeatures:
    """Features of a model, or of its adaptor with a prefix."""
    arrays = {
        f"{prefix}features": features.flatten(2).transpose(1, 2).flatten(0, 1),
        f"{prefix}grids": torch.tensor(features.shape[2:]).expand(len(features), 2),
        f"{prefix}mean_features": features.mean((2, 3)),
    }
    if summary is not None:
        arrays[f"{prefix}summary"] = summary
    return StoredFeatures([arrays], len(features))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(seed: int) -> Features:
    return Features(noise(6, 5, seed=seed), noise(6, 8, 4, 4, seed=seed + 10))


def scores(student: Features, teacher: Features, tolerance: float = 1e-6) -> dict[str, float | None]:
    """Mean scores of images, which are those of the batch."""
    of_images = fidelity_scores(stored(*student, "a/"), stored(*teacher), "a")
    assert all(values.shape == (6,) for values in of_images.values())
    found = {name: values.mean().item() for name, values in of_images.items()}
    whole = adaptor_fidelity(student, teacher)._asdict()
    expected = {name.replace("_", " "): value for name, value in whole.items() if value is not None}
    assert found == pytest.approx(expected, abs=tolerance)
    return found


def test_a_perfect_copy_scores_one_whatever_its_scale():
    teacher = pair(0)
    found = scores(Features(teacher.summary * 3, teacher.features * 0.5), teacher)
    assert (found["summary"], found["features"]) == pytest.approx((1.0, 1.0))
    assert list(scores(teacher, teacher).values()) == pytest.approx([1.0] * 4)
    assert scores(pair(1), teacher)["features"] < 0.5


def test_a_constant_scores_high_only_before_centering():
    summary, features = (each + 5 for each in pair(0))
    mean = features.mean(dim=(0, 2, 3))[None, :, None, None].expand_as(features)
    constant = Features(summary.mean(0).expand_as(summary), mean + 1e-3 * noise(*mean.shape, seed=1))
    found = scores(constant, Features(summary, features), tolerance=0.01)  # the centered constant is rounding
    assert found["features"] > 0.95
    assert abs(found["centered features"]) < 0.1


def test_a_teacher_without_summary_has_no_score_of_it():
    assert set(scores(pair(1), pair(0)._replace(summary=None))) == {"features", "centered features"}


def test_different_grids_are_resampled():
    teacher = pair(0)
    finer = teacher._replace(features=teacher.features.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert fidelity_scores(stored(*finer, "a/"), stored(*teacher), "a")["features"].mean() > 0.9
    assert adaptor_fidelity(finer, teacher).features > 0.9


def test_different_widths_are_refused():
    teacher = pair(0)
    narrow = teacher._replace(features=teacher.features[:, :7])
    with pytest.raises(ValueError, match=r"`adaptor` .* 8, got 7"):
        fidelity_scores(stored(*narrow, "a/"), stored(*teacher), "a")


@pytest.mark.parametrize(
    ("change", "correlation", "explained", "explained_back"),
    [
        (lambda features: features @ noise(8, 8, seed=1) + 3, 1, 1, 1),  # a change of basis
        (lambda features: features[:, :4], 1, 1, 0.5),  # a part
        (lambda features: noise(2000, 4, seed=1), 0, 0, 0),  # unrelated features
    ],
)
def test_linear_relations_are_found(change, correlation, explained, explained_back):
    features = noise(2000, 8)
    other = change(features)
    train, test = (features[:1000], other[:1000]), (features[1000:], other[1000:])
    assert canonical_correlation(train, test) == pytest.approx(correlation, abs=0.1)
    assert linear_fidelity(train, test) == pytest.approx(explained, abs=0.05)
    assert linear_fidelity(train[::-1], test[::-1]) == pytest.approx(explained_back, abs=0.05)


def test_the_fixed_pattern_is_the_share_of_the_variance():
    assert fixed_pattern_energy(noise(1, 4, 3, 5).expand(6, -1, -1, -1)) == pytest.approx(1)
    assert fixed_pattern_energy(noise(6, 4, 1, 1).expand(-1, -1, 3, 5)) == pytest.approx(0)
    # One channel; images are -3 and 3, positions -1 and 1: variances 9 and 1.
    images, positions = torch.tensor([-3.0, 3.0]), torch.tensor([-1.0, 1.0])
    features = (images[:, None] + positions).view(2, 1, 1, 2)
    assert fixed_pattern_energy(features) == pytest.approx(0.1)
    assert fixed_pattern_energy(5 * features + 1000) == pytest.approx(0.1)
    assert fixed_pattern_energy(noise(50, 16, 8, 8)) == pytest.approx(1 / 50, rel=0.1)


WORLD = noise(3, 4, 20, 20)


def seen_from(row: int, col: int) -> torch.Tensor:
    return WORLD[:, :, 5 + row : 11 + row, 5 + col : 13 + col]


@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (-1, 2), (2, -3), (-2, -1)])
def test_a_map_that_moves_with_its_image_has_no_shift_error(shift):
    assert shift_error(seen_from(0, 0), seen_from(*shift), shift) == 0


def test_shift_errors_by_hand():
    assert shift_error(seen_from(0, 0), seen_from(1, 2), (-1, -2)) > 1  # the other direction
    # One channel, rows of 0, 2, 0, 2, ...: shifted by one row each differs by 2 (squared 4) and the variance is 1.
    pattern = torch.tensor([0.0, 2.0]).repeat(3)[:5].view(1, 1, 5, 1).expand(1, 1, 5, 4)
    assert shift_error(pattern, pattern, (1, 0)) == pytest.approx(4)
    assert shift_error(pattern, pattern, (2, 0)) == 0
    assert shift_error(10 * pattern + 7, 10 * pattern + 7, (1, 0)) == pytest.approx(4)
    assert shift_error(*noise(2, 20, 16, 8, 8), (1, 1)) == pytest.approx(2, rel=0.05)


def test_maps_without_variance_or_overlap_are_refused():
    for function, arguments, name in [
        (fixed_pattern_energy, [torch.ones(2, 3, 4, 4)], "features"),
        (shift_error, [torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4), (1, 0)], "features"),
        (shift_error, [*noise(2, 2, 3, 4, 6), (-4, 0)], "shift"),
        (shift_error, [*noise(2, 2, 3, 4, 6), (0, 6)], "shift"),
    ]:
        with pytest.raises(ValueError, match=f"`{name}` must"):
            function(*arguments)


def test_consistency_of_one_map_and_of_many():
    one, other = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1)
    assert feature_consistency(one, one) == pytest.approx((1.0, 1.0))
    assert map_agreement(one[0], one[0], torch.zeros(4)).tolist() == pytest.approx([1.0, 1.0])
    for plain, centered in (  # a shared mean raises the plain cosine alone
        feature_consistency(one + 100, other + 100),
        map_agreement(one[0] + 100, other[0] + 100, torch.full((4,), 100.0)).tolist(),
    ):
        assert plain > 0.99
        assert abs(centered) < 0.5


def test_the_larger_map_is_resampled():
    coarse = noise(2, 4, 3, 3)
    fine = F.interpolate(coarse, scale_factor=2, mode="nearest")
    assert feature_consistency(coarse, fine) == pytest.approx((1.0, 1.0), abs=0.15)
    assert feature_consistency(coarse, fine.flip(2))[0] < 0.7
    assert map_agreement(coarse[0], fine[0], torch.zeros(4)).tolist() == pytest.approx([1.0, 1.0], abs=0.15)
    assert map_agreement(coarse[0], fine[0].flip(1), torch.zeros(4))[0] < 0.7


def test_positions_are_read_where_they_are_written():
    axis = torch.linspace(-1, 1, 6)
    positions = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    # On unit features a linear map sees directions: a constant beside the position keeps them apart.
    features = torch.cat([positions, torch.ones(1, 6, 6)])[None].expand(12, -1, -1, -1) + 0.01 * noise(12, 3, 6, 6)
    assert position_r2(features[:6], features[6:]) > 0.8
    assert abs(position_r2(*noise(12, 3, 6, 6).split(6))) < 0.1
