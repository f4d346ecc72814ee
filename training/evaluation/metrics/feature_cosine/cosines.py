"""Mean cosines between two sets of features that belong together."""

from torch import Tensor
from torch.nn import functional as F


def mean_cosine(features: Tensor, reference: Tensor) -> float:
    """Return the mean cosine of vectors, in [-1, 1].

    Args:
        features: `(num_vectors, dim)`, or maps `(num_images, dim, rows, cols)` of a vector for each position.
        reference: What they are compared with, of the same shape.
    """
    return F.cosine_similarity(features, reference, dim=1).mean().item()


def centered_cosine(features: Tensor, reference: Tensor) -> float:
    """Return the mean cosine about the reference's mean vector; shapes as in `mean_cosine`.

    Features of a network share a large mean, so what always answers that mean scores well on the plain cosine and zero
    here.
    """
    mean = reference.mean(dim=[axis for axis in range(reference.ndim) if axis != 1], keepdim=True)
    return mean_cosine(features - mean, reference - mean)
