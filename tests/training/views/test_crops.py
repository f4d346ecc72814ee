import itertools
from collections import Counter

import pytest
import torch

from training.recipe import ViewsRecipe
from training.views.crops import (
    change_colors,
    cut_windows,
    draw_colors,
    draw_flips,
    draw_other_place,
    draw_other_shifts,
    draw_shifts,
    draw_window_offsets,
    flip,
    flip_shift,
)
from training.views.plan import Batch, Grid, Shape


def batch_of(num_images: int, window: Grid = Grid(4, 4)) -> Batch:  # noqa: B008
    return Batch(
        seed=0,
        step=0,
        partition="low",
        shapes=(Shape(Grid(4, 4), window),) * num_images,
        indices=tuple(range(num_images)),
        rows=tuple(range(num_images)),
        num_images=num_images,
        weight=1.0,
        teachers=(),
    )


def test_windows_by_hand() -> None:
    maps = torch.arange(2 * 3 * 5 * 5).view(2, 3, 5, 5)
    windows = cut_windows(maps, torch.tensor([[0, 2], [3, 1]]), Grid(2, 3))
    assert torch.equal(windows[0], maps[0, :, 0:2, 2:5])
    assert torch.equal(windows[1], maps[1, :, 3:5, 1:4])


def test_window_offsets_cover_every_place_evenly() -> None:
    offsets = draw_window_offsets(batch_of(4000, Grid(3, 4)), "offset", 5)
    counts = torch.bincount(offsets[:, 0] * 2 + offsets[:, 1], minlength=6)
    assert len(counts) == 6
    assert counts.min() > 4000 / 6 * 0.8


def test_shifts_are_whole_bounded_and_independent() -> None:
    views = ViewsRecipe(max_shift_patches=2, shift_deviation_patches=1.5)
    first, second = (draw_shifts(batch_of(500), label, views) for label in ("student", "teacher"))
    assert first.unique().tolist() == [-2, -1, 0, 1, 2]
    assert not torch.equal(first, second)


def test_flip_mirrors_the_chosen_images() -> None:
    maps = torch.randn(2, 1, 2, 3)
    flipped = flip(maps, torch.tensor([True, False]))
    assert torch.equal(flipped[0], maps[0].flip(-1))
    assert torch.equal(flipped[1], maps[1])


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 50)])
def test_flip_probability(probability: float, expected: int) -> None:
    assert draw_flips(batch_of(50), ViewsRecipe(flip_probability=probability)).sum() == expected


def test_colors_keep_the_range_and_change_each_image_differently() -> None:
    pixel_values = torch.full((3, 3, 4, 4), 0.5)
    changed = change_colors(pixel_values, *draw_colors(batch_of(3), ViewsRecipe(brightness=0.9, contrast=0.5)))
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(change_colors(pixel_values, *draw_colors(batch_of(3), ViewsRecipe())), pixel_values)


def test_another_shift_is_drawn_where_it_would_be_the_same() -> None:
    batch, views = batch_of(500), ViewsRecipe()
    taken, drawn = draw_shifts(batch, "student", views), draw_shifts(batch, "average", views)
    others = draw_other_shifts(batch, "average", views, taken)
    same = (drawn == taken).all(1)
    assert 100 < same.sum() < 400
    assert torch.equal(others[~same], drawn[~same])
    assert {tuple(step) for step in (others - taken)[same].tolist()} == {(-1, 0), (1, 0), (0, -1), (0, 1)}


def test_other_places_are_all_there_are_but_the_own_one() -> None:
    numbers = (torch.arange(1100) + 0.5) / 1100
    before, behind = torch.tensor([[1, 2]]).expand(1100, -1), torch.tensor([[2, 0]]).expand(1100, -1)
    places = Counter(map(tuple, draw_other_place(numbers, before, behind).tolist()))
    assert set(places) == set(itertools.product(range(-1, 3), range(-2, 1))) - {(0, 0)}
    assert set(places.values()) == {100}
    none = torch.zeros(1, 2, dtype=torch.long)
    assert draw_other_place(torch.tensor([0.9]), none, none).tolist() == [[0, 0]]


def test_columns_of_a_mirrored_shift_run_the_other_way() -> None:
    shift = flip_shift(torch.tensor([[1, 2], [3, -4]]), torch.tensor([False, True]))
    assert shift.tolist() == [[1, 2], [3, 4]]
