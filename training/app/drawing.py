"""Answers of a model as pictures: features as colors, likeness as heat, both as large as the photograph is shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize, to_pil_image

from training.pictures.class_colors import class_color
from training.pictures.features import PcaBasis, fit_pca_basis, pca_colors
from training.pictures.similarity import marked, similarity_colors


SHOWN_PX = 768
"""Longer side of pictures, our choice: sharp on a screen, and some dozens of kB."""
EXACT_WIDTH = 768
"""Dimensions up to which principal components are found exactly; our choice: it takes a fraction of a second."""
Picture = tuple[Image.Image, str]
"""A picture and its caption."""


def shown(photograph: Tensor, longest_px: int = SHOWN_PX) -> Tensor:
    """Return a photograph as large as it is shown, uint8 `(3, height, width)`; small ones stay as they are."""
    height, width = photograph.shape[-2:]
    scale = min(1.0, longest_px / max(height, width))
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    return resize(photograph, size, InterpolationMode.BICUBIC, antialias=True)


def cells_picture(colors: Tensor, size: Sequence[int]) -> Image.Image:
    """Return RGB in [0, 1] of patches, `(rows, cols, 3)`, as a picture of a height and width with sharp cells."""
    cells = (colors.movedim(-1, 0) * 255).round().to(torch.uint8)
    return to_pil_image(resize(cells, [max(side, 1) for side in size], InterpolationMode.NEAREST))


def fit_basis(features: Tensor) -> PcaBasis:
    """Return three directions in which features `(1, dim, rows, cols)` vary, for pictures.

    Raises:
        ValueError: If there are fewer than three dimensions.
    """
    if features.shape[1] < 3:
        raise ValueError(f"`features` must have at least 3 dimensions to be drawn, got {features.shape[1]}.")
    return fit_pca_basis(features, approximate=features.shape[1] > EXACT_WIDTH)


def pca_picture(features: Tensor, size: Sequence[int], basis: PcaBasis | None = None) -> Image.Image:
    """Return features `(1, dim, rows, cols)` as colors, in their own directions where no basis is given."""
    return cells_picture(pca_colors(features, fit_basis(features) if basis is None else basis)[0], size)


def heat_picture(heat: Tensor, size: Sequence[int]) -> Image.Image:
    """Return numbers in [0, 1], `(rows, cols)`, as a picture: black is 0, yellow is 1."""
    return cells_picture(similarity_colors(heat[None])[0], size)


def marked_picture(photograph: Tensor, place: tuple[int, int], grid: Sequence[int]) -> Image.Image:
    """Return a photograph, uint8 `(3, height, width)`, with a ring around one place of a grid."""
    image = photograph.movedim(0, -1)[None].float() / 255
    ringed = marked(image, [place], grid)[0].movedim(-1, 0)
    return to_pil_image((ringed * 255).round().to(torch.uint8))


def hex_color(index: int) -> str:
    """Return the color of a class as pages write it."""
    return "#{:02x}{:02x}{:02x}".format(*class_color(index))
