"""Scores of tasks as sums over images, from which those of resampled images and of each class follow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.ops import box_iou

from modeling_radio.metrics.dense import (
    IGNORE_INDEX,
    class_sums,
    depth_errors,
    depth_sums,
    mean_iou_of_sums,
    pixel_accuracy_of_sums,
)


CALIBRATION_BINS = 15
"""As in Guo et al., On calibration of modern neural networks, https://arxiv.org/abs/1706.04599."""
THRESHOLD = 0.5
"""Classes above this probability are predicted where an image may have several, as in torchmetrics."""
RECALLS = torch.linspace(0, 1, 101).double()
"""Recalls at which COCO reads the precision, rounded to float32 as torchmetrics has them."""
OVERLAPS = torch.linspace(0.5, 0.95, 10).double()
"""Intersections over union from which COCO takes an object as found, rounded in the same way."""
MOST_NUMBERS = 4_000_000
"""Our choice: numbers of a class that are in memory at once, 32 MB each time."""
MOST_OBJECTS = 100
"""Objects of a class and an image that count in COCO, the most certain ones."""


class Tally(ABC):
    """Scores of one task, over any number of images, in batches.

    Attributes:
        constant_name: The answer of `constant` in words; empty where there is none.
        limits: Smallest and largest possible score.
    """

    constant_name: ClassVar[str] = ""
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @abstractmethod
    def add(self, predictions: Any, references: Any) -> None:
        """Add a batch in the format of the task, one entry of both for each image."""

    @property
    @abstractmethod
    def num_images(self) -> int:
        """Number of images so far."""

    @abstractmethod
    def compute(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the scores of resampled images by name.

        Args:
            weights: Number of times of each image in each draw, float64 `(num_draws, num_images)`.

        Returns:
            `(num_draws,)` each; NaN where a score is not defined.
        """

    def constant(self) -> dict[str, float]:
        """Return the scores of the best answer that is the same for all images; none where that is not known."""
        return {}

    def by_class(self) -> dict[str, Tensor]:
        """Return numbers of each class by name, `(num_classes,)`; NaN where one is not defined."""
        return {}

    def once(self) -> dict[str, float]:
        """Return the scores with each image once."""
        return {name: float(value) for name, value in self.compute(self._one_draw()).items()}

    def _one_draw(self) -> Tensor:
        return torch.ones(1, self.num_images, dtype=torch.float64)


class ClassTally(Tally):
    """One class an image: logits `(batch, num_classes)`, and ids.

    The calibration error is the expected difference between the certainty of the best class and how often it is right.

    Args:
        num_classes: Number of classes.
        temperature: Divides the logits before the softmax.
    """

    constant_name = "always the most frequent class"

    def __init__(self, num_classes: int, temperature: float = 1.0):
        self.num_classes, self.temperature = num_classes, temperature
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch."""
        certainty = (predictions / self.temperature).softmax(dim=1).amax(dim=1)
        self._batches.append((predictions.argmax(dim=1), certainty, references))

    @property
    def num_images(self) -> int:
        return sum(len(each) for _, _, each in self._batches)

    def compute(self, weights: Tensor) -> dict[str, Tensor]:
        predicted, certainty, true = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        is_right = predicted == true
        counts = self._counts(weights, predicted, true)
        rates, is_true = _rates(counts), counts["true"] > 0
        occurs = is_true | (counts["predicted"] > 0)
        return {
            "accuracy": counts["right"].sum(1) / counts["true"].sum(1),
            # As scikit-learn: over the classes of images; its F1 also has those that are only predicted.
            "balanced_accuracy": (rates["recall"] * is_true).sum(1) / is_true.sum(1),
            "f1": (rates["f1"] * occurs).sum(1) / occurs.sum(1),
            "calibration_error": calibration_error(weights, certainty, is_right),
        }

    def _counts(self, weights: Tensor, predicted: Tensor, true: Tensor) -> dict[str, Tensor]:
        def of_classes(values: Tensor, classes: Tensor) -> Tensor:
            return weights.new_zeros(len(weights), self.num_classes).index_add_(1, classes, values)

        right = of_classes(weights * (predicted == true), true)
        return {"right": right, "true": of_classes(weights, true), "predicted": of_classes(weights, predicted)}

    def constant(self) -> dict[str, float]:
        true = torch.cat([each for _, _, each in self._batches])
        frequencies = true.bincount(minlength=self.num_classes)
        other = ClassTally(self.num_classes)
        certainty = torch.full(true.shape, float(frequencies.max()) / len(true))
        other._batches = [(frequencies.argmax().expand(len(true)), certainty, true)]
        return other.once()

    def by_class(self) -> dict[str, Tensor]:
        predicted, _, true = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        counts = self._counts(self._one_draw(), predicted, true)
        rates = {name: values[0].where(counts["true"][0] > 0, math.nan) for name, values in _rates(counts).items()}
        return {"images": counts["true"][0], **rates}


class LabelTally(Tally):
    """Any number of classes an image: probabilities, and 0 or 1, both `(batch, num_classes)`.

    Means are over the classes that occur, as `MultiLabelScore` of tuning has them.
    """

    constant_name = "always the frequencies of the classes"

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch."""
        self._batches.append((predictions, references.bool()))

    @property
    def num_images(self) -> int:
        return sum(len(each) for each, _ in self._batches)

    def compute(self, weights: Tensor) -> dict[str, Tensor]:
        scores, truths = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        num_classes = scores.shape[1]
        gaps = calibration_error(weights.repeat_interleave(num_classes, 1), scores.flatten(), truths.flatten())
        each = self._of_classes(weights)
        means = {"mean_average_precision": each["average_precision"].nanmean(1), "f1": each["f1"].nanmean(1)}
        return {**means, "calibration_error": gaps}

    def _of_classes(self, weights: Tensor) -> dict[str, Tensor]:
        """Return numbers of each class and draw, `(num_draws, num_classes)`; NaN where no image has the class."""
        scores, truths = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        found = (scores > THRESHOLD).double()
        counts = {"right": weights @ (found * truths), "true": weights @ truths.double(), "predicted": weights @ found}
        precisions = [average_precision(weights, *each) for each in zip(scores.T, truths.T, strict=True)]
        numbers = {"average_precision": torch.stack(precisions, dim=1), **_rates(counts)}
        return {name: values.where(counts["true"] > 0, math.nan) for name, values in numbers.items()}

    def constant(self) -> dict[str, float]:
        truths = torch.cat([each for _, each in self._batches])
        other = LabelTally()
        other.add(truths.float().mean(dim=0).expand(truths.shape), truths)
        return other.once()

    def by_class(self) -> dict[str, Tensor]:
        truths = torch.cat([each for _, each in self._batches])
        numbers = self._of_classes(self._one_draw())
        return {"images": truths.sum(0), **{name: values[0] for name, values in numbers.items()}}


class NumberTally(Tally):
    """A measured number an image: predictions and references `(batch,)`."""

    constant_name = "always the mean value"
    limits = (0.0, math.inf)

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch."""
        self._batches.append((predictions.double(), references.double()))

    @property
    def num_images(self) -> int:
        return sum(len(each) for each, _ in self._batches)

    def compute(self, weights: Tensor) -> dict[str, Tensor]:
        predicted, true = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        return {"mean_absolute_error": weights @ (predicted - true).abs() / weights.sum(1)}

    def constant(self) -> dict[str, float]:
        true = torch.cat([each for _, each in self._batches])
        return {"mean_absolute_error": float((true - true.mean()).abs().mean())}


class PixelTally(Tally):
    """A class for each pixel: ids `(batch, height, width)`.

    Args:
        num_classes: Number of classes.
        ignore_index: See `ConfusionMatrix`.
    """

    constant_name = "always the most frequent class"

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX):
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self._sums: list[Tensor] = []

    def add(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch."""
        for image in zip(predictions, references, strict=True):
            self._sums.append(class_sums(*image, self.num_classes, self.ignore_index))

    @property
    def num_images(self) -> int:
        return len(self._sums)

    def compute(self, weights: Tensor) -> dict[str, Tensor]:
        return self._scores(weights @ torch.stack(self._sums).double())

    def _scores(self, sums: Tensor) -> dict[str, Tensor]:
        return {
            "mean_iou": mean_iou_of_sums(sums, self.ignore_index),
            "pixel_accuracy": pixel_accuracy_of_sums(sums),
        }

    def constant(self) -> dict[str, float]:
        _, true, _ = torch.stack(self._sums).sum(0).double().unflatten(0, (3, -1))
        predicted = torch.zeros_like(true)
        predicted[true.argmax()] = true.sum()
        sums = torch.cat([torch.minimum(true, predicted), true, predicted])
        return {name: float(value) for name, value in self._scores(sums).items()}

    def by_class(self) -> dict[str, Tensor]:
        right, true, predicted = torch.stack(self._sums).sum(0).double().unflatten(0, (3, -1))
        return {"share_of_pixels": true / true.sum(), "iou": right / (true + predicted - right), "recall": right / true}


class DepthTally(Tally):
    """Meters for each pixel, `(batch, height, width)`; 0 in references where the depth is not known."""

    constant_name = "always the mean depth"
    limits = (0.0, math.inf)

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._total = torch.zeros(2, dtype=torch.float64)  # meters and pixels

    def add(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch."""
        for image in zip(predictions, references, strict=True):
            self._sums.append(depth_sums(*image))
        known = references[references > 0].double()
        self._total += torch.stack([known.sum(), known.new_tensor(known.numel())])

    @property
    def num_images(self) -> int:
        return len(self._sums)

    @property
    def mean_depth(self) -> float:
        """Mean of all known depths in meters."""
        return float(self._total[0] / self._total[1])

    def compute(self, weights: Tensor) -> dict[str, Tensor]:
        return depth_errors(weights @ torch.stack(self._sums))


class ObjectTally(Tally):
    """Objects with classes, boxes and masks: mean average precision and recall as COCO defines them.

    Args:
        num_classes: Number of classes.
        kinds: Prefixes of the scores, keys of `KINDS`.

    References:
        `COCOeval` of pycocotools, of which the sizes of objects and crowds are left out.
    """

    def __init__(self, num_classes: int, kinds: Sequence[str] = ("",)):
        self.num_classes, self.kinds = num_classes, kinds
        self._truths: list[Tensor] = []  # (num_classes,) of each image
        self._found: list[dict[str, Tensor]] = []

    def add(self, predictions: Sequence[Mapping[str, Tensor]], references: Sequence[Mapping[str, Tensor]]) -> None:
        """Add a batch: for each image the predicted and the true objects, as torchmetrics takes them.

        Args:
            predictions: `labels`, `scores`, `boxes` (left, top, right, bottom), and `masks` for that kind.
            references: The same without scores.
        """
        for found, true in zip(predictions, references, strict=True):
            self._add_image(found, true)

    def _add_image(self, found: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> None:
        kept, true_classes = _most_certain(found["labels"], found["scores"]), true["labels"]
        classes, scores = found["labels"][kept], found["scores"][kept]
        hits = {kind: match(classes, true_classes, KINDS[kind](found, true)[kept]) for kind in self.kinds}
        image = torch.full((len(classes),), len(self._truths))
        self._truths.append(true_classes.bincount(minlength=self.num_classes))
        self._found.append({"classes": classes, "scores": scores.double(), "images": image, **hits})

    @property
    def num_images(self) -> int:
        return len(self._truths)

    def compute(self, weights: Tensor) -> dict[str, Tensor]:
        scores: dict[str, Tensor] = {}
        for kind in self.kinds:
            precision, recall = self._of_classes(weights, kind)
            first, third = precision[..., 0], precision[..., OVERLAPS.sub(0.75).abs().argmin()]
            named = {"map": precision.mean(2), "map_50": first, "map_75": third, "mar_100": recall.mean(2)}
            scores |= {f"{kind}{name}": values.nanmean(1) for name, values in named.items()}
        return scores

    def by_class(self) -> dict[str, Tensor]:
        numbers = {"objects": torch.stack(self._truths).sum(0)}
        for kind in self.kinds:
            precision = self._of_classes(self._one_draw(), kind)[0][0]
            numbers |= {f"{kind}average_precision": precision.mean(1), f"{kind}average_precision_50": precision[:, 0]}
        return numbers

    def _of_classes(self, weights: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """Return precision and recall, `(num_draws, num_classes, num_overlaps)`; NaN for classes without an object."""
        found = {name: torch.cat([each[name] for each in self._found]) for name in self._found[0]}
        num_truths = weights @ torch.stack(self._truths).double()
        shape = (*num_truths.shape, len(OVERLAPS))
        precision, recall = (torch.full(shape, math.nan, dtype=torch.float64) for _ in range(2))
        for number in torch.stack(self._truths).sum(0).nonzero().flatten().tolist():
            chosen = (found["classes"] == number).nonzero().flatten()
            chosen = chosen[found["scores"][chosen].argsort(descending=True, stable=True)]
            right = found[kind][chosen].any(dim=1).nonzero().flatten()
            chosen = (
                chosen[: int(right[-1]) + 1] if len(right) else chosen[:1]
            )  # those after the last hit change nothing
            times, truths = weights[:, found["images"][chosen]], num_truths[:, number]
            at_once = max(MOST_NUMBERS // max(times.numel(), 1), 1)
            parts = [interpolated_precision(times, hits, truths) for hits in found[kind][chosen].split(at_once, dim=1)]
            precision[:, number], recall[:, number] = (torch.cat(each, 1) for each in zip(*parts, strict=True))
        return precision, recall


def mask_iou(masks: Tensor, others: Tensor) -> Tensor:
    """Return the intersections over union of boolean masks `(count, height, width)`; 0 for two empty ones."""
    one, other = masks.flatten(1).double(), others.flatten(1).double()
    shared = one @ other.T
    return shared / (one.sum(1)[:, None] + other.sum(1) - shared).clamp(min=1)


KINDS: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]] = {
    "": lambda found, true: box_iou(found["boxes"], true["boxes"]),
    "mask_": lambda found, true: mask_iou(found["masks"], true["masks"]),
}
"""Intersections over union of predicted and true objects: of boxes and of masks."""


def _rates(counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return precision, recall and F1 from counts of right, true and predicted images; 0 for 0 of 0."""
    right, true, predicted = counts["right"], counts["true"], counts["predicted"]
    return {
        "precision": right / predicted.clamp(min=1),
        "recall": right / true.clamp(min=1),
        "f1": 2 * right / (true + predicted).clamp(min=1),
    }


def calibration_error(weights: Tensor, certainty: Tensor, is_right: Tensor) -> Tensor:
    """Return the expected calibration error of each draw, `(num_draws,)`.

    Args:
        weights: Number of times of each prediction, `(num_draws, num_predictions)`.
        certainty: Probability of each prediction, in [0, 1].
        is_right: Whether it is right.

    References:
        Guo et al., On calibration of modern neural networks, equation 3. https://arxiv.org/abs/1706.04599
    """
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = torch.bucketize(certainty.float(), edges, right=True) - 1
    gaps = weights * (is_right.double() - certainty.double())
    sums = weights.new_zeros(len(weights), CALIBRATION_BINS + 1).index_add_(1, bins, gaps)
    return sums.abs().sum(1) / weights.sum(1)


def average_precision(weights: Tensor, scores: Tensor, truths: Tensor) -> Tensor:
    """Return the mean precision over recall of each draw, weighted by each gain of recall, as scikit-learn defines it.

    Args:
        weights: Number of times of each image, `(num_draws, num_images)`.
        scores: Scores of one class, `(num_images,)`.
        truths: Whether an image has the class.
    """
    scores, order = scores.sort(descending=True, stable=True)
    times = weights[:, order]
    is_end = torch.cat([scores.diff() != 0, torch.ones(1, dtype=torch.bool)])  # equal scores have one threshold
    hits, total = (times * truths[order]).cumsum(1), times.cumsum(1)
    recall = hits[:, is_end] / hits[:, -1:].clamp(min=1)
    gains = recall.diff(prepend=torch.zeros(len(recall), 1, dtype=recall.dtype))
    return (gains * hits[:, is_end] / total[:, is_end].clamp(min=1)).sum(1)


def _most_certain(classes: Tensor, scores: Tensor) -> Tensor:
    """Return the indices of the most certain objects of each class, in the order of their scores."""
    order = scores.argsort(descending=True, stable=True)
    order = order[classes[order].argsort(stable=True)]
    _, counts = classes[order].unique_consecutive(return_counts=True)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[rank < MOST_OBJECTS]


def match(classes: Tensor, true_classes: Tensor, overlaps: Tensor) -> Tensor:
    """Return whether each predicted object is right at each of `OVERLAPS`, boolean `(num_predictions, num_overlaps)`.

    The most certain objects are first to take the true object that they overlap most.

    Args:
        classes: Ids of predicted objects, those of a class in the order of their scores, `(num_predictions,)`.
        true_classes: Ids of the true objects, `(num_objects,)`.
        overlaps: Intersections over union, `(num_predictions, num_objects)`.
    """
    hits = torch.zeros(len(classes), len(OVERLAPS), dtype=torch.bool)
    free = torch.ones(len(OVERLAPS), len(true_classes), dtype=torch.bool)
    own = overlaps.double().masked_fill(classes[:, None] != true_classes, -1.0)
    candidates = (own >= OVERLAPS[0]).any(dim=1).nonzero().flatten().tolist() if len(true_classes) else []
    for row in candidates:
        best, index = own[row].where(free, -1.0).max(dim=1)
        hits[row] = best >= OVERLAPS
        free[hits[row], index[hits[row]]] = False
    return hits


def interpolated_precision(times: Tensor, hits: Tensor, num_truths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean precision at COCO's recalls, and the largest recall, `(num_draws, num_overlaps)`.

    Both are NaN in draws without an object.

    Args:
        times: Number of times of each predicted object, the most certain first, `(num_draws, num_predictions)`.
        hits: Whether each is right at some overlaps, `(num_predictions, num_overlaps)`.
        num_truths: True objects of each draw, `(num_draws,)`.
    """
    if not len(hits):
        none = torch.zeros(len(times), hits.shape[1], dtype=times.dtype).where(num_truths[:, None] > 0, math.nan)
        return none, none
    right = (times[:, None] * hits.T).cumsum(2)
    recall = right / num_truths.clamp(min=1)[:, None, None]
    precision = right / times.cumsum(1).clamp(min=1)[:, None]
    best = precision.flip(2).cummax(2).values.flip(2)
    padded = torch.cat([best, best.new_zeros(*best.shape[:2], 1)], dim=2)
    places = torch.searchsorted(recall, RECALLS.expand(*recall.shape[:2], -1).contiguous())
    numbers = (padded.gather(2, places).mean(2), recall[:, :, -1])
    mean, largest = (each.where(num_truths[:, None] > 0, math.nan) for each in numbers)
    return mean, largest
