"""Crops for each consumer, and their random numbers."""

import itertools
from collections import Counter

import pytest
import torch
from small_recipes import small_recipe
from torchvision.transforms.v2 import functional as tvF

from modeling_radio.training.recipes.recipe import RecipeError, ViewsRecipe
from modeling_radio.training.views.crops import (
    STUDENT,
    ComparedMaps,
    Crops,
    CropsBatch,
    CropSpec,
    align_crops,
    change_colors,
    check_other_windows,
    choose_region,
    cut_crops,
    cut_windows,
    draw_colors,
    draw_flips,
    draw_other_position,
    draw_other_shifts,
    draw_shifts,
    draw_window_offsets,
    flip,
    flip_shift,
    least_scale,
)
from modeling_radio.training.views.packed_tensors import PackedTensors
from modeling_radio.training.views.plan import PlannedBatch
from modeling_radio.training.views.shapes import Grid, ImageShape


PATCH = 16
SQUARE = ViewsRecipe(crop_aspect=(1.0, 1.0))


def sight_of(numbers, grid: Grid, scales=(0.25, 1.0), is_flipped: bool = False, **consumers) -> CropSpec:
    """Viewers are given as their shift and their sizes."""
    shifts = {name: shift for name, (shift, _) in consumers.items()}
    return CropSpec(
        tuple(numbers), scales, grid, is_flipped, shifts, {name: sizes for name, (_, sizes) in consumers.items()}
    )


@pytest.mark.parametrize("is_flipped", [False, True])
def test_every_input_is_a_direct_resize_of_its_region(is_flipped: bool) -> None:
    """All sizes show the same area, whatever the student's resolution, and crops of consumers differ by their shift."""
    image = torch.randint(0, 256, (3, 200, 200), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # A region of 100 x 100 pixels at (40, 60), of 10 x 10 patches, and a crop one patch lower, two to the left.
    consumers = {"teacher": ((1, -2), ((32, 32), (1152, 1152))), "student": ((0, 0), ((224, 224),))}
    spec = sight_of([0.0, 0.0, 0.4, 0.6], Grid(10, 10), (0.25, 0.25), is_flipped, **consumers)
    crops = cut_crops(image, spec, SQUARE).pixels
    shown = tvF.horizontal_flip(image) if is_flipped else image
    for crop, pixels in ((shown[:, 50:150, 40:140], crops["teacher"]), (shown[:, 40:140, 60:160], crops["student"])):
        for found in pixels:
            side = found.shape[1]
            expected = tvF.resize(crop, [side, side], tvF.InterpolationMode.BICUBIC, antialias=True)
            inner = slice(side // 10, -(side // 10))  # the border is made of pixels beside the crop, too
            difference = (found[:, inner, inner].int() - expected[:, inner, inner].int()).abs()
            assert difference.max() <= 2  # rows and columns are rounded one after the other
            assert difference.float().mean() < 0.5


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("scale", [0.25, 1.0, 1.5])
def test_pixels_beside_the_image_are_black_and_the_extent_says_where(scale: float, is_flipped: bool) -> None:
    """No shift is shortened, and a region may be larger than the image."""
    image = torch.full((3, 200, 200), 255, dtype=torch.uint8)
    consumers = {f"{row}, {col}": ((row, col), ((64, 64),)) for row in (-2, 0, 1) for col in (0, 2)}
    for place in (0.0, 0.3, 1.0):
        spec = sight_of([0.0, 0.5, place, 1 - place], Grid(8, 8), (scale, scale), is_flipped, **consumers)
        crops = cut_crops(image, spec, SQUARE)
        for consumer, (shift, _) in consumers.items():
            begin, stop = (crops.extent - torch.tensor(shift)[:, None]).unbind(1)
            cells = crops.pixels[consumer][0][0].float().unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3))  # of 8 x 8 pixels
            inside = [(torch.arange(8) >= begin[axis]) & (torch.arange(8) < stop[axis]) for axis in range(2)]
            # The kernel blends the image's edge with what is beside it.
            assert torch.equal(cells > 250, inside[0][:, None] & inside[1])
    if scale == 1.0:
        assert crops.extent.tolist() == [[0, 8], [0, 8]]


@pytest.mark.parametrize("grid", [Grid(6, 9), Grid(9, 6), Grid(4, 4)])
@pytest.mark.parametrize("size", [(240, 200), (90, 400), (400, 90)])
def test_a_region_of_any_aspect_ratio_is_not_distorted(grid: Grid, size: tuple[int, int]) -> None:
    for scale in (0.0, 0.5, 1.0):
        spec = sight_of([scale, 0.5, 0.7, 0.3], grid, (0.2, 1.0))
        region = choose_region(size, spec, ViewsRecipe(is_square=False))
        assert region.width / region.height == pytest.approx(grid.cols / grid.rows)
        assert 0 <= region.top <= region.top + region.height <= size[0] + 1e-9
        assert 0 <= region.left <= region.left + region.width <= size[1] + 1e-9
        largest = min(size[0] * grid.cols / grid.rows, size[1])
        assert region.width == pytest.approx(largest * (0.2 + 0.8 * scale) ** 0.5)


