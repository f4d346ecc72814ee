import pytest
import torch
from torch.nn import functional as F

from training.teachers.mosaic import MosaicLayout, pack_mosaics, slice_mosaics


PATCH = 16

# SAM3's canvas has 72 x 72 cells: student pixels, student cells, tiles per row, images per pass, unused cells per row.
SAM3_TABLE = [
    (128, 8, 9, 81, 0),
    (192, 12, 6, 36, 0),
    (224, 14, 5, 25, 2),
    (256, 16, 4, 16, 8),
    (384, 24, 3, 9, 0),
    (432, 27, 2, 4, 18),
    (512, 32, 2, 4, 8),
    (768, 48, 1, 1, 24),
    (1024, 64, 1, 1, 8),
    (1152, 72, 1, 1, 0),
]


@pytest.mark.parametrize(("size_px", "cells", "tiles", "images", "unused"), SAM3_TABLE)
def test_sam3s_canvas_for_every_size_of_c_radio_v4(size_px, cells, tiles, images, unused):
    layout = MosaicLayout(1008 // 14, size_px // PATCH, size_px // PATCH)
    assert layout.rows == cells
    assert layout.tiles_per_row == layout.tiles_per_column == tiles
    assert layout.images_per_canvas == images
    assert layout.canvas_cells - layout.tiles_per_row * layout.cols == unused


@pytest.mark.parametrize(("rows", "cols", "num_images"), [(3, 3, 9), (2, 3, 5), (4, 2, 1), (9, 9, 2), (5, 4, 3)])
def test_slices_are_the_images_again(rows, cols, num_images):
    layout = MosaicLayout(9, rows, cols)
    images = torch.rand(num_images, 2, rows * 4, cols * 4)
    canvases = pack_mosaics(images, layout, cell_px=4)
    assert canvases.shape == (-(-num_images // layout.images_per_canvas), 2, 36, 36)
    assert torch.isclose(canvases.sum(), images.sum())
    features = F.avg_pool2d(canvases, 4)
    assert torch.equal(slice_mosaics(features, layout, num_images), F.avg_pool2d(images, 4))


def test_spare_cells_keep_images_apart():
    canvas = pack_mosaics(torch.ones(4, 1, 3, 3), MosaicLayout(8, 3, 3), cell_px=1)[0, 0]
    assert canvas[0].tolist() == [1, 1, 1, 0, 1, 1, 1, 0]
    assert canvas[3].tolist() == [0] * 8


@pytest.mark.parametrize(("rows", "cols"), [(10, 3), (3, 10), (0, 3)])
def test_an_image_that_does_not_fit_is_refused(rows, cols):
    with pytest.raises(ValueError, match=f"from 1 to 9, the cells of the canvas, got {rows} x {cols}. Use smaller"):
        MosaicLayout(9, rows, cols)
