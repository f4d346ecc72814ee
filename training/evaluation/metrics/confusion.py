"""Mean intersection over union and pixel accuracy of class maps, both from one confusion matrix."""

import torch
from torch import Tensor


IGNORE_INDEX = 255
"""Mask value that neither trains nor counts (the convention of ADE20k and VOC)."""


class ConfusionMatrix:
    """How many pixels of each true class were predicted as each class, over any number of batches.

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

        A class that neither the references nor the predictions contain is left out of the mean; it is NaN without any.
        """
        counts = self.counts.double()
        intersection = counts.diag()
        iou = intersection / (counts.sum(dim=0) + counts.sum(dim=1) - intersection)
        is_averaged = torch.arange(self.num_classes) != self.ignore_index
        accuracy = intersection.sum() / counts.sum().clamp(min=1)
        return {"mean_iou": iou[is_averaged].nanmean(), "pixel_accuracy": accuracy}

    def reset(self) -> None:
        """Reset all counts to 0."""
        self.counts = torch.zeros(self.num_classes, self.num_classes, dtype=torch.long)


def class_sums(predictions: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """Return what images add to the mean IoU, int64 `(3 * num_classes,)`: pixels right, true and predicted by class.

    Args:
        predictions: Class indices of any shape.
        masks: Class indices of the same shape; `IGNORE_INDEX` is skipped.
        num_classes: Classes including background.
    """
    confusion = ConfusionMatrix(num_classes)
    confusion.update(predictions, masks)
    return torch.cat([confusion.counts.diag(), confusion.counts.sum(1), confusion.counts.sum(0)])


def mean_iou_of_sums(sums: Tensor) -> Tensor:
    """Return the mean IoU, `(...)`, of sums of `class_sums`, `(..., 3 * num_classes)`; see `ConfusionMatrix`."""
    right, true, predicted = sums.double().unflatten(-1, (3, -1)).unbind(-2)
    return (right / (true + predicted - right)).nanmean(-1)


def pixel_accuracy_of_sums(sums: Tensor) -> Tensor:
    """Return the share of pixels that are right, `(...)`, of sums of `class_sums`."""
    right, true, _ = sums.double().unflatten(-1, (3, -1)).unbind(-2)
    return right.sum(-1) / true.sum(-1)


def mean_iou(predictions: Tensor, masks: Tensor, num_classes: int) -> float:
    """Return the mean intersection over union in [0, 1]; see `ConfusionMatrix`, and `class_sums` for the arguments."""
    return mean_iou_of_sums(class_sums(predictions, masks, num_classes)).item()
