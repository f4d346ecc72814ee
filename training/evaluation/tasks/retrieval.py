"""Finding images by an image, and images and texts by each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model_cards.results import Measurement
from training.evaluation.features import Wanted
from training.evaluation.metrics.knn import nearest_neighbors
from training.evaluation.metrics.ranking import retrieval_scores
from training.evaluation.models.base import FeatureModel, TextModel
from training.evaluation.tasks.base import Evaluation, summary_or_mean
from training.evaluation.tasks.classification import labels_of


def measure_image_retrieval(evaluation: Evaluation) -> list[Measurement]:
    """Measure how well the images of a class are found by each of them: mean average precision, hits and recall.

    Queries whose class has no other image are left out. Without a train split images of one source do not count as
    found by each other.
    """
    part = evaluation.part("labels")
    is_alone = part.train is None
    queries = summary_or_mean(evaluation.features("labels"))
    gallery = queries if is_alone else summary_or_mean(evaluation.features("labels", "gallery"))
    scores = retrieval_scores(
        queries,
        labels_of(part.test),
        gallery,
        labels_of(part.gallery),
        ranks=evaluation.settings.recall_at,
        leave_one_out=is_alone,
        groups=part.test.groups,
    )
    is_defined = ~scores["mAP"].isnan()
    if not is_defined.any():
        raise ValueError(
            "`data` must have two images of one class, of different sources, for image_retrieval, got none. Leave the "
            "task out."
        )
    groups = None if part.test.groups is None else part.test.groups[is_defined]
    return [
        evaluation.mean("image_retrieval", metric, values[is_defined], "labels", groups)
        for metric, values in scores.items()
    ]


def text_space(model: FeatureModel) -> Wanted:
    """Return that the adaptor is wanted whose summary lives in the space of texts."""
    adaptor = text_model(model, "image_text_retrieval").text_adaptor
    return Wanted() if adaptor is None else Wanted(adaptors=frozenset([adaptor]))


def text_model(model: FeatureModel, task: str) -> TextModel:
    """Return a model as one that knows texts.

    Raises:
        ValueError: If it does not.
    """
    if not isinstance(model, TextModel):
        raise ValueError(
            f"`{task}` needs a text tower in the checkpoint (conversion.from_nvidia --text-tower), which "
            f"{model.name!r} does not have. Leave the task out."
        )
    return model


def measure_image_text_retrieval(evaluation: Evaluation) -> list[Measurement]:
    """Measure whether images find one of their captions, and captions their image, among the first ones."""
    model = text_model(evaluation.model, "image_text_retrieval")
    captions = evaluation.part("captions").test.captions
    assert captions is not None  # the part's kind says so
    images = evaluation.features("captions").summary(model.text_adaptor)
    if images is None:
        raise ValueError(f"`image_text_retrieval` needs a summary, which {evaluation.model.name!r} does not have.")
    texts = model.embed_texts([text for several in captions for text in several])
    owners = torch.tensor([image for image, several in enumerate(captions) for _ in several])
    own = torch.arange(len(images))
    ranks = evaluation.settings.recall_at
    groups = evaluation.part("captions").test.groups
    sources = own if groups is None else groups  # several captions of one image are of one source
    return [
        evaluation.mean("image_text_retrieval", f"{direction} {metric}", scores, "captions", resampled)
        for direction, found, resampled in (
            ("image to text", pair_scores(images, own, texts, owners, ranks), sources),
            ("text to image", pair_scores(texts, owners, images, own, ranks), sources[owners]),
        )
        for metric, scores in found.items()
    ]


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
