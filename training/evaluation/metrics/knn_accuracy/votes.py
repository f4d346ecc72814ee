"""Weighted k-nearest-neighbor classification on frozen summaries."""

import torch
from torch import Tensor
from torch.nn import functional as F


TEMPERATURE = 0.07
"""Weights of the votes are `exp(cosine / 0.07)`, as in the RADIO papers' protocol."""


def knn_predictions(
    queries: Tensor, gallery: Tensor, gallery_labels: Tensor, *, k: int = 20, temperature: float = TEMPERATURE
) -> Tensor:
    """Classify every query by a vote of its nearest gallery images.

    Args:
        queries: `(num_queries, dim)`.
        gallery: `(num_gallery, dim)`.
        gallery_labels: Class indices, `(num_gallery,)`.
        k: Neighbors that vote. The papers use 20; sets with few images per class need fewer.
        temperature: Divides the cosine similarity in the exponent of a vote's weight.

    Returns:
        Class indices, `(num_queries,)`.

    Raises:
        ValueError: If the widths differ, the labels do not match the gallery, or `k` is out of range.
    """
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"`queries` must be as wide as the gallery, {gallery.shape[1]}, got {queries.shape[1]}.")
    if len(gallery) != len(gallery_labels):
        raise ValueError(f"`gallery_labels` must have the gallery's {len(gallery)} rows, got {len(gallery_labels)}.")
    if not 1 <= k <= len(gallery):
        raise ValueError(f"`k` must be between 1 and the gallery's {len(gallery)} images, got {k}.")
    num_classes = int(gallery_labels.max()) + 1
    gallery = F.normalize(gallery, dim=1)
    predictions = []
    # 1024 rows bound the similarity matrix: 1024 x 1.28 M ImageNet images are 5 GiB in float32.
    for rows in F.normalize(queries, dim=1).split(1024):
        similarity, neighbors = (rows @ gallery.T).topk(k, dim=1)
        votes = similarity.new_zeros(len(rows), num_classes)
        votes.scatter_add_(1, gallery_labels[neighbors], (similarity / temperature).exp())
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def knn_accuracy(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> float:
    """Return the share of queries in [0, 1] whose weighted kNN vote is right; see `knn_predictions`."""
    predictions = knn_predictions(queries, gallery, gallery_labels, k=k, temperature=temperature)
    return (predictions == query_labels).double().mean().item()
