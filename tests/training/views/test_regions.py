"""What each viewer sees, measured on images whose colors say where they are."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from training.recipe import ViewsRecipe
from training.views.crops import STUDENT, Seen, SeenBatch, Sight, choose_region, least_scale, look
from training.views.plan import Grid


HEIGHT, WIDTH = 240, 200
PATCH = 16
SIZES = [(32, 32), (128, 128), (384, 384), (1152, 1152), (224, 224)]


def ramps(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Red grows with the row, green with the column: from 0 to 255 over the image."""
    red = torch.linspace(0, 255, height)[:, None].expand(-1, width)
    green = torch.linspace(0, 255, width).expand(height, -1)
    return torch.stack([red, green, torch.zeros_like(red)]).round().to(torch.uint8)


def sight_of(
    numbers: list[float], grid: Grid, scales: tuple[float, float] = (0.25, 1.0), is_flipped: bool = False, **viewers
) -> Sight:
    """Viewers are given as their shift and their sizes."""
    shifts = {name: shift for name, (shift, _) in viewers.items()}
    return Sight(
        (numbers[0], numbers[1], numbers[2], numbers[3]),
        scales,
        grid,
        is_flipped,
        shifts,
        {name: sizes for name, (_, sizes) in viewers.items()},
    )


def seen_share(pixels: Tensor) -> tuple[float, float]:
    """Return the share of the source's height and width that an image of ramps shows."""
    rows, cols = pixels[0].float().mean(1), pixels[1].float().mean(0)
    spans = [(abs(each[-1] - each[0]) / (len(each) - 1) * len(each) / 255).item() for each in (rows, cols)]
    return spans[0], spans[1]


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("student_px", [128, 432, 1152])
def test_field_of_view_is_the_same_for_every_size(scale: float, student_px: int) -> None:
    """The share of the source is drawn, whatever the student's resolution and whatever size a viewer takes in."""
    views = ViewsRecipe(crop_aspect=(1.0, 1.0))
    cells = student_px // PATCH
    viewers = {f"v{size[0]}": ((0, 0), (size,)) for size in SIZES}
    student = ((0, 0), ((student_px, student_px),))
    seen = look(ramps(), sight_of([scale, 0.5, 0.5, 0.5], Grid(cells, cells), student=student, **viewers), views)
    side = WIDTH * (0.25 + 0.75 * scale) ** 0.5
    expected = side / HEIGHT, side / WIDTH
    for pixels in seen.pixels.values():
        assert seen_share(pixels[0]) == pytest.approx(expected, abs=1 / cells)
    shares = [seen_share(pixels[0]) for pixels in seen.pixels.values()]
    assert max(share[0] for share in shares) - min(share[0] for share in shares) < 0.02


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_flipped", [False, True])
def test_input_is_a_direct_resize_of_its_region(size: tuple[int, int], is_flipped: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 200, 200), dtype=torch.uint8, generator=generator)
    views = ViewsRecipe(crop_aspect=(1.0, 1.0))
    # A region of 100 x 100 pixels at (40, 60), of 10 x 10 cells, and a crop one cell lower, two to the left.
    sight = sight_of([0.0, 0.0, 0.4, 0.6], Grid(10, 10), (0.25, 0.25), is_flipped, teacher=((1, -2), (size,)))
    seen = look(image, sight, views)
    shown = tvF.horizontal_flip(image) if is_flipped else image
    bicubic = tvF.InterpolationMode.BICUBIC
    crop = shown[:, 50:150, 40:140]
    expected = tvF.resize(crop, list(size), bicubic, antialias=True)
    inner = slice(size[0] // 10, -(size[0] // 10))  # the border is made of pixels beside the crop, too
    difference = (seen.pixels["teacher"][0][:, inner, inner].int() - expected[:, inner, inner].int()).abs()
    assert difference.max() <= 2  # rows and columns are rounded one after the other
    assert difference.float().mean() < 0.5


def test_crops_that_overlap_agree_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)
    size = ((7 * PATCH, 5 * PATCH),)
    viewers = {"one": ((0, 1), size), "other": ((-2, 0), size)}
    views = ViewsRecipe(is_square=False)
    seen = look(image, sight_of([0.5, 0.5, 0.5, 0.5], Grid(7, 5), (0.3, 0.3), **viewers), views)
    one, other = (seen.pixels[name][0].int() for name in viewers)
    # "other" lies two rows above and one column to the left.
    difference = (one[:, : -2 * PATCH, :-PATCH] - other[:, 2 * PATCH :, PATCH:]).abs()
    assert difference.max() <= 2
    assert (one[:, : -2 * PATCH] - other[:, 2 * PATCH :]).abs().float().mean() > 5


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("scale", [0.25, 1.0, 1.5])
def test_what_lies_beside_the_image_is_black_and_the_extent_says_where(scale: float, is_flipped: bool) -> None:
    """No shift is shortened, and a region may be larger than the image."""
    image = torch.full((3, 200, 200), 255, dtype=torch.uint8)
    viewers = {f"{row}, {col}": ((row, col), ((64, 64),)) for row in (-2, 0, 1) for col in (0, 2)}
    for place in (0.0, 0.3, 1.0):
        sight = sight_of([0.0, 0.5, place, 1 - place], Grid(8, 8), (scale, scale), is_flipped, **viewers)
        seen = look(image, sight, ViewsRecipe(crop_aspect=(1.0, 1.0)))
        for viewer, (shift, _) in viewers.items():
            begin, stop = (seen.extent - torch.tensor(shift)[:, None]).unbind(1)
            cells = seen.pixels[viewer][0][0].float().unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3))  # of 8 x 8 pixels
            whole = cells > 250  # the kernel blends the image's edge with what is beside it
            rows, cols = (torch.arange(8) for _ in range(2))
            inside = [(at >= begin[axis]) & (at < stop[axis]) for axis, at in enumerate((rows, cols))]
            assert torch.equal(whole, inside[0][:, None] & inside[1])
    if scale == 1.0:
        assert seen.extent.tolist() == [[0, 8], [0, 8]]


