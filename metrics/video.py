"""Region and boundary scores of objects in videos, as DAVIS measures them.

References:
    Perazzi et al., A benchmark dataset and evaluation methodology for video object segmentation, CVPR 2016, and the
    code of DAVIS 2017, https://github.com/davisvideochallenge/davis2017-evaluation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


BOUNDARY_SHARE = 0.008
"""Distance within which boundaries match, as a share of the image's diagonal; as in DAVIS' code."""


def region_similarity(predicted: Tensor, true: Tensor) -> float:
    """Return J, the intersection over union of two masks; 1 if both are empty.

    Args:
        predicted: bool `(height, width)`.
        true: bool `(height, width)`.
    """
    union = (predicted | true).sum().item()
    return (predicted & true).sum().item() / union if union else 1.0


def boundary_accuracy(predicted: Tensor, true: Tensor) -> float:
    """Return F, the harmonic mean of the shares of either mask's boundary that lie near the other's.

    Args:
        predicted: bool `(height, width)`.
        true: bool `(height, width)`.
    """
    radius = math.ceil(BOUNDARY_SHARE * math.hypot(*true.shape))
    own, other = boundary(predicted), boundary(true)
    if not own.any() or not other.any():
        return 1.0 if own.any() == other.any() else 0.0
    precision = (own & _grown(other, radius)).sum().item() / own.sum().item()
    recall = (other & _grown(own, radius)).sum().item() / other.sum().item()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Tensor) -> Tensor:
    """Return the pixels that differ from their right, lower, or lower right neighbor, bool `(height, width)`."""
    padded = F.pad(mask[None].float(), (0, 1, 0, 1), mode="replicate")[0] > 0
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def _grown(mask: Tensor, radius: int) -> Tensor:
    """Return the pixels within a distance of a mask's."""
    steps = torch.arange(-radius, radius + 1)
    disk = (steps[:, None].square() + steps.square() <= radius**2).float()
    return F.conv2d(mask[None, None].float(), disk[None, None], padding=radius)[0, 0] > 0.5
