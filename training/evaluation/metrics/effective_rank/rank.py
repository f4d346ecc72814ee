"""How many directions features really use."""

import torch
from torch import Tensor


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of features, which falls where they collapse.

    `exp(-sum_i p_i ln p_i)` with `p_i = s_i / sum_j s_j` and `s_i` the singular values of the centered features.
    Between 1, where all lie on a line, and their rank, where all directions are used alike.

    Args:
        features: `(num_vectors, dim)`, at least two different ones; of maps, one vector for each position.

    Returns:
        The effective rank, at least 1 and at most `min(num_vectors - 1, dim)`.

    Raises:
        ValueError: If it is no such matrix, or all vectors are equal.

    References:
        Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007, definition 1; of the
        centered features is our choice, since a network's features share a large mean.
        As a measure of representations: RankMe, https://arxiv.org/abs/2210.02885
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"`features` must have the shape (num_vectors, dim) with at least two vectors, got {tuple(features.shape)}."
        )
    values = features.double()
    singular = torch.linalg.svdvals(values - values.mean(0))
    if singular.sum() == 0:
        raise ValueError("`features` must not all be equal: they have no direction.")
    shares = singular / singular.sum()
    return torch.special.entr(shares).sum().exp().item()
