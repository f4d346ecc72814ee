import pytest
import torch
from torch.nn import functional as F

from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.teachers.run_modes import (
    MosaicLayout,
    MosaicMode,
    NetworkTraits,
    pack_mosaics,
    slice_mosaics,
)


# SAM3's canvas has 72 x 72 patches: student patches, images per row, images per pass.
SAM3_TABLE = [(8, 9, 81), (12, 6, 36), (14, 5, 25), (16, 4, 16), (24, 3, 9), (27, 2, 4), (32, 2, 4), (48, 1, 1)]


@pytest.mark.parametrize(("side", "per_row", "num_images"), [*SAM3_TABLE, (64, 1, 1), (72, 1, 1)])
def test_sam3s_canvas_for_every_size_of_c_radio_v4(side, per_row, num_images):
    full, more = (MosaicLayout(1008 // 14, [(side, side)] * count) for count in (num_images, num_images + 1))
    assert (full.num_canvases, more.num_canvases) == (1, 2)
    assert len({place.row for place in full.positions}) == len({place.col for place in full.positions}) == per_row


@pytest.mark.parametrize("cells", [(83, 62), (62, 83), (72, 72), (40, 80), (27, 24)])
def test_an_image_that_is_larger_than_the_canvas_keeps_its_shape(cells):
    traits = NetworkTraits("t", 14, 14, 1008, runs_at_any_size=False, has_summary=False)
    ((height, width),) = MosaicMode(traits, RunOptions(run_mode="mosaic")).input_sizes(*cells)
    rows, cols = height / 14, width / 14
    assert max(rows, cols) == min(max(cells), 72)
    assert min(rows, cols) == pytest.approx(min(cells) * max(rows, cols) / max(cells), abs=0.5)


MIXED = [(3, 3), (2, 5), (9, 1), (1, 1), (4, 4), (3, 3), (5, 2), (9, 9), (1, 8)]


@pytest.mark.parametrize("cells", [[(3, 3)] * 9, [(2, 3)] * 5, [(4, 2)], [(9, 9)] * 2, [(5, 4)] * 3, MIXED])
def test_slices_are_the_images_again(cells):
    layout = MosaicLayout(9, cells)
    images = [torch.rand(2, rows * 4, cols * 4) for rows, cols in cells]
    canvases = pack_mosaics(images, layout, patch_px=4)
    assert canvases.shape == (layout.num_canvases, 2, 36, 36)
    assert torch.isclose(canvases.sum(), sum(image.sum() for image in images))  # none lies on another
    for image, answer in zip(images, slice_mosaics(F.avg_pool2d(canvases, 4), layout), strict=True):
        assert torch.equal(answer, F.avg_pool2d(image, 4))


def test_images_share_few_canvases_and_spare_patches_separate_them():
    cells = torch.randint(7, 32, (64, 2), generator=torch.Generator().manual_seed(0)).tolist()
    layout = MosaicLayout(72, cells)
    assert sum(rows * cols for rows, cols in cells) / (layout.num_canvases * 72**2) > 0.75
    canvas = pack_mosaics([torch.ones(1, 3, 3)] * 4, MosaicLayout(8, [(3, 3)] * 4), patch_px=1)[0, 0]
    assert canvas[0].tolist() == [1, 1, 1, 0, 1, 1, 1, 0]
    assert canvas[3].tolist() == [0] * 8
    for rows, cols in ((10, 3), (3, 10), (0, 3)):
        with pytest.raises(ValueError, match=f"`images` .* got {rows} x {cols}"):
            MosaicLayout(9, [(1, 1), (rows, cols)])
