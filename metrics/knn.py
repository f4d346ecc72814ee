"""Nearest neighbors: classes by vote, and rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


TEMPERATURE = 0.07
"""Weights of the votes are `exp(cosine / 0.07)`, as in the RADIO papers' protocol."""

QUERIES, GALLERY = 1024, 16384
"""Our choice of block sides: 64 MiB of similarities in float32."""

MAX_SIMILARITIES = QUERIES * GALLERY
"""The same for retrieval; one query beside a larger gallery takes a row of its own."""


class Neighbors(NamedTuple):
    """Cosines and rows of the nearest gallery images of each query, nearest first, `(num_queries, k)`."""

    similarity: Tensor
    index: Tensor


def num_comparable(num_images: int, leave_one_out: bool, groups: Tensor | None = None) -> int:
    """Return the number of gallery images that each query can be compared with; see `nearest_neighbors`."""
    if not leave_one_out:
        return num_images
    return num_images - (1 if groups is None else int(groups.unique(return_counts=True)[1].max()))


def nearest_neighbors(
    queries: Tensor, gallery: Tensor, k: int, *, leave_one_out: bool = False, groups: Tensor | None = None
) -> Neighbors:
    """Return the nearest gallery images of every query by cosine similarity.

    Args:
        queries: `(num_queries, dim)`.
        gallery: `(num_gallery, dim)`.
        k: Number of neighbors.
        leave_one_out: Queries and gallery are the same images, and no image is its own neighbor.
        groups: Sources of these images, `(num_gallery,)`, such as the videos that frames come from: images of one
            source are no neighbors. None: each image is a source of its own.

    Raises:
        ValueError: If a query can be compared with fewer than `k` images.
    """
    most = num_comparable(len(gallery), leave_one_out, groups)
    if not 1 <= k <= most:
        raise ValueError(f"`k` must be between 1 and the gallery's {most} images, got {k}.")
    sources = torch.arange(len(gallery)) if groups is None else groups
    found = [
        _nearest(
            F.normalize(queries[start : start + QUERIES], dim=1),
            gallery,
            k,
            sources if leave_one_out else None,
            start,
        )
        for start in range(0, len(queries), QUERIES)
    ]
    return Neighbors(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _nearest(rows: Tensor, gallery: Tensor, k: int, sources: Tensor | None, first: int) -> Neighbors:
    """Return the neighbors of one block of queries.

    Args:
        rows: The queries, unit vectors.
        gallery: All images.
        k: Number of neighbors.
        sources: Sources of the images if the queries are among them; images of a query's own source are left out.
        first: Index of the first query.
    """
    best = Neighbors(rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.long, device=rows.device))
    for start in range(0, len(gallery), GALLERY):
        similarity = rows @ F.normalize(gallery[start : start + GALLERY], dim=1).T
        if sources is not None:
            own = sources[first : first + len(rows), None] == sources[start : start + GALLERY]
            similarity.masked_fill_(own.to(similarity.device), -torch.inf)
        chosen, indices = similarity.topk(min(k, similarity.shape[1]), dim=1)
        merged = torch.cat([best.similarity, chosen], dim=1), torch.cat([best.index, indices + start], dim=1)
        top, order = merged[0].topk(min(k, merged[0].shape[1]), dim=1)
        best = Neighbors(top, merged[1].gather(1, order))
    return best


def knn_predictions(
    queries: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
    leave_one_out: bool = False,
    groups: Tensor | None = None,
) -> Tensor:
    """Classify every query by a vote of its nearest gallery images.

    Args:
        queries: `(num_queries, dim)`.
        gallery: `(num_gallery, dim)`.
        gallery_labels: Class indices, `(num_gallery,)`.
        k: Neighbors that vote. The papers use 20; sets with few images per class need fewer.
        temperature: Divides the cosine similarity in the exponent of a vote's weight.
        leave_one_out: Queries and gallery are the same images, and no image votes for itself.
        groups: Sources of these images; images of one source do not vote for each other. See `nearest_neighbors`.

    Returns:
        Class indices, `(num_queries,)`.

    Raises:
        ValueError: If the labels do not match the gallery, or `k` is out of range.
    """
    if len(gallery) != len(gallery_labels):
        raise ValueError(f"`gallery_labels` must have the gallery's {len(gallery)} rows, got {len(gallery_labels)}.")
    similarity, neighbors = nearest_neighbors(queries, gallery, k, leave_one_out=leave_one_out, groups=groups)
    # Weights relative to the nearest image: the same votes, without overflow at low temperatures.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    num_classes, predictions = int(gallery_labels.max()) + 1, []
    for rows, voters in zip(weights.split(1024), neighbors.split(1024), strict=True):
        votes = rows.new_zeros(len(rows), num_classes)
        votes.scatter_add_(1, gallery_labels[voters], rows)
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
    leave_one_out: bool = False,
) -> float:
    """Return the share of queries in [0, 1] whose weighted kNN vote is right; see `knn_predictions`."""
    options = {"temperature": temperature, "leave_one_out": leave_one_out}
    predictions = knn_predictions(queries, gallery, gallery_labels, k=k, **options)
    return (predictions == query_labels).double().mean().item()


