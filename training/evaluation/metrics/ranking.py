"""How well images of a class find each other: by cosine, query by query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


MAX_SIMILARITIES = 1 << 24
"""Our choice: 64 MiB in float32; one query beside a larger gallery takes what it needs."""


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
    """Return the scores of every query that has a relevant image: one of its class.

    - "mAP": the mean, over its relevant images, of the share of relevant ones down to that rank.
    - "hit rate@k": whether one of the first `k` is relevant: "Recall@k" of the papers on metric learning.
    - "recall@k": the share of the relevant images that are among the first `k`.

    Args:
        queries: `(num_queries, dim)`.
        query_labels: Class indices, `(num_queries,)`.
        gallery: `(num_gallery, dim)`.
        gallery_labels: Class indices, `(num_gallery,)`.
        ranks: The numbers `k`.
        leave_one_out: Queries and gallery are the same images, and none finds itself.
        groups: Sources of these images, `(num_gallery,)`, such as the videos that they are frames of: none finds
            another of its source. None: each image is a source of its own.

    Returns:
        By name, one number in [0, 1] for each query, `(num_queries,)`, NaN for those without a relevant image. Of
        images that are equally alike the relevant ones come first.
    """
    order = gallery_labels.argsort(stable=True)
    sorted_gallery, sorted_labels = F.normalize(gallery[order], dim=1), gallery_labels[order].contiguous()
    sources = (torch.arange(len(gallery)) if groups is None else groups).to(order.device)
    scores = {name: torch.full((len(queries),), torch.nan, dtype=torch.float64) for name in _names(ranks)}
    for label in query_labels.unique():
        own = slice(*(int(torch.searchsorted(sorted_labels, label, right=right)) for right in (False, True)))
        rows = (query_labels == label).nonzero().flatten()
        for chosen in rows.split(max(1, MAX_SIMILARITIES // len(gallery))) if own.stop > own.start else ():
            similarity = F.normalize(queries[chosen], dim=1) @ sorted_gallery.T
            if leave_one_out:
                own_source = sources[chosen, None] == sources[order]
                similarity.masked_fill_(own_source.to(similarity.device), -torch.inf)
            _fill(scores, chosen, _ranks_of_relevant(similarity, own), ranks)
    return scores


def _names(ranks: Sequence[int]) -> list[str]:
    return ["mAP", *(f"{name}@{rank}" for rank in ranks for name in ("hit rate", "recall"))]


def _ranks_of_relevant(similarity: Tensor, own: slice) -> Tensor:
    """Return the ranks of the relevant images, ascending and from 1, `(num_queries, num_own)`; NaN of those left out.

    Args:
        similarity: With the whole gallery, `(num_queries, num_gallery)`; minus infinity with what is left out.
        own: Columns of the images of the queries' class.
    """
    values = similarity.cpu().numpy()
    # Sorting values alone is several times faster than sorting images by them.
    relevant = np.sort(values[:, own], axis=1)[:, ::-1]
    others = np.sort(np.delete(values, np.s_[own.start : own.stop], axis=1), axis=1)
    above = [len(row) - np.searchsorted(row, found, side="right") for row, found in zip(others, relevant, strict=True)]
    places = np.stack(above) + np.arange(1.0, relevant.shape[1] + 1)
    return torch.from_numpy(np.where(np.isneginf(relevant), np.nan, places))


def _fill(scores: dict[str, Tensor], chosen: Tensor, places: Tensor, ranks: Sequence[int]) -> None:
    """Write the scores of some queries, given the ranks of what is relevant to them; NaN where nothing is."""
    count = torch.arange(1, places.shape[1] + 1, dtype=torch.float64)
    scores["mAP"][chosen] = (count / places).nanmean(1)
    for rank in ranks:
        among = (places <= rank).double().where(~places.isnan(), torch.nan)
        scores[f"hit rate@{rank}"][chosen] = among[:, 0]
        scores[f"recall@{rank}"][chosen] = among.nanmean(1)