@pytest.mark.parametrize("size", [(240, 200), (33, 2000), (2000, 33)])
def test_squares_show_aspect_ratios_within_the_bounds(size: tuple[int, int]) -> None:
    for scale, aspect in itertools.product((0.0, 1.0), (0.0, 1.0)):
        spec = sight_of([scale, aspect, 0.5, 0.5], Grid(4, 4))
        region = choose_region(size, spec, ViewsRecipe(crop_aspect=(0.5, 2.0)))
        assert region.width / region.height == pytest.approx((0.5, 2.0)[int(aspect)])
        assert max(region.height / size[0], region.width / size[1]) <= 1
        assert region.height * region.width >= 0.25 * 0.5 * min(size) ** 2


def test_a_mirrored_image_is_the_image_of_the_mirror() -> None:
    consumers = {STUDENT: ((0, 0), ((64, 64),)), "teacher": ((1, 1), ((48, 48),))}
    spec = sight_of([0.5, 0.2, 0.9, 0.3], Grid(4, 4), (0.3, 0.3), **consumers)
    rows, cols = torch.meshgrid(torch.linspace(0, 255, 240), torch.linspace(0, 255, 200), indexing="ij")
    ramps = torch.stack([rows, cols, rows]).to(torch.uint8)
    plain = cut_crops(ramps.flip(-1), spec, ViewsRecipe())
    mirrored = cut_crops(ramps, spec._replace(is_flipped=True), ViewsRecipe())
    assert torch.equal(mirrored.extent, plain.extent)
    for consumer in consumers:
        assert (mirrored.pixels[consumer][0].int() - plain.pixels[consumer][0].int()).abs().max() <= 1


def test_a_batch_travels_as_two_tensors_and_is_split_into_its_groups() -> None:
    grids = [Grid(2, 2), Grid(2, 2), Grid(2, 3), Grid(2, 2)]
    crops = [
        Crops(
            grid,
            {"a": (torch.full((3, 2, 4), number),), "b": (torch.full((3, 1, 1), 10 + number), torch.ones(3, 5, 2))},
            torch.tensor([[-number, 9], [-9, 9 - number]]),
        )
        for number, grid in enumerate(grids)
    ]
    specs = [
        sight_of([0] * 4, grid, **{STUDENT: ((0, 1), ()), "a": ((number, 1), ())})._replace(
            maps={"a": ComparedMaps((4, 2 * grid.cols), (grid,))}
        )
        for number, grid in enumerate(grids)
    ]
    batch = CropsBatch.of(crops, specs)
    assert [type(each) for each in batch[:2]] == [torch.Tensor, PackedTensors]
    groups = batch.split(torch.device("cpu"))
    assert groups[0].pixels["a"][0].shape == (2, 3, 2, 4)
    for group, part in zip(groups, (slice(0, 2), slice(2, 3), slice(3, 4)), strict=True):
        for consumer, place in (("a", 0), ("b", 0), ("b", 1)):
            expected = torch.stack([each.pixels[consumer][place] for each in crops[part]])
            assert torch.equal(group.pixels[consumer][place], expected)
        found, expected = group.alignments["a"], align_crops(crops[part], specs[part])["a"]
        assert torch.equal(found.shown, expected.shown)
        (own,), (wanted,) = found.overlaps.values(), expected.overlaps.values()
        assert torch.equal(own.valid, wanted.valid)
        assert torch.equal(own.tokens, wanted.tokens)


@pytest.mark.parametrize("size", [(3000, 4000), (4000, 1000)])
@pytest.mark.parametrize("numbers", [[0.0, 0.5, 0.1, 0.9], [1.0, 0.0, 0.5, 0.5], [0.3, 1.0, 0.0, 0.0]])
def test_a_draft_keeps_every_crop_twice_as_large_as_it_is_needed(size: tuple[int, int], numbers: list[float]) -> None:
    views = ViewsRecipe(crop_aspect=(0.5, 2.0))
    consumers = {"student": ((0, 0), ((128, 128),)), "teacher": ((1, 0), ((64, 64), (224, 224)))}
    spec = sight_of(numbers, Grid(8, 8), (0.1, 1.0), **consumers)
    scale, region = least_scale(size, spec, views), choose_region(size, spec, views)
    reduced = choose_region((round(size[0] * scale), round(size[1] * scale)), spec, views)
    assert min(reduced.height, reduced.width) == pytest.approx(2 * 224, rel=0.01)
    assert reduced.top / reduced.height == pytest.approx(region.top / region.height, abs=0.02)


