"""Whether patches of two views of one image find each other."""

import torch
from torch import Tensor
from torch.nn import functional as F


def correspondence_distances(features: Tensor, crop: Tensor, top: float, left: float, side: float) -> Tensor:
    """Return how far the most alike patch of the whole image is from the right place, for each patch of a crop.

    Args:
        features: Of the whole square image, `(dim, rows, cols)`.
        crop: Of the crop, `(dim, crop_rows, crop_cols)`.
        top: Upper edge of the crop in shares of the image.
        left: Its left edge.
        side: Its side.

    Returns:
        Distances in patches of the whole image, the larger of rows and columns, `(crop_rows * crop_cols,)`.
    """
    rows, cols = features.shape[1:]
    vectors = F.normalize(crop.flatten(1), dim=0).T @ F.normalize(features.flatten(1), dim=0)
    found = vectors.argmax(dim=1)
    found_places = torch.stack([found // cols, found % cols], dim=1) + 0.5  # centers of patches
    true_rows = (top + _centers(crop.shape[1]) * side) * rows
    true_cols = (left + _centers(crop.shape[2]) * side) * cols
    true_places = torch.stack(torch.meshgrid(true_rows, true_cols, indexing="ij"), dim=-1).flatten(0, 1)
    return (found_places - true_places).abs().amax(dim=1)


def _centers(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count
