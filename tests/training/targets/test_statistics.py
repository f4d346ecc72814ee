from types import SimpleNamespace

import pytest
import torch

from training.recipe import RecipeError, StandardizationRecipe
from training.targets.examples import Target
from training.targets.statistics import TeacherStatistics


TEACHERS = {
    "a": SimpleNamespace(summary_dim=4, feature_dim=6),
    "b": SimpleNamespace(summary_dim=None, feature_dim=5),
}


def targets(num_images: int = 4) -> dict[str, Target]:
    return {
        "a": Target(torch.randn(num_images, 4), [torch.randn(num_images, 6, 3, 3)], None),
        "b": Target(None, [torch.randn(num_images, 5, 3, 3)], None),
    }


def part_of(whole: dict[str, Target], rows: slice) -> dict[str, Target]:
    return {
        name: Target(None if t.summary is None else t.summary[rows], [features[rows] for features in t.features], None)
        for name, t in whole.items()
    }


def calibrated(**settings) -> TeacherStatistics:
    statistics = TeacherStatistics(StandardizationRecipe(**settings), TEACHERS)
    statistics.update(targets())
    statistics.end_step()
    statistics.refit()
    return statistics


def test_parts_of_a_step_count_as_the_whole() -> None:
    whole = targets()
    one, two = (TeacherStatistics(StandardizationRecipe(), TEACHERS) for _ in range(2))
    one.update(whole)
    for rows in (slice(0, 1), slice(1, 4)):
        two.update(part_of(whole, rows))
    for statistics in (one, two):
        statistics.end_step()
        statistics.refit()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[key], value)


def test_targets_of_a_step_follow_what_was_known_before_it() -> None:
    statistics = calibrated()
    statistics.begin_step(5)
    before = statistics.standardize("a", targets()["a"].features[0] * 0 + 1), statistics.dispersion("a").value.clone()
    statistics.update(targets())
    assert torch.equal(statistics.standardize("a", torch.ones(4, 6, 3, 3)), before[0])
    assert torch.equal(statistics.dispersion("a").value, before[1])
    statistics.end_step()
    assert not torch.equal(statistics.dispersion("a").value, before[1])


def test_maps_are_refitted_at_powers_of_two_then_periodically_until_frozen() -> None:
    statistics = calibrated(estimation_steps=23, refit_every_steps=10)
    refitted = []
    for step in range(40):
        before = statistics.standardizers()["b"].matrix.clone()
        statistics.begin_step(step)
        if not torch.equal(before, statistics.standardizers()["b"].matrix):
            refitted.append(step)
        statistics.update(targets())
        statistics.end_step()
    assert refitted == [1, 2, 4, 8, 10, 20, 23]


def test_estimation_may_be_over_before_the_first_step() -> None:
    statistics = calibrated(estimation_steps=0)
    statistics.begin_step(0)
    before = {key: value.clone() for key, value in statistics.state_dict().items()}
    statistics.update(targets())
    statistics.end_step()
    assert all(torch.equal(value, before[key]) for key, value in statistics.state_dict().items())


def test_scalars_name_the_teachers() -> None:
    assert calibrated().scalars().keys() == {"phi_s_scale/a", "phi_s_scale/b", "dispersion/a"}
    assert calibrated(method="global").scalars().keys() == {"dispersion/a"}


def test_unknown_method_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"`method` must be one of .*Did you mean 'phi_s'"):
        TeacherStatistics(StandardizationRecipe(method="phis"), TEACHERS)


def test_a_teacher_without_a_finite_answer_is_named() -> None:
    statistics = TeacherStatistics(StandardizationRecipe(), TEACHERS)
    statistics.update({"a": targets()["a"], "b": Target(None, [torch.full((4, 5, 3, 3), torch.nan)], None)})
    statistics.end_step()
    with pytest.raises(RecipeError, match="teacher 'b'"):
        statistics.refit()
