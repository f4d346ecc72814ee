"""Scores of label maps and depth maps, and the linear probe on dense features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.timing import ProgressBar


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


DELTA = 1.25


class DepthScore:
    """Errors over all pixels with a depth.

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
        """Reset the metric."""
        self.sums = torch.zeros(4, dtype=torch.float64)


def depth_sums(predictions: Tensor, references: Tensor) -> Tensor:
    """Return what depth maps add to the errors, `(4,)`: relative and square errors, pixels within a factor, pixels.

    Args:
        predictions: Meters, of any shape.
        references: Meters, of the same shape; 0 where it is not known.
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


BATCH_SIZE = 16  # as in the papers

Batch = tuple[Tensor, Tensor]
"""Dense features `(batch, dim, rows, cols)`, and their targets `(batch, height, width)`."""


@dataclass(frozen=True)
class ProbeTraining:
    """How a probe is trained.

    Attributes:
        num_steps: Optimizer steps. 400 and the cosine decay are our choice for sets of some hundred images;
            the papers run 80k or 160k on ADE20k.
        learning_rate: Peak of AdamW without weight decay. The papers' 1e-3 tripled, for the short schedule.
        warmup_steps: Steps over which the rate rises from 0.
        schedule: How it falls to 0 after that.
        batch_size: Items per step.
        seed: Draws the initial weights and the batches.
    """

    num_steps: int = 400
    learning_rate: float = 3e-3
    warmup_steps: int = 0
    schedule: Literal["cosine", "linear"] = "cosine"
    batch_size: int = BATCH_SIZE
    seed: int = 0


class DenseProbe(nn.Sequential):
    """Batch norm and a 1x1 convolution: `(batch, dim, rows, cols)` to `(batch, num_outputs, rows, cols)`."""

    def __init__(self, dim: int, num_outputs: int, generator: torch.Generator):
        linear = nn.utils.skip_init(nn.Conv2d, dim, num_outputs, kernel_size=1)
        super().__init__(nn.BatchNorm2d(dim), linear)
        for parameter in linear.parameters():
            nn.init.normal_(parameter, std=0.01, generator=generator)


def fit_dense_probe(
    read: Callable[[Sequence[int]], Batch],
    num_items: int,
    num_outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    training: ProbeTraining | None = None,
    *,
    device: torch.device | str = "cpu",
) -> DenseProbe:
    """Train a probe; equal arguments give equal probes, whatever the global random state (on a GPU up to rounding).

    Args:
        read: Returns the features and targets of some items, by number; targets may be finer than the features.
        num_items: How many there are.
        num_outputs: Channels of the answer.
        loss: Of answers at the targets' resolution, `(batch, num_outputs, height, width)`, and the targets.
        training: How long and how fast; None for the defaults.
        device: Where it is trained; each batch is moved there. Initial weights and batches are the same anywhere.

    Returns:
        The trained probe in eval mode, on that device.
    """
    training = training or ProbeTraining()
    generator = torch.Generator().manual_seed(training.seed)
    dim = read([0])[0].shape[1]
    probe = DenseProbe(dim, num_outputs, generator).to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), training.learning_rate, weight_decay=0.0)
    rates = _schedule(optimizer, training)
    for _ in ProgressBar(range(training.num_steps), desc="probe", leave=False, disable=None):
        rows = torch.randint(num_items, (min(training.batch_size, num_items),), generator=generator)
        features, targets = (each.to(device) for each in read(rows.tolist()))
        value = loss(upsampled(probe(features), targets.shape[-2:]), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        rates.step()
    return probe.eval()


def _schedule(optimizer: torch.optim.Optimizer, training: ProbeTraining) -> torch.optim.lr_scheduler.LRScheduler:
    warmup_steps = training.warmup_steps
    rest = max(1, training.num_steps - warmup_steps)
    if training.schedule == "cosine":
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rest)
    else:
        falling = torch.optim.lr_scheduler.PolynomialLR(optimizer, rest)
    if not warmup_steps:
        return falling
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-6, total_iters=warmup_steps)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], [warmup_steps])


def upsampled(answers: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Return answers at another resolution, `(batch, num_outputs, *size)`."""
    return F.interpolate(answers, size, mode="bilinear", align_corners=False)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the cross-entropy over pixels but those of `IGNORE_INDEX`; 0 where all are.

    Args:
        logits: `(batch, num_classes, height, width)`.
        masks: Class indices, `(batch, height, width)`.
    """
    total = F.cross_entropy(logits, masks.long(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (masks != IGNORE_INDEX).sum().clamp(min=1)


def log_depth_loss(logs: Tensor, depth: Tensor) -> Tensor:
    """Return the mean absolute error of the logarithm of depth over pixels that have one; 0 where none has.

    Our choice of a loss: relative errors count alike near and far, as in the metrics.

    Args:
        logs: Predicted logarithms, `(batch, 1, height, width)`.
        depth: Meters, `(batch, height, width)`; 0 where it is not known.
    """
    is_known = depth > 0
    error = (logs[:, 0] - depth.clamp(min=1e-6).log()).abs()
    return (error * is_known).sum() / is_known.sum().clamp(min=1)