def test_shifts_that_stay_within_the_image_pad_nothing() -> None:
    views = ViewsRecipe(crop_aspect=(1.0, 1.0))
    sight = sight_of([0.0, 0.0, 0.5, 0.5], Grid(8, 8), (0.25, 0.25), teacher=((1, -2), ((64, 64),)))
    assert look(torch.full((3, 200, 200), 255, dtype=torch.uint8), sight, views).pixels["teacher"][0].min() == 255
    assert look(ramps(200, 200), sight, views).extent.tolist() == [[-4, 12], [-4, 12]]


@pytest.mark.parametrize("grid", [Grid(6, 9), Grid(9, 6), Grid(4, 4)])
@pytest.mark.parametrize("size", [(240, 200), (90, 400), (400, 90)])
def test_a_region_of_any_aspect_ratio_is_not_distorted(grid: Grid, size: tuple[int, int]) -> None:
    views = ViewsRecipe(is_square=False)
    for scale in (0.0, 0.5, 1.0):
        region = choose_region(size, sight_of([scale, 0.5, 0.7, 0.3], grid, (0.2, 1.0)), views)
        assert region.width / region.height == pytest.approx(grid.cols / grid.rows)
        assert 0 <= region.top <= region.top + region.height <= size[0] + 1e-9
        assert 0 <= region.left <= region.left + region.width <= size[1] + 1e-9
        largest = min(size[0] * grid.cols / grid.rows, size[1])
        assert region.width == pytest.approx(largest * (0.2 + 0.8 * scale) ** 0.5)


def test_squares_show_aspect_ratios_within_the_bounds() -> None:
    views = ViewsRecipe(crop_aspect=(0.5, 2.0))
    ratios = [
        choose_region((HEIGHT, WIDTH), sight_of([0.0, number, 0.5, 0.5], Grid(4, 4)), views) for number in (0.0, 1.0)
    ]
    assert [region.width / region.height for region in ratios] == pytest.approx([0.5, 2.0])


