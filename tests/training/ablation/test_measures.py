import pytest

from training.ablation.measures import EXPLANATIONS, check_measure, is_higher_better
from training.recipe import RecipeError


def test_measures_are_known_by_teacher() -> None:
    for name in ("dense_error/a", "dense_error/worst", "summary_error/worst", "fixed_pattern", "consistency", "knn"):
        check_measure(name, ["a"])
    with pytest.raises(RecipeError, match="`primary` must be one of"):
        check_measure("dense_error/b", ["a"])


def test_their_direction_is_the_one_that_is_explained() -> None:
    for name, text in EXPLANATIONS.items():
        assert text.endswith("Higher is better." if is_higher_better(name) else "Lower is better.")
