"""A model's answers on a validation set, image by image, as figures and thresholds of classes need them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """Answers that claim a class, each with its certainty, and whether it is right.

    Attributes:
        classes: Ids, `(num_answers,)`.
        scores: In [0, 1], `(num_answers,)`.
        hits: Booleans, `(num_answers,)`.
        num_truths: How often each class is there to be found, `(num_classes,)`.
    """

    classes: Tensor
    scores: Tensor
    hits: Tensor
    num_truths: Tensor

    def of_class(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the scores of a class, from the best down, and the hits among the answers down to each."""
        chosen = self.classes == number
        scores, order = self.scores[chosen].double().sort(descending=True, stable=True)
        return scores, self.hits[chosen][order].cumsum(0)

    def occurring(self) -> Iterator[int]:
        """Return the classes that are there to be found."""
        yield from self.num_truths.nonzero().flatten().tolist()


@dataclass(frozen=True)
class Evidence:
    """Of some images.

    Attributes:
        errors: How wrong each answer is, `(num_images,)`; more is worse.
        ranking: Of tasks whose answers claim classes.
        confusion: Answers of each class for each true one, `(num_classes, num_classes)`, rows for true ones.
    """

    errors: Tensor
    ranking: Ranking | None = None
    confusion: Tensor | None = None


def join(batches: Iterable[Evidence]) -> Evidence:
    """Return the evidence of several batches of one task as one; of confusions no more than their sum is kept."""
    parts, confusion = [], None
    for batch in batches:
        if batch.confusion is not None:
            confusion = batch.confusion if confusion is None else confusion + batch.confusion
        parts.append(replace(batch, confusion=None))
    rankings = [part.ranking for part in parts if part.ranking is not None]
    ranking = None
    if rankings:
        joined = {name: torch.cat([getattr(each, name) for each in rankings]) for name in ("classes", "scores", "hits")}
        ranking = Ranking(**joined, num_truths=torch.stack([each.num_truths for each in rankings]).sum(0))
    return Evidence(torch.cat([part.errors for part in parts]), ranking, confusion)


def rank_classes(scores: Tensor, truths: Tensor, most: int | None = None) -> Ranking:
    """Return the ranking of images that are scored for every class.

    Args:
        scores: In [0, 1], `(num_images, num_classes)`.
        truths: Whether an image has a class, of the same shape.
        most: Keep so many of the most probable classes of an image.
    """
    num_classes = scores.shape[1]
    kept, classes = scores.topk(min(most or num_classes, num_classes), dim=1)
    hits = truths.bool().gather(1, classes)
    return Ranking(classes.flatten(), kept.flatten(), hits.flatten(), truths.long().sum(0))


def count_confusion(predicted: Tensor, true: Tensor, num_classes: int) -> Tensor:
    """Return how often each class was predicted for each true one, from ids of one shape."""
    pairs = true.flatten().long() * num_classes + predicted.flatten().long()
    return pairs.bincount(minlength=num_classes**2).unflatten(0, (num_classes, num_classes))
