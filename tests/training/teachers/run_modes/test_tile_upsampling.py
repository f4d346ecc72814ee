import pytest
import torch
from torch.nn import functional as F

from training.recipe_sections import RunOptions
from training.teachers.featsharp import TiledMode, add_detail, cut_tiles, stitch_tiles, tiles_per_side
from training.teachers.run_modes import NetworkTraits


@pytest.mark.parametrize(
    ("size_px", "tiles"),
    [(128, 1), (384, 1), (432, 1), (512, 2), (768, 2), (1024, 3), (1152, 3)],
)
def test_siglip2_is_cut_as_finely_as_the_students_grid_asks(size_px, tiles):
    assert tiles_per_side(size_px // 16, own_cells=384 // 16) == tiles


@pytest.mark.parametrize(("size_px", "tiles"), [(432, 1), (768, 2), (1152, 3)])
@pytest.mark.parametrize("stretch", [3 / 4, 0.9, 1.0, 4 / 3])
def test_an_image_of_any_shape_is_cut_like_the_square_of_as_many_cells(size_px, tiles, stretch):
    traits = NetworkTraits("t", 16, 16, 384, runs_at_any_size=False, has_summary=True)
    mode = TiledMode(traits, RunOptions(run_mode="fixed", upsample="tiles"))
    cells = size_px / 16
    sizes = mode.input_sizes(round(cells / stretch**0.5), round(cells * stretch**0.5))
    assert sizes == ((384, 384), (tiles * 384, tiles * 384))[: min(tiles, 2)]


def test_tiles_go_row_by_row_and_back():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert cut_tiles(image, 2, 3).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert cut_tiles(image, 1, 3)[1, 0].tolist() == [[1], [4]]
    maps = torch.rand(2, 3, 8, 6)
    assert torch.equal(stitch_tiles(cut_tiles(maps, 4, 2), 4, 2), maps)


def test_coarse_content_is_that_of_the_whole_image():
    whole, stitched = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 8, 8), 5.0)
    assert torch.equal(add_detail(whole, stitched), torch.zeros(1, 1, 8, 8))


def test_tiles_that_agree_change_nothing():
    stitched = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(add_detail(F.avg_pool2d(stitched, 3), stitched), stitched)


def test_detail_of_the_tiles_is_kept():
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    answer = add_detail(torch.full((1, 1, 4, 4), 3.0), stripes + 7)
    torch.testing.assert_close(answer, stripes + 3)
