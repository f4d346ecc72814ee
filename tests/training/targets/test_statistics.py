import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.training.recipes.recipe import RecipeError, StandardizationRecipe
from modeling_radio.training.targets.examples import Target
from modeling_radio.training.targets.statistics import MIN_DISPERSION, SummaryDispersion, TeacherStatistics


def cone(angle: float, num_vectors: int = 4000) -> Tensor:
    """Vectors at one angle to the first axis, of random lengths."""
    around = F.normalize(torch.randn(num_vectors, 7), dim=-1)
    vectors = torch.cat([torch.full((num_vectors, 1), math.cos(angle)), math.sin(angle) * around], dim=1)
    return vectors * (0.5 + torch.rand(num_vectors, 1))


@pytest.mark.parametrize("angle", [0.2, 0.8, 1.4])
def test_dispersion_of_a_cone_is_its_squared_angle_whatever_the_lengths(angle: float) -> None:
    dispersion, large = SummaryDispersion(8), SummaryDispersion(8)
    for part in cone(angle).chunk(4):
        dispersion.update(part)
        large.update(1024 * part)
    assert dispersion.value.item() == pytest.approx(angle**2, rel=0.05)
    assert dispersion.total[0] > 0.9 * dispersion.total.norm()
    torch.testing.assert_close(large.value, dispersion.value)
    dispersion.update(torch.full((2, 8), float("inf")))  # a non-finite batch is left out
    torch.testing.assert_close(large.value, dispersion.value)


def test_identical_summaries_have_a_floor() -> None:
    dispersion = SummaryDispersion(8)
    assert dispersion.value == MIN_DISPERSION
    dispersion.update(torch.ones(4, 8))
    assert MIN_DISPERSION <= dispersion.value < 1e-5


TEACHERS = {"a": SimpleNamespace(summary_dim=4, feature_dim=6), "b": SimpleNamespace(summary_dim=None, feature_dim=5)}


def targets() -> dict[str, Target]:
    return {
        "a": Target(torch.randn(4, 4), [torch.randn(4, 6, 3, 3)], []),
        "b": Target(None, [torch.randn(4, 5, 3, 3)], []),
    }


def calibrated(**settings) -> TeacherStatistics:
    statistics = TeacherStatistics(StandardizationRecipe(**settings), TEACHERS)
    statistics.update(targets())
    statistics.end_step()
    statistics.refit()
    return statistics


def test_parts_of_a_step_count_as_the_whole() -> None:
    of_a, of_b = targets().values()
    summary, (a,), (b,) = of_a.summary, of_a.features, of_b.features
    one, two = (TeacherStatistics(StandardizationRecipe(), TEACHERS) for _ in range(2))
    for statistics, parts in ((one, [slice(0, 4)]), (two, [slice(0, 1), slice(1, 4)])):
        for rows in parts:
            statistics.update({"a": Target(summary[rows], [a[rows]], []), "b": Target(None, [b[rows]], [])})
        statistics.end_step()
        statistics.refit()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[key], value)


def test_targets_of_a_step_follow_the_statistics_before_it() -> None:
    statistics, ones = calibrated(), torch.ones(4, 6, 3, 3)
    statistics.begin_step(5)
    before = statistics.standardize("a", ones), statistics.dispersion("a").value.clone()
    statistics.update(targets())
    assert torch.equal(statistics.standardize("a", ones), before[0])
    assert torch.equal(statistics.dispersion("a").value, before[1])
    statistics.end_step()
    assert not torch.equal(statistics.dispersion("a").value, before[1])


def test_maps_are_refitted_at_powers_of_two_then_periodically_until_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_radio.training.targets.statistics.REFIT_EVERY_STEPS", 10)
    statistics = calibrated(estimation_steps=23)
    refitted = []
    for step in range(40):
        before = statistics.standardizers()["b"].matrix.clone()
        changes = statistics.begin_step(step)
        if not torch.equal(before, statistics.standardizers()["b"].matrix):
            refitted.append(step)
        assert changes.keys() == (TEACHERS.keys() if refitted[-1:] == [step] else set())
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


def test_bad_methods_and_teachers_are_named() -> None:
    with pytest.raises(RecipeError, match="`method`"):
        StandardizationRecipe(method="phis")
    statistics = TeacherStatistics(StandardizationRecipe(), TEACHERS)
    statistics.update({"a": targets()["a"], "b": Target(None, [torch.full((4, 5, 3, 3), torch.nan)], [])})
    statistics.end_step()
    with pytest.raises(RecipeError, match="teacher 'b'"):
        statistics.refit()
