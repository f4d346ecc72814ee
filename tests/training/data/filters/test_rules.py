import pytest

from training.data.filters.facts import ImageFacts
from training.data.filters.rules import choose_images, fault_of
from training.recipe_sections.filters import FiltersRecipe


@pytest.mark.parametrize(
    ("filters", "facts", "fault"),
    [
        ({}, None, "unusable"),
        ({}, ImageFacts(1, 1000), None),
        ({"min_side_ratio": 1}, ImageFacts(224, 900), None),
        ({"min_side_ratio": 1}, ImageFacts(900, 223), "too small"),
        ({"min_side_ratio": 0.5}, ImageFacts(112, 112), None),
        ({"min_side_ratio": 1.5}, ImageFacts(335, 400), "too small"),
        ({"max_aspect": 3}, ImageFacts(100, 300), None),
        ({"max_aspect": 3}, ImageFacts(301, 100), "too narrow"),
        ({"min_deviation": 2}, ImageFacts(224, 224, 2.0), None),
        ({"min_deviation": 2}, ImageFacts(224, 224, 1.9), "of one color"),
    ],
)
def test_an_image_by_itself(filters: dict, facts: ImageFacts | None, fault: str | None) -> None:
    assert fault_of(facts, FiltersRecipe(**filters), 224) == fault


def test_of_near_duplicates_the_largest_usable_one_stays() -> None:
    facts = [
        ImageFacts(100, 100, 50, 0b1),
        ImageFacts(200, 100, 50, 0b1),
        ImageFacts(900, 100, 50, 0b1),  # the largest, but too narrow
        ImageFacts(200, 100, 50, 0b0),  # as large as number 1, and later
        None,
        ImageFacts(50, 50, 50, -1),
    ]
    filters = FiltersRecipe(max_distance=1, max_aspect=4)
    numbers, counts = choose_images(facts, filters, 224)
    assert numbers == [1, 5]
    assert counts == {"too narrow": 1, "near duplicate": 2, "unusable": 1}
    assert choose_images(facts, FiltersRecipe(max_aspect=4), 224)[0] == [0, 1, 3, 5]


def test_filters_say_whether_they_are_used_and_look_at_pixels() -> None:
    assert not FiltersRecipe().is_used
    assert FiltersRecipe(max_distance=0).is_used
    settings = ({"max_aspect": 2}, {"min_side_ratio": 1}, {"max_distance": 0}, {"min_deviation": 1})
    assert [FiltersRecipe(**each).needs_pixels for each in settings] == [False, False, True, True]
