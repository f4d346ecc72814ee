"""Points of one image found in another one by their features, as Probe3D measures SPair-71k and NAVI.

References:
    Probe3D, https://arxiv.org/abs/2404.08636, and its code, https://github.com/mbanani/probe3d.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


_BLOCK = 1024
"""Rows of the matrix of cosines at a time; 16,384 columns of float32 are 64 MiB then."""


def keypoint_errors(source: Tensor, target: Tensor, source_points: Tensor, target_points: Tensor) -> Tensor:
    """Return the distance of the most similar patch of the target from the true position, for each keypoint.

    The source is read between patches with the corners' patches at the corners, and a patch of the target stands for
    its upper left corner, both as in Probe3D.

    Args:
        source: Dense features of a square image, `(dim, rows, cols)`.
        target: Those of another one, of the same grid.
        source_points: x and y of the keypoints as shares of the side, `(num_points, 2)`.
        target_points: The same points in the target.

    Returns:
        Distances as shares of the side, `(num_points,)`.
    """
    source, target = (F.normalize(each.float(), dim=0) for each in (source, target))
    positions = (source_points.to(source) * 2 - 1)[None, None]
    vectors = F.grid_sample(source[None], positions, mode="bilinear", align_corners=True)[0, :, 0]
    found = (vectors.T @ target.flatten(1)).argmax(1)
    rows, cols = target.shape[1:]
    positions = torch.stack([(found % cols) / cols, (found // cols) / rows], dim=1)
    return (positions - target_points.to(positions)).norm(dim=1)


def matched_points(
    source: Tensor, target: Tensor, source_points: Tensor, target_points: Tensor, num_matches: int
) -> tuple[Tensor, Tensor]:
    """Return the 3D points of the pixels that match most clearly: those of the source, and theirs in the target.

    Features are resized to the points' grid. Each pixel takes its nearest neighbor by cosine; the clearest matches
    have the smallest ratio of the distances of the nearest and the second nearest.

    Args:
        source: Dense features, `(dim, rows, cols)`.
        target: Those of the other image.
        source_points: Points in meters, `(3, height, width)`; where the third is not above 0 there is none.
        target_points: Those of the other image.
        num_matches: Largest number of matches.

    Returns:
        Two tensors `(num_found, 3)`.
    """
    (vectors, positions), (others, other_positions) = (
        _at_points(*each) for each in ((source, source_points), (target, target_points))
    )
    ratios, nearest = [], []
    for block in vectors.split(_BLOCK):
        cosines, found = (block @ others.T).topk(min(2, len(others)), dim=1)
        distances = (1 - cosines).clamp(min=1e-9)
        ratios.append(distances[:, 0] / distances[:, -1])
        nearest.append(found[:, 0])
    clearest = torch.cat(ratios).topk(min(num_matches, len(vectors)), largest=False).indices
    return positions[clearest], other_positions[torch.cat(nearest)[clearest]]


def _at_points(features: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit features `(num_points, dim)` and points `(num_points, 3)` of the pixels that have a point."""
    full = F.interpolate(features[None].float(), points.shape[1:], mode="bicubic", align_corners=False)[0]
    is_there = points[2] > 0
    return F.normalize(full[:, is_there].T, dim=1), points[:, is_there].T.to(full)
