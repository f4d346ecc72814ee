import pytest
import torch

from training.recipe import ViewsRecipe
from training.views.batches import Batch
from training.views.crops import (
    crop_region,
    cut_windows,
    draw_flips,
    draw_shifts,
    draw_window_offsets,
    exact_shift,
    flip,
    flip_shift,
    jitter_color,
)


def batch_of(num_images: int) -> Batch:
    return Batch(
        seed=0,
        step=0,
        partition="low",
        size_px=64,
        window_px=64,
        indices=tuple(range(num_images)),
        start=0,
        global_size=num_images,
        weight=1.0,
        teachers=(),
    )


def test_windows_by_hand() -> None:
    maps = torch.arange(2 * 3 * 5 * 5).view(2, 3, 5, 5)
    windows = cut_windows(maps, torch.tensor([[0, 2], [3, 1]]), 2)
    assert torch.equal(windows[0], maps[0, :, 0:2, 2:4])
    assert torch.equal(windows[1], maps[1, :, 3:5, 1:3])


def test_window_offsets_cover_every_place_evenly() -> None:
    offsets = draw_window_offsets(batch_of(4000), "offset", 5, 3)
    counts = torch.bincount(offsets[:, 0] * 3 + offsets[:, 1], minlength=9)
    assert len(counts) == 9
    assert counts.min() > 4000 / 9 * 0.8


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


def test_jitter_keeps_the_range_and_changes_each_image_differently() -> None:
    pixel_values = torch.full((3, 3, 4, 4), 0.5)
    jittered = jitter_color(pixel_values, batch_of(3), ViewsRecipe(brightness=0.9, contrast=0.5))
    assert jittered.min() >= 0
    assert jittered.max() <= 1
    assert not torch.equal(jittered[0], jittered[1])
    assert jitter_color(pixel_values, batch_of(3), ViewsRecipe()) is pixel_values


def test_region_is_the_whole_image_at_scale_one() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    views = ViewsRecipe(crop_scale=[1.0, 1.0], crop_aspect=[1.0, 1.0])
    assert torch.equal(crop_region(image, torch.tensor([0.3, 0.3, 0.9, 0.1]), 32, views), image)


@pytest.mark.parametrize("numbers", [[0.0, 0.0, 0.0, 0.0], [0.99, 0.99, 0.99, 0.99], [0.0, 0.99, 0.5, 0.99]])
def test_region_of_any_image_has_the_wanted_size(numbers: list[float]) -> None:
    image = torch.randint(0, 256, (3, 20, 61), dtype=torch.uint8)
    view = crop_region(image, torch.tensor(numbers), 48, ViewsRecipe(crop_scale=[0.01, 1.0]))
    assert view.shape == (3, 48, 48)
    assert view.dtype == torch.uint8


@pytest.mark.parametrize(("window_cells", "window_tokens", "step"), [(6, 6, 1), (8, 6, 4), (4, 8, 1), (9, 6, 3)])
def test_exact_shift_is_whole_in_cells_and_tokens(window_cells: int, window_tokens: int, step: int) -> None:
    wanted = torch.tensor([[0, 5], [-7, 3], [12, -1]])
    shift = exact_shift(wanted, window_cells, window_tokens)
    assert torch.equal(shift.in_cells * window_tokens, shift.in_tokens * window_cells)
    assert (shift.in_cells.abs() <= wanted.abs()).all()
    assert ((shift.in_cells - wanted).abs() < step).all()


def test_columns_of_a_mirrored_shift_run_the_other_way() -> None:
    shift = flip_shift(torch.tensor([[1, 2], [3, -4]]), torch.tensor([False, True]))
    assert shift.tolist() == [[1, 2], [3, 4]]
