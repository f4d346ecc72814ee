"""Semantic segmentation for the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from tqdm.auto import tqdm

from modeling_radio import RadioForSemanticSegmentation
from training.evaluation.segmentation_probe import IGNORE_INDEX
from training.finetuning.augmentation import Sample
from training.finetuning.class_weights import choose_weights
from training.finetuning.settings import FinetuneSettings
from training.finetuning.sources import LabelledImages
from training.finetuning.task import Batch, FinetuningTask, Score, require_same_size


MAX_COUNTED_MASKS = 500  # our choice: enough for shares of classes to a percent, and seconds to read


class SegmentationTask(FinetuningTask):
    """A class for each pixel; 255 neither trains nor counts."""

    model_class = RadioForSemanticSegmentation
    best_metric = "mean_iou"

    def __init__(self, settings: FinetuneSettings, images: LabelledImages):
        super().__init__(settings, images)
        if not self.class_names:
            self.class_names = tuple(f"class {number}" for number in range(self._largest_id() + 1))

    def config_fields(self) -> dict[str, Any]:
        fields = {**super().config_fields(), "semantic_loss_ignore_index": IGNORE_INDEX}
        if self.settings.class_weights is not None:
            fields["class_weights"] = choose_weights(self.settings.class_weights, self.class_names, self._count_pixels)
        return fields

    def _largest_id(self) -> int:
        rows = cast("Iterable[dict[str, Any]]", tqdm(self.images.train, desc="classes", leave=False))
        masks = (self._read_mask(row["target"]) for row in rows)
        return max(int(mask[mask != IGNORE_INDEX].max()) for mask in masks if (mask != IGNORE_INDEX).any())

    def _count_pixels(self) -> Tensor:
        counted = self.images.train.select(range(min(len(self.images.train), MAX_COUNTED_MASKS)))
        rows = cast("Iterable[dict[str, Any]]", tqdm(counted, desc="class weights", leave=False))
        counts = torch.zeros(IGNORE_INDEX + 1, dtype=torch.long)
        for row in rows:
            counts += self._read_mask(row["target"]).flatten().bincount(minlength=len(counts))
        return counts[: len(self.class_names)]

    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        image, mask = self.read_image(row["image"], where), self._read_mask(row["target"])
        if mask.ndim != 2:
            raise ValueError(
                f"The mask of {where} has colours, shape {tuple(mask.shape)}: masks are PNGs with a palette or grey "
                "levels whose values are class ids."
            )
        require_same_size(image, mask, where, "mask")
        labelled = mask[mask != IGNORE_INDEX]
        if labelled.numel() and (largest := int(labelled.max())) >= len(self.class_names):
            raise ValueError(
                f"The mask of {where} has the id {largest}, but there are {len(self.class_names)} classes (ids 0 to "
                f"{len(self.class_names) - 1}; {IGNORE_INDEX} is ignored): give all `classes`."
            )
        return {"image": image, "mask": tv_tensors.Mask(mask)}

    @staticmethod
    def _read_mask(picture: Any) -> Tensor:
        return torch.from_numpy(np.asarray(picture).astype(np.int64))

    def labels(self, sample: Sample) -> Tensor:
        return sample["mask"].as_subclass(Tensor)

    def compare(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        size = batch["labels"].shape[-2:]
        logits = F.interpolate(outputs.logits.float(), size, mode="bilinear", align_corners=False)
        return logits.argmax(dim=1), batch["labels"]

    def build_score(self) -> Score:
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

        options = {"num_classes": len(self.class_names), "ignore_index": IGNORE_INDEX, "sync_on_compute": False}
        return MetricCollection(
            {
                "mean_iou": MulticlassJaccardIndex(average="macro", **options),
                "pixel_accuracy": MulticlassAccuracy(average="micro", **options),
            }
        )

    def draw(self, axes: Sequence[Axes], image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        colors = ListedColormap([_color(number) for number in range(len(self.class_names))])
        for ax, mask, title in zip(axes, (reference, prediction), ("truth", "prediction"), strict=True):
            ax.imshow(image.numpy())
            shown = np.ma.masked_equal(mask.numpy(), IGNORE_INDEX)
            ax.imshow(
                shown, cmap=colors, vmin=-0.5, vmax=len(self.class_names) - 0.5, alpha=0.5, interpolation="nearest"
            )
            ax.set_title(title, fontsize=7)


def _color(number: int) -> tuple[float, float, float]:
    """Return the colour of a class: VOC's palette, whose bits are spread over red, green and blue."""
    red = green = blue = 0
    for bit in range(8):
        red |= (number & 1) << (7 - bit)
        green |= ((number >> 1) & 1) << (7 - bit)
        blue |= ((number >> 2) & 1) << (7 - bit)
        number >>= 3
    return red / 255, green / 255, blue / 255