def retrieval_scores(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    leave_one_out: bool = False,
    groups: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the retrieval scores of every query; images of the query's class are relevant to it.

    - "mAP": the mean, over the relevant images, of the precision at their ranks.
    - "hit rate@k": 1 if one of the first `k` is relevant, else 0; "Recall@k" of the papers on metric learning.
    - "recall@k": the share of the relevant images that are among the first `k`.

    Args:
        queries: `(num_queries, dim)`.
        query_labels: Class indices, `(num_queries,)`.
        gallery: `(num_gallery, dim)`.
        gallery_labels: Class indices, `(num_gallery,)`.
        ranks: The numbers `k`.
        leave_one_out: Queries and gallery are the same images, and no image finds itself.
        groups: Sources of these images; images of one source do not find each other. See `nearest_neighbors`.

    Returns:
        By name, one number in [0, 1] for each query, `(num_queries,)`, NaN for those without a relevant image. Of
        images with equal similarity the relevant ones come first.
    """
    order = gallery_labels.argsort(stable=True)
    sorted_gallery, sorted_labels = F.normalize(gallery[order], dim=1), gallery_labels[order].contiguous()
    sources = (torch.arange(len(gallery)) if groups is None else groups).to(order.device)
    names = ["mAP", *(f"{name}@{rank}" for rank in ranks for name in ("hit rate", "recall"))]
    scores = {name: torch.full((len(queries),), torch.nan, dtype=torch.float64) for name in names}
    for label in query_labels.unique():
        own = slice(*(int(torch.searchsorted(sorted_labels, label, right=right)) for right in (False, True)))
        rows = (query_labels == label).nonzero().flatten()
        for chosen in rows.split(max(1, MAX_SIMILARITIES // len(gallery))) if own.stop > own.start else ():
            similarity = F.normalize(queries[chosen], dim=1) @ sorted_gallery.T
            if leave_one_out:
                own_source = sources[chosen, None] == sources[order]
                similarity.masked_fill_(own_source.to(similarity.device), -torch.inf)
            own_ranks = _ranks_of_relevant(similarity, own)
            count = torch.arange(1, own_ranks.shape[1] + 1, dtype=torch.float64)
            scores["mAP"][chosen] = (count / own_ranks).nanmean(1)
            for rank in ranks:
                among = (own_ranks <= rank).double().where(~own_ranks.isnan(), torch.nan)
                scores[f"hit rate@{rank}"][chosen] = among[:, 0]
                scores[f"recall@{rank}"][chosen] = among.nanmean(1)
    return scores


def _ranks_of_relevant(similarity: Tensor, own: slice) -> Tensor:
    """Return the ranks of the relevant images, ascending and from 1, `(num_queries, num_own)`; NaN if left out.

    Args:
        similarity: To the whole gallery, `(num_queries, num_gallery)`; minus infinity for images that are left out.
        own: Columns of the images of the queries' class.
    """
    values = similarity.cpu().numpy()
    # Sorting values alone is several times faster than sorting images by them.
    relevant = np.sort(values[:, own], axis=1)[:, ::-1]
    others = np.sort(np.delete(values, np.s_[own.start : own.stop], axis=1), axis=1)
    above = [len(row) - np.searchsorted(row, found, side="right") for row, found in zip(others, relevant, strict=True)]
    ranks = np.stack(above) + np.arange(1.0, relevant.shape[1] + 1)
    return torch.from_numpy(np.where(np.isneginf(relevant), np.nan, ranks))