def batch_of(num_images: int, window: Grid = Grid(4, 4)) -> PlannedBatch:  # noqa: B008
    rows, shapes = tuple(range(num_images)), (ImageShape(Grid(4, 4), window),) * num_images
    return PlannedBatch(0, 0, "low", shapes, rows, rows, num_images, weight=1.0, teachers=())


def test_windows_by_hand() -> None:
    maps = torch.arange(2 * 3 * 5 * 5).view(2, 3, 5, 5)
    windows = cut_windows(maps, torch.tensor([[0, 2], [3, 1]]), Grid(2, 3))
    assert torch.equal(windows, torch.stack([maps[0, :, 0:2, 2:5], maps[1, :, 3:5, 1:4]]))
    assert cut_windows(maps, torch.zeros(2, 2), Grid(5, 5)) is maps


def test_window_offsets_cover_every_place_evenly() -> None:
    offsets = draw_window_offsets(batch_of(4000, Grid(3, 4)), "offset", 5)
    counts = torch.bincount(offsets[:, 0] * 2 + offsets[:, 1], minlength=6)
    assert len(counts) == 6
    assert counts.min() > 4000 / 6 * 0.8


@pytest.mark.usefixtures("far_shifts")
def test_shifts_are_whole_bounded_and_independent_and_others_differ_by_a_patch() -> None:
    views, batch = ViewsRecipe(max_shift_patches=2), batch_of(500)
    taken, drawn = draw_shifts(batch, "student", views), draw_shifts(batch, "average", views)
    assert taken.unique().tolist() == [-2, -1, 0, 1, 2]
    same = (drawn == taken).all(1)
    assert 10 < same.sum() < 400
    others = draw_other_shifts(batch, "average", views, taken)
    assert torch.equal(others[~same], drawn[~same])
    assert {tuple(step) for step in (others - taken)[same].tolist()} == {(-1, 0), (1, 0), (0, -1), (0, 1)}


def test_other_places_are_all_there_are_but_the_own_one() -> None:
    numbers = (torch.arange(1100) + 0.5) / 1100
    before, behind = torch.tensor([[1, 2]]).expand(1100, -1), torch.tensor([[2, 0]]).expand(1100, -1)
    places = Counter(map(tuple, draw_other_position(numbers, before, behind).tolist()))
    assert set(places) == set(itertools.product(range(-1, 3), range(-2, 1))) - {(0, 0)}
    assert set(places.values()) == {100}
    none = torch.zeros(1, 2, dtype=torch.long)
    assert draw_other_position(torch.tensor([0.9]), none, none).tolist() == [[0, 0]]


def test_flips_mirror_the_chosen_images_and_their_shifts() -> None:
    assert [draw_flips(batch_of(50), ViewsRecipe(flip_probability=share)).sum() for share in (0, 1)] == [0, 50]
    maps, is_flipped = torch.randn(2, 1, 2, 3), torch.tensor([False, True])
    assert torch.equal(flip(maps, is_flipped), torch.stack([maps[0], maps[1].flip(-1)]))
    assert flip_shift(torch.tensor([[1, 2], [3, -4]]), is_flipped).tolist() == [[1, 2], [3, 4]]


def test_colors_keep_the_range_and_change_each_image_differently() -> None:
    pixel_values = torch.full((3, 3, 4, 4), 0.5)
    changed = change_colors(pixel_values, *draw_colors(batch_of(3), ViewsRecipe(brightness=0.9, contrast=0.5)))
    assert 0 <= changed.min() <= changed.max() <= 1
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(change_colors(pixel_values, *draw_colors(batch_of(3), ViewsRecipe())), pixel_values)


@pytest.mark.parametrize(("side_px", "size_px", "is_refused"), [(96, 80, False), (80, 80, True), (96, 40, True)])
def test_the_average_needs_another_window_of_cached_images(side_px: int, size_px: int, is_refused: bool) -> None:
    partition = {"name": "low", "sizes_px": [size_px], "windows_px": [80], "batch_size": 1}
    recipe = small_recipe(
        data={"source": "s", "image_size_px": side_px},
        views={"teachers": "cached"},
        mesa={"weight": 0.5},
        partitions=[partition],
    )
    if not is_refused:
        check_other_windows(recipe, recipe.partitions[0], PATCH)
        return
    with pytest.raises(RecipeError, match=r"`data\.image_size_px`"):
        check_other_windows(recipe, recipe.partitions[0], PATCH)
    check_other_windows(recipe.replace(mesa={"weight": 0}), recipe.partitions[0], PATCH)
