import itertools

import numpy as np
import pytest
import torch

from training.recipe import RecipeError, ViewsRecipe
from training.views.moving.motions import from_square, is_still, move_crop, way_between


VIEWS = ViewsRecipe(max_rotation_degrees=30, max_zoom=1.5, max_perspective=0.1)
STILL = (0.5,) * 10
BOX = (40.0, 60.0, 100.0, 120.0)
"""Top, left, height, width."""


def at(matrix: np.ndarray, x: float, y: float) -> np.ndarray:
    place = matrix @ (x, y, 1)
    return place[:2] / place[2]


def test_no_motion_leaves_the_crop_where_it_is() -> None:
    corners = move_crop(BOX, (300, 300), STILL, VIEWS)
    np.testing.assert_allclose(corners, [[60, 40], [180, 40], [180, 140], [60, 140]], atol=1e-9)
    assert is_still(STILL, VIEWS)
    assert not is_still((0.6, *STILL[1:]), VIEWS)
    assert is_still((0.6, *STILL[1:]), ViewsRecipe(max_zoom=2))
    assert not is_still((0.5, 0.5, 0.1, *STILL[3:]), ViewsRecipe(max_perspective=0.1))


@pytest.mark.parametrize(
    ("numbers", "angle", "zoom"),
    [((1.0, 0.5), 30, 1), ((0.0, 0.5), -30, 1), ((0.5, 1.0), 0, 1.5), ((0.5, 0.0), 0, 1 / 1.5)],
)
def test_turns_and_zooms_are_as_large_as_the_recipe_says(numbers: tuple, angle: float, zoom: float) -> None:
    corners = move_crop(BOX, (1000, 1000), (*numbers, *STILL[2:]), VIEWS)
    across = corners[1] - corners[0]
    assert np.degrees(np.arctan2(across[1], across[0])) == pytest.approx(angle)
    assert np.linalg.norm(across) == pytest.approx(120 * zoom)
    assert corners.mean(0) == pytest.approx([120, 90])


def test_what_would_leave_the_image_is_made_smaller_about_its_middle() -> None:
    draw = np.random.default_rng(0)
    smaller = 0
    for numbers in draw.random((200, 10)):
        corners = move_crop(BOX, (160, 200), tuple(numbers), VIEWS)
        whole = move_crop((1040, 1060, 100, 120), (5000, 5000), tuple(numbers), VIEWS) - 1000
        assert (corners >= -1e-9).all()
        assert (corners <= np.array([200, 160]) + 1e-9).all()
        middle = np.array([120, 90])
        ratios = (corners - middle) / (whole - middle)
        np.testing.assert_allclose(ratios, ratios[0, 0], rtol=1e-6)
        smaller += ratios[0, 0] < 0.999
    assert 0 < smaller < 200


def test_the_whole_image_can_be_turned() -> None:
    corners = move_crop((0, 0, 100, 100), (100, 100), (1.0, *STILL[1:]), VIEWS)
    assert np.linalg.norm(corners[1] - corners[0]) == pytest.approx(100 / (np.sin(np.pi / 6) + np.cos(np.pi / 6)))


def test_homographies_hit_their_corners() -> None:
    for numbers in np.random.default_rng(1).random((20, 10)):
        corners = move_crop(BOX, (300, 300), tuple(numbers), VIEWS)
        matrix = from_square(corners)
        for (x, y), corner in zip([(0, 0), (1, 0), (1, 1), (0, 1)], corners, strict=True):
            np.testing.assert_allclose(at(matrix, x, y), corner, atol=1e-9)
    with pytest.raises(ValueError, match="`corners` must be those of a quadrangle"):
        from_square(np.array([[0.0, 0], [0, 0], [0, 0], [0, 0]]))


def test_the_way_between_two_crops_leads_through_the_image() -> None:
    first, second = (
        from_square(move_crop(BOX, (400, 400), tuple(each), VIEWS)) for each in np.random.default_rng(2).random((2, 10))
    )
    (way,) = way_between(torch.from_numpy(first)[None], torch.from_numpy(second)[None]).numpy()
    for x, y in itertools.product((0.1, 0.8), (0.3, 0.9)):
        np.testing.assert_allclose(at(first, *at(way, x, y)), at(second, x, y), atol=1e-9)
    shifts = torch.tensor([[1, 2]]), torch.tensor([[3, -1]])
    assert way_between(*shifts).tolist() == [[2, -3]]


@pytest.mark.parametrize("setting", [{"max_rotation_degrees": 5}, {"max_zoom": 1.1}, {"max_perspective": 0.1}])
def test_cached_views_have_no_motions(setting: dict) -> None:
    assert ViewsRecipe(**setting).has_motions
    with pytest.raises(RecipeError, match="must be 0, 1 and 0 with cached teachers"):
        ViewsRecipe(teachers="cached", **setting)
