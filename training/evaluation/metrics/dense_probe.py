"""Linear probes of dense features: batch norm and a 1x1 convolution, as in the papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foundation.machine.timing import ProgressBar
from training.evaluation.metrics.confusion import IGNORE_INDEX


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
