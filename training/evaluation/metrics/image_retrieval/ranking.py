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

    Returns:
        By name, one number in [0, 1] for each query, `(num_queries,)`, NaN for those without a relevant image. Of
        images that are equally alike the relevant ones come first.
    """
    order = gallery_labels.argsort(stable=True)
    sorted_gallery, sorted_labels = F.normalize(gallery[order], dim=1), gallery_labels[order].contiguous()
    scores = {name: torch.full((len(queries),), torch.nan, dtype=torch.float64) for name in _names(ranks)}
    for label in query_labels.unique():
        own = slice(*(int(torch.searchsorted(sorted_labels, label, right=right)) for right in (False, True)))
        num_relevant = own.stop - own.start - leave_one_out
        rows = (query_labels == label).nonzero().flatten()
        for chosen in rows.split(max(1, MAX_SIMILARITIES // len(gallery))) if num_relevant > 0 else ():
            similarity = F.normalize(queries[chosen], dim=1) @ sorted_gallery.T
            if leave_one_out:
                similarity[torch.arange(len(chosen)), order.argsort()[chosen]] = -torch.inf
            places = _ranks_of_relevant(similarity, own, num_relevant)
            _fill(scores, chosen, places, ranks)
    return scores


def _names(ranks: Sequence[int]) -> list[str]:
    return ["mAP", *(f"{name}@{rank}" for rank in ranks for name in ("hit rate", "recall"))]


def _ranks_of_relevant(similarity: Tensor, own: slice, num_relevant: int) -> Tensor:
    """Return the ranks of the relevant images, ascending and from 1, `(num_queries, num_relevant)`.

    Args:
        similarity: With the whole gallery, `(num_queries, num_gallery)`.
        own: Columns of the relevant images, and of the query itself, which has no similarity.
        num_relevant: How many they are without the query.
    """
    values = similarity.cpu().numpy()
    # Sorting values alone is several times faster than sorting images by them.
    relevant = np.sort(values[:, own], axis=1)[:, ::-1][:, :num_relevant]
    others = np.sort(np.delete(values, np.s_[own.start : own.stop], axis=1), axis=1)
    above = [len(row) - np.searchsorted(row, found, side="right") for row, found in zip(others, relevant, strict=True)]
    return torch.from_numpy(np.stack(above) + np.arange(1, num_relevant + 1))


def _fill(scores: dict[str, Tensor], chosen: Tensor, places: Tensor, ranks: Sequence[int]) -> None:
    """Write the scores of some queries, given the ranks of what is relevant to them."""
    count = torch.arange(1, places.shape[1] + 1, dtype=torch.float64)
    scores["mAP"][chosen] = (count / places).mean(1)
    for rank in ranks:
        among = (places <= rank).double()
        scores[f"hit rate@{rank}"][chosen] = among[:, 0]
        scores[f"recall@{rank}"][chosen] = among.mean(1)
