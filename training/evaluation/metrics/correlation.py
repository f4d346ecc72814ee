"""Patches that gather from those that resemble them."""

import torch
from torch import Tensor
from torch.nn import functional as F


SHARPNESS = 10.0
"""Our choice: divides the attention among alike patches; their cosines differ by some tenths."""


def gather_alike(values: Tensor, features: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """Return each patch as the weighted mean of the patches that resemble it, over the whole image.

    Weights are a softmax over the cosines of the features; patches less alike than the average have none. What one
    object covers so gets one answer, though single patches waver.

    Args:
        values: What is gathered, such as patches in the space of texts, `(batch, dim, rows, cols)`.
        features: What is compared, of the same grid, `(batch, feature_dim, rows, cols)`.
        sharpness: Multiplies the cosines.

    Raises:
        ValueError: If the grids differ.

    References:
        The self-correlating recursive attention (SCRA) of RADSeg, https://arxiv.org/abs/2511.19704, in one step and
        outside the network.
    """
    if values.shape[2:] != features.shape[2:]:
        raise ValueError(
            f"`features` must have the grid of `values`, {tuple(values.shape[2:])}, got {tuple(features.shape[2:])}."
        )
    vectors = F.normalize(features.flatten(2).float(), dim=1)
    alike = torch.einsum("bdi,bdj->bij", vectors, vectors)
    is_left_out = alike < alike.mean(dim=2, keepdim=True)
    weights = (alike * sharpness).masked_fill(is_left_out, -torch.inf).softmax(dim=2)
    gathered = torch.einsum("bij,bdj->bdi", weights, values.flatten(2).float())
    return gathered.unflatten(2, values.shape[2:]).to(values.dtype)
