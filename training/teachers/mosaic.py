"""Mosaics: several small images in one pass of a teacher that runs at one large size only.

Every image is resized so that one cell of the teacher covers what one cell of the student covers, as many as fit are
laid on the teacher's canvas, and the answer is cut apart again. Cheaper than one pass per image, and better: the images
meet the teacher's position artifacts in changing places (RADIOv2.5, finding 3, https://arxiv.org/abs/2412.07679).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from training.teachers.tile_upsampling import cut_tiles, stitch_tiles


@dataclass(frozen=True)
class MosaicLayout:
    """How images of `rows` x `cols` cells lie on a square canvas: each at the upper left of a slot of its own.

    Slots are as large as the canvas allows, so that spare cells keep the images apart.

    Attributes:
        canvas_cells: Cells along a side of the canvas.
        rows: Cells of an image from top to bottom.
        cols: Cells of an image from left to right.

    Raises:
        ValueError: If an image does not fit.
    """

    canvas_cells: int
    rows: int
    cols: int

    def __post_init__(self) -> None:
        if not 1 <= min(self.rows, self.cols) <= max(self.rows, self.cols) <= self.canvas_cells:
            raise ValueError(
                f"`rows` and `cols` must be from 1 to {self.canvas_cells}, the cells of the canvas, got {self.rows} x "
                f"{self.cols}. Use smaller images, or `run_mode` 'fixed'."
            )

    @property
    def tiles_per_column(self) -> int:
        """Images below each other."""
        return self.canvas_cells // self.rows

    @property
    def tiles_per_row(self) -> int:
        """Images beside each other."""
        return self.canvas_cells // self.cols

    @property
    def images_per_canvas(self) -> int:
        """Images that one pass answers."""
        return self.tiles_per_column * self.tiles_per_row


def pack_mosaics(images: Tensor, layout: MosaicLayout, cell_px: int) -> Tensor:
    """Lay images on canvases.

    Args:
        images: `(batch, channels, rows * cell_px, cols * cell_px)`, normalized: spare area is 0, the mean color.
        layout: Where they lie.
        cell_px: Pixels along a side of a cell.

    Returns:
        `(num_canvases, channels, canvas_cells * cell_px, canvas_cells * cell_px)`; the last may have free slots.
    """
    height, width = (layout.canvas_cells // count * cell_px for count in _counts(layout))
    free_slots = -len(images) % layout.images_per_canvas
    slots = F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2], 0, 0, 0, free_slots))
    canvases = stitch_tiles(slots, *_counts(layout))
    side = layout.canvas_cells * cell_px
    return F.pad(canvases, (0, side - canvases.shape[3], 0, side - canvases.shape[2]))


def slice_mosaics(features: Tensor, layout: MosaicLayout, num_images: int) -> Tensor:
    """Cut the images' features out of those of the canvases.

    Args:
        features: `(num_canvases, channels, canvas_cells, canvas_cells)`.
        layout: Where the images lie.
        num_images: How many they are.

    Returns:
        `(num_images, channels, rows, cols)`.
    """
    counts = _counts(layout)
    height, width = (count * (layout.canvas_cells // count) for count in counts)
    slots = cut_tiles(features[:, :, :height, :width], *counts)
    return slots[:num_images, :, : layout.rows, : layout.cols]


def _counts(layout: MosaicLayout) -> tuple[int, int]:
    return layout.tiles_per_column, layout.tiles_per_row
