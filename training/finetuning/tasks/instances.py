"""How boxes with classes and masks are read, scored and drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors

from modeling_radio import RadioForInstanceSegmentation
from modeling_radio.post_processing_radio import fill_run_lengths
from training.finetuning.data.augmentation import Sample
from training.finetuning.tasks.base import Score, with_file
from training.finetuning.tasks.detection import (
    METRICS,
    NO_OBJECT,
    DetectionScore,
    DetectionTask,
    read_objects,
    take_metrics,
)


MASK_STRIDE = 4  # of RF-DETR's mask head
MASK_METRICS = ("map", "map_50", "map_75", "mar_100")
ROW_SIZE = 6  # of a detection: corners, class and score


class InstanceSegmentationTask(DetectionTask):
    """Boxes with classes and masks.

    Predictions and references are the rows of `DetectionTask`, each followed by its mask of 0 and 1 at a quarter of the
    image's height and width, as the model predicts it: `(batch, num_rows, 6 + height / 4 * width / 4)`.
    """

    model_class = RadioForInstanceSegmentation
    best_metric = "mask_map"
    parts = (*DetectionTask.parts, "segmentation")

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of predicted masks."""
        height, width = self.size
        return height // MASK_STRIDE, width // MASK_STRIDE

    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        sample = super().read(row, where)
        where = with_file(where, row["image"])
        size = sample["image"].shape[-2:]
        outlines = read_objects(row["target"], where, "segmentation")
        if len(outlines) != len(sample["boxes"]):
            raise ValueError(f"The objects of {where} have {len(sample['boxes'])} boxes but {len(outlines)} outlines.")
        masks = [torch.from_numpy(decode_mask(outline, size, where)) for outline in outlines]
        return {**sample, "masks": tv_tensors.Mask(torch.stack(masks) if masks else torch.zeros(0, *size).byte())}

    def labels(self, sample: Sample) -> dict[str, Tensor]:
        return {**super().labels(sample), "masks": sample["masks"].as_subclass(Tensor)}

    def predicted_objects(self, outputs: Any) -> list[dict[str, Tensor]]:
        height, width = self.mask_size
        sizes = [self.mask_size] * len(outputs.logits)
        found = self.processor.post_process_instances(outputs, sizes, threshold=-1.0)
        sides = outputs.pred_boxes.new_tensor([width, height, width, height])
        return [{**image, "boxes": image["boxes"] / sides} for image in found]

    def true_objects(self, label: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**super().true_objects(label), "masks": _shrink(label["masks"], self.mask_size)}

    def build_score(self) -> Score:
        return InstanceSegmentationScore(self.size, self.mask_size)

    def _draw_objects(self, ax: Axes, image: Tensor, rows: Tensor) -> None:
        super()._draw_objects(ax, image, rows)
        height, width = image.shape[:2]
        for number, mask in zip(rows[:, 4].int().tolist(), unpack_masks(rows, self.mask_size).numpy(), strict=True):
            ax.imshow(
                np.ma.masked_equal(mask, 0),
                cmap=ListedColormap([f"C{number % 10}"]),
                alpha=0.5,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="nearest",
            )


class InstanceSegmentationScore(DetectionScore):
    """COCO's mean average precision of boxes and of masks, masks at the size at which they are predicted.

    As in COCO an object is small, medium or large by the area of its mask.
    """

    def __init__(self, size: tuple[int, int], mask_size: tuple[int, int]):
        from torchmetrics.detection import MeanAveragePrecision

        super().__init__(size)
        self.metric = MeanAveragePrecision(iou_type=("bbox", "segm"), sync_on_compute=False)
        self.mask_size = mask_size

    def _unpack(self, rows: Tensor) -> dict[str, Tensor]:
        masks = unpack_masks(rows[rows[:, 4] != NO_OBJECT], self.mask_size)
        return {**super()._unpack(rows), "masks": masks, "area": masks.sum(dim=(1, 2)) * MASK_STRIDE**2}

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of `DetectionScore` for boxes, and some for masks, whose names begin with `mask_`."""
        result = self.metric.compute()
        masks = take_metrics(result, MASK_METRICS, "segm_")
        return {**take_metrics(result, METRICS, "bbox_"), **{f"mask_{name}": value for name, value in masks.items()}}


def decode_mask(segmentation: Any, size: Sequence[int], where: str) -> np.ndarray:
    """Return COCO's outline of an object as pixels.

    Args:
        segmentation: Polygons, lists of x, y, x, y, ... in pixels; or run lengths, `counts` and `size`; or JSON of
            either.
        size: Height and width of the image.
        where: Names the image in messages.

    Returns:
        0 and 1, `(height, width)`, uint8.

    Raises:
        ValueError: If the outline is none of these, or that of an image of another size, or its runs do not fill it.
    """
    try:
        outline: Any = json.loads(segmentation) if isinstance(segmentation, str) else segmentation
        if isinstance(outline, list):
            return _fill_polygons(outline, size)
        shape = tuple(outline["size"])
        if shape == tuple(size):
            return fill_run_lengths(outline["counts"], size).numpy()
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"An outline of {where} must be polygons of at least three points in the image or run lengths that fill "
            f"it, as in COCO, got {segmentation!r:.100}."
        ) from error
    sizes = [" x ".join(map(str, sides)) for sides in (shape, size)]
    raise ValueError(f"An outline of {where} has {sizes[0]:.40} pixels but its image {sizes[1]} (height x width).")


def _fill_polygons(polygons: list[Any], size: Sequence[int]) -> np.ndarray:
    from pycocotools import mask as coco_mask

    height, width = size
    if any(len(polygon) % 2 for polygon in polygons):
        raise ValueError("a point has no y")
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]  # two points would be taken for a box
    if not np.abs(np.concatenate(polygons)).max() <= 2 * max(size):  # pycocotools hangs on NaN
        raise ValueError("a point lies far outside of the image")
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


def unpack_masks(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the masks of rows as in `InstanceSegmentationTask`, `(num_rows, height, width)`, boolean."""
    return rows[:, ROW_SIZE:].unflatten(1, size).bool()


def _shrink(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks `(num_masks, height, width)` at another size: a pixel is in where at least half of its area is."""
    return F.interpolate(masks[None].float(), size, mode="area")[0] >= 0.5
