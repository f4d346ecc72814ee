"""Whether images find their captions, and captions their image: by cosine, query by query."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from training.evaluation.metrics.knn_accuracy.votes import nearest_neighbors


def pair_scores(
    queries: Tensor, query_owners: Tensor, gallery: Tensor, gallery_owners: Tensor, ranks: Sequence[int]
) -> dict[str, Tensor]:
    """Return whether each query finds one of its own among its first `k`: images their captions, or the reverse.

    Args:
        queries: `(num_queries, dim)`.
        query_owners: The image that each query is or belongs to, `(num_queries,)`.
        gallery: `(num_gallery, dim)`.
        gallery_owners: The same of the gallery, `(num_gallery,)`.
        ranks: The numbers `k`; those beyond the gallery are cut to it.

    Returns:
        "recall@k" by name, `(num_queries,)` of 0 and 1.
    """
    most = min(max(ranks), len(gallery))
    is_own = gallery_owners[nearest_neighbors(queries, gallery, most).index] == query_owners[:, None]
    return {f"recall@{rank}": is_own[:, : min(rank, most)].any(1).double() for rank in ranks}
