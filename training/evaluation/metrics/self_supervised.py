"""How rich representations are, without labels: RankMe and LiDAR."""

import torch
from torch import Tensor


REGULARIZATION = 1e-4  # LiDAR, section 4
EPSILON = 1e-7  # RankMe, eq. 1


def rank_me(vectors: Tensor) -> float:
    """Return the effective rank of representations as they are, not centered.

    Args:
        vectors: `(num_images, dim)`.

    References:
        RankMe, eq. 1 and 2. https://arxiv.org/abs/2210.02885
    """
    singular = torch.linalg.svdvals(vectors.double())
    return _effective(singular)


def lidar(views: Tensor) -> float:
    """Return the rank of what tells images apart and does not change between views of one image.

    The effective rank of the eigenvalues of linear discriminant analysis, in which each image is a class.

    Args:
        views: `(num_images, num_views, dim)`, at least two of both.

    Raises:
        ValueError: If there are fewer.

    References:
        LiDAR, section 4. https://arxiv.org/abs/2312.04000
    """
    if views.ndim != 3 or min(views.shape[:2]) < 2:
        raise ValueError(f"`views` must be two or more views of two or more images, got {tuple(views.shape)}.")
    values = views.double()
    if values.shape[2] > values.shape[0] * values.shape[1]:  # nothing varies beyond what so many vectors span
        centered = (values - values.mean((0, 1))).flatten(0, 1)
        rotated, scales, _ = torch.linalg.svd(centered, full_matrices=False)
        values = (rotated * scales).unflatten(0, views.shape[:2])
    means = values.mean(1)
    between = means - means.mean(0)
    within = (values - means[:, None]).flatten(0, 1)
    scatter = within.T @ within / len(within) + REGULARIZATION * torch.eye(values.shape[2], dtype=values.dtype)
    roots, directions = torch.linalg.eigh(scatter)
    whitened = between @ directions / roots.clamp(min=REGULARIZATION / 2).sqrt()
    eigenvalues = torch.linalg.svdvals(whitened / max(1, len(means) - 1) ** 0.5).square()
    return _effective(eigenvalues)


def _effective(values: Tensor) -> float:
    shares = values / values.sum() + EPSILON
    return torch.special.entr(shares).sum().exp().item()