@pytest.mark.parametrize("size", [(33, 2000), (2000, 33), (400, 800), (800, 400)])
def test_squares_of_long_images_stay_within_the_bounds(size: tuple[int, int]) -> None:
    views = ViewsRecipe()
    for scale, aspect in [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]:
        region = choose_region(size, sight_of([scale, aspect, 0.5, 0.5], Grid(4, 4)), views)
        assert 3 / 4 - 1e-9 <= region.width / region.height <= 4 / 3 + 1e-9
        assert max(region.height / size[0], region.width / size[1]) <= 1
        assert region.height * region.width >= 0.25 * 0.75 * min(size) ** 2


def test_a_mirrored_image_is_the_image_of_the_mirror() -> None:
    views = ViewsRecipe()
    viewers = {STUDENT: ((0, 0), ((64, 64),)), "teacher": ((1, 1), ((48, 48),))}
    sight = sight_of([0.5, 0.2, 0.9, 0.3], Grid(4, 4), (0.3, 0.3), **viewers)
    plain = look(ramps().flip(-1), sight, views)
    mirrored = look(ramps(), sight._replace(is_flipped=True), views)
    assert torch.equal(mirrored.extent, plain.extent)
    for viewer in viewers:
        assert (mirrored.pixels[viewer][0].int() - plain.pixels[viewer][0].int()).abs().max() <= 1


def test_a_viewer_may_take_in_several_sizes() -> None:
    sight = sight_of([0.5] * 4, Grid(4, 4), teacher=((0, 0), ((32, 32), (96, 96))))
    small, large = look(ramps(), sight, ViewsRecipe()).pixels["teacher"]
    assert (small.shape, large.shape) == ((3, 32, 32), (3, 96, 96))
    assert seen_share(small) == pytest.approx(seen_share(large), abs=0.02)


def test_a_batch_travels_as_two_tensors_and_is_split_into_its_groups() -> None:
    grids = [Grid(2, 2), Grid(2, 2), Grid(2, 3), Grid(2, 2)]
    seen = [
        Seen(
            grid,
            {
                "a": (torch.full((3, 2, 4), number),),
                "b": (torch.full((3, 1, 1), 10 + number), torch.full((3, 5, 2), 9)),
            },
            torch.tensor([[number, 0], [0, -number]]),
        )
        for number, grid in enumerate(grids)
    ]
    batch = SeenBatch.of(seen)
    assert [type(field) for field in batch].count(torch.Tensor) == 2
    groups = batch.split()
    assert [(group.grid, group.extent[:, 0, 0].tolist()) for group in groups] == [
        (Grid(2, 2), [0, 1]),
        (Grid(2, 3), [2]),
        (Grid(2, 2), [3]),
    ]
    assert groups[0].pixels["a"][0].shape == (2, 3, 2, 4)
    for group, members in zip(groups, (seen[:2], seen[2:3], seen[3:]), strict=True):
        for viewer in ("a", "b"):
            for place, pixels in enumerate(group.pixels[viewer]):
                assert torch.equal(pixels, torch.stack([each.pixels[viewer][place] for each in members]))


@pytest.mark.parametrize("size", [(3000, 4000), (4000, 1000), (500, 700)])
@pytest.mark.parametrize("numbers", [[0.0, 0.5, 0.1, 0.9], [1.0, 0.0, 0.5, 0.5], [0.3, 1.0, 0.0, 0.0]])
def test_a_draft_keeps_every_crop_twice_as_large_as_it_is_needed(size: tuple[int, int], numbers: list[float]) -> None:
    views = ViewsRecipe(crop_aspect=(0.5, 2.0))
    sight = sight_of(
        numbers, Grid(8, 8), (0.1, 1.0), student=((0, 0), ((128, 128),)), teacher=((1, 0), ((64, 64), (224, 224)))
    )
    scale = least_scale(size, sight, views)
    region = choose_region(size, sight, views)
    reduced = choose_region((round(size[0] * scale), round(size[1] * scale)), sight, views)
    assert min(reduced.height, reduced.width) == pytest.approx(2 * 224, rel=0.01)
    assert reduced.top / reduced.height == pytest.approx(region.top / region.height, abs=0.02)
