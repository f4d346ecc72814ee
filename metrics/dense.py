"""Scores of class maps and depth maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


IGNORE_INDEX = 255
"""Mask value that neither trains nor counts (the convention of ADE20k and VOC)."""

DELTA = 1.25
"""Factor within which a depth counts as right in `delta1`."""


class ConfusionMatrix:
    """Counts of pixels by true and predicted class, over any number of batches.

    Intersections and unions are summed over all images before they are divided, as ADE20k and VOC do.

    Args:
        num_classes: Classes including background.
        ignore_index: Id of true pixels that do not count. If it is one of the classes, that class is left out of the
            mean, while predicting it elsewhere is still wrong.

    Attributes:
        counts: `(num_classes, num_classes)`, rows for true classes and columns for predicted ones.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX):
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.reset()

    def update(self, predictions: Tensor, references: Tensor) -> None:
        """Add pixels: predicted and true class indices on the CPU, two tensors of one shape."""
        counted = references != self.ignore_index
        pairs = references[counted].long() * self.num_classes + predictions[counted].long()
        self.counts += pairs.bincount(minlength=self.num_classes**2).reshape(self.counts.shape)

    def compute(self) -> dict[str, Tensor]:
        """Return `mean_iou` and `pixel_accuracy`, scalars in [0, 1].

        The mean leaves out classes that neither the references nor the predictions contain; it is NaN without any.
        """
        counts = self.counts.double()
        intersection = counts.diag()
        iou = intersection / (counts.sum(dim=0) + counts.sum(dim=1) - intersection)
        is_averaged = torch.arange(self.num_classes) != self.ignore_index
        accuracy = intersection.sum() / counts.sum().clamp(min=1)
        return {"mean_iou": iou[is_averaged].nanmean(), "pixel_accuracy": accuracy}

    def reset(self) -> None:
        """Set all counts to 0."""
        self.counts = torch.zeros(self.num_classes, self.num_classes, dtype=torch.long)


def class_sums(predictions: Tensor, masks: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return pixels that are right, true and predicted, by class: int64 `(3 * num_classes,)`.

    Args:
        predictions: Class indices of any shape.
        masks: Class indices of the same shape.
        num_classes: Classes including background.
        ignore_index: Id of true pixels that do not count.
    """
    confusion = ConfusionMatrix(num_classes, ignore_index)
    confusion.update(predictions, masks)
    return torch.cat([confusion.counts.diag(), confusion.counts.sum(1), confusion.counts.sum(0)])


def mean_iou_of_sums(sums: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return the mean IoU, `(...)`, of sums of `class_sums`, `(..., 3 * num_classes)`; see `ConfusionMatrix`."""
    right, true, predicted = sums.double().unflatten(-1, (3, -1)).unbind(-2)
    iou = right / (true + predicted - right)
    return iou[..., torch.arange(iou.shape[-1]) != ignore_index].nanmean(-1)


def pixel_accuracy_of_sums(sums: Tensor) -> Tensor:
    """Return the share of pixels that are right, `(...)`, of sums of `class_sums`."""
    right, true, _ = sums.double().unflatten(-1, (3, -1)).unbind(-2)
    return right.sum(-1) / true.sum(-1)


def normal_scores(predicted: Tensor, true: Tensor, is_known: Tensor, angles: Sequence[float]) -> Tensor:
    """Return for each image the shares of pixels whose normal is within each of some angles, `(batch, num_angles)`.

    Args:
        predicted: Directions of any length, `(batch, 3, height, width)`.
        true: Normals of the same shape.
        is_known: Pixels that count, bool `(batch, height, width)`.
        angles: Degrees.
    """
    cosines = torch.cosine_similarity(predicted.double(), true.double(), dim=1)
    errors = cosines.clamp(-1, 1).acos().rad2deg()
    count = is_known.sum((1, 2)).clamp(min=1)
    return torch.stack([((errors < angle) & is_known).sum((1, 2)) / count for angle in angles], dim=1).double()


class DepthScore:
    """Errors over all pixels with a depth, over any number of batches.

    References:
        abs_rel, rmse and delta1 as in Eigen et al., 2014, https://arxiv.org/abs/1406.2283.
    """

    def __init__(self) -> None:
        self.reset()

    def update(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch of depths in meters, `(batch, height, width)`."""
        self.sums += depth_sums(predictions, references)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean relative error, the root mean square error in meters and the share within a factor 1.25.

        All are NaN where no pixel has a depth.
        """
        return depth_errors(self.sums)

    def reset(self) -> None:
        """Set all sums to 0."""
        self.sums = torch.zeros(4, dtype=torch.float64)


def depth_sums(predictions: Tensor, references: Tensor) -> Tensor:
    """Return sums over pixels, `(4,)`: relative errors, square errors, pixels within the factor `DELTA`, pixels.

    Args:
        predictions: Meters, of any shape.
        references: Meters, of the same shape; 0 where the depth is not known.
    """
    valid = references > 0
    predicted, true = predictions[valid].double(), references[valid].double()
    ratio = torch.maximum(predicted / true, true / predicted.clamp(min=1e-6))
    parts = [((predicted - true).abs() / true).sum(), (predicted - true).square().sum(), (ratio < DELTA).sum()]
    return torch.stack([*parts, valid.sum()]).double().cpu()


def depth_errors(sums: Tensor) -> dict[str, Tensor]:
    """Return `abs_rel`, `rmse` and `delta1`, `(...)`, of sums of `depth_sums`, `(..., 4)`."""
    relative, square, within, count = sums.unbind(-1)
    return {"abs_rel": relative / count, "rmse": (square / count).sqrt(), "delta1": within / count}
