"""Linear segmentation probe on frozen features: batch norm and a 1x1 convolution, as in the papers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from training.evaluation.metrics.mean_iou.confusion import IGNORE_INDEX, mean_iou


class SegmentationProbe(nn.Sequential):
    """Batch norm and a 1x1 convolution: `(batch, dim, rows, cols)` to `(batch, num_classes, rows, cols)`."""

    def __init__(self, dim: int, num_classes: int, generator: torch.Generator):
        classifier = nn.utils.skip_init(nn.Conv2d, dim, num_classes, kernel_size=1)
        super().__init__(nn.BatchNorm2d(dim), classifier)
        for parameter in classifier.parameters():
            nn.init.normal_(parameter, std=0.01, generator=generator)


def fit_segmentation_probe(
    features: Tensor,
    masks: Tensor,
    num_classes: int,
    *,
    num_steps: int = 400,
    learning_rate: float = 3e-3,
    batch_size: int = 16,
    seed: int = 0,
) -> SegmentationProbe:
    """Train a probe; equal arguments give equal probes, whatever the global random state.

    Args:
        features: Frozen features, `(num_images, dim, rows, cols)`.
        masks: Class indices, `(num_images, height, width)`; `IGNORE_INDEX` is skipped.
        num_classes: Classes including background.
        num_steps: Optimizer steps. 400 and the cosine decay are our choice for sets of some hundred images;
            the papers run 80k or 160k on ADE20k.
        learning_rate: Peak of AdamW without weight decay. The papers' 1e-3 tripled, for the short schedule.
        batch_size: Images per step, 16 as in the papers.
        seed: Draws the initial weights and the batches.

    Returns:
        The trained probe in eval mode.

    Raises:
        ValueError: If the numbers of features and masks differ or a mask value is out of range.
    """
    if len(features) != len(masks):
        raise ValueError(f"`masks` must be one for each of the {len(features)} feature maps, got {len(masks)}.")
    if (largest := int(masks[masks != IGNORE_INDEX].max())) >= num_classes:
        raise ValueError(f"`masks` must have classes below {num_classes}, got {largest}.")
    generator = torch.Generator().manual_seed(seed)
    probe = SegmentationProbe(features.shape[1], num_classes, generator)
    optimizer = torch.optim.AdamW(probe.parameters(), learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in trange(num_steps, desc="segmentation probe", leave=False, disable=None):
        rows = torch.randint(len(features), (min(batch_size, len(features)),), generator=generator)
        logits = _resized(probe(features[rows]), masks.shape[-2:])
        loss = F.cross_entropy(logits, masks[rows].long(), ignore_index=IGNORE_INDEX)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe.eval()


def _resized(logits: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def predict_masks(probe: nn.Module, features: Tensor, size: torch.Size, *, batch_size: int = 32) -> Tensor:
    """Return the likeliest class per pixel, `(num_images, *size)`, of `(num_images, dim, rows, cols)`."""
    return torch.cat([_resized(probe(rows), size).argmax(dim=1) for rows in features.split(batch_size)])


def segmentation_probe_miou(
    train_features: Tensor,
    train_masks: Tensor,
    test_features: Tensor,
    test_masks: Tensor,
    num_classes: int,
    *,
    num_steps: int = 400,
    seed: int = 0,
) -> float:
    """Fit a probe on one set and return its mean IoU on another; shapes as in `fit_segmentation_probe`."""
    probe = fit_segmentation_probe(train_features, train_masks, num_classes, num_steps=num_steps, seed=seed)
    predictions = predict_masks(probe, test_features, test_masks.shape[-2:])
    return mean_iou(predictions, test_masks, num_classes)
