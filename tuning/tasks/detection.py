"""Tasks of objects: boxes with classes, with and without masks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision import tv_tensors
from torchvision.ops import box_convert, box_iou

from modeling_radio import RadioConfig, RadioForInstanceSegmentation, RadioForObjectDetection, RadioPreTrainedModel
from modeling_radio.checks_radio import Resolution
from modeling_radio.data.labeled.images import BOXES, OUTLINES, LabeledImages
from modeling_radio.data.labeled.labels import (
    class_ids,
    name_classes,
    named,
    read_objects,
    stated_categories,
)
from modeling_radio.data.labeled.tables import image_paths
from modeling_radio.detection_radio import check_num_queries
from modeling_radio.post_processing_radio import fill_run_lengths
from modeling_radio.tuning.data import Sample
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.tuning.tasks.base import (
    Evidence,
    FinetuningTask,
    ModelInputs,
    Ranking,
    Score,
    join,
    with_file,
)


NO_OBJECT = -100
"""Class of the rows that pad references to equal length; the value with which transformers' `Trainer` pads."""

# torchmetrics' names: mAP over IoU 0.50 to 0.95, at 0.50, at 0.75, of sizes; mean recall with 100 detections.
METRICS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
MASK_METRICS = ("map", "map_50", "map_75", "mar_100")
LARGEST_SHARE = 1.01  # our choice: shares of an image may be rounded up; a box of one pixel is no object
MATCHING_OVERLAP = 0.5  # as in the metric `map_50`
SHOWN_SCORE = 0.3  # our choice: figures show boxes at least this certain, or the most certain one
MASK_STRIDE = 4  # of RF-DETR's mask head
ROW_SIZE = 6  # corners, class and score of an object


class DetectionTask(FinetuningTask):
    """Boxes with classes; images without objects train too.

    Predictions and references are rows of left, top, right, bottom (shares of the image), class and score. There are
    predictions `(batch, num_queries, 6)`, and references for one object more than the largest number of an image.
    """

    model_class = RadioForObjectDetection
    targets = BOXES
    window_field = "detection_window_size"
    best_metric = "map"
    error_name = "1 - F1 of the boxes"
    has_thresholds = True
    adapter_learning_rate = 1e-4  # the best on a small backbone, scaled (docs/explanation/tuning_study.md)
    full_learning_rate = 1e-5  # as DETR's backbone, appendix A.4, https://arxiv.org/abs/2005.12872
    head_learning_rate = 1e-4  # as in RF-DETR, https://arxiv.org/abs/2511.09554
    max_grad_norm = 0.1  # as in DETR, appendix A.4, https://arxiv.org/abs/2005.12872
    parts: ClassVar[tuple[str, ...]] = ("bbox", "category")

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        super().__init__(settings, images)
        for name, table in images.splits():
            self._check_objects(table, name)
        self.class_names = self.class_names or _category_names(images.train)
        self.ids = {name: number for number, name in enumerate(self.class_names)}

    def _check_objects(self, rows: Any, name: str) -> None:
        """Refuse a split without boxes, or all of whose boxes are shares of the image."""
        has_boxes = False
        for where, objects in _named_objects(rows, name):
            boxes = _read_boxes(objects, where)
            if (boxes > LARGEST_SHARE).any():
                return
            has_boxes = has_boxes or len(boxes) > 0
        if not has_boxes:
            raise ValueError(f"{self.settings.data!r} has no boxes in its {name}s.")
        raise ValueError(
            f"The boxes of the {name}s of {self.settings.data!r} have no number above 1: they seem to be shares "
            "of the image. Multiply them by its width and height: boxes are in pixels."
        )

    def check_config(self, config: RadioConfig, grid: Resolution) -> None:
        check_num_queries(config, grid)  # now, and not in the first step

    def prepare(self, model: RadioPreTrainedModel) -> None:
        """Refuse objects that would stop the run in its middle.

        Raises:
            ValueError: If an image has more objects than the model has queries, or another number of boxes than of
                classes or outlines, a box is not finite or empty, or a label is no class.
        """
        most, largest = 0, ""
        for name, rows in self.images.splits():
            for where, objects in _named_objects(rows, name):
                boxes = self._read_corners(objects, where)
                self._check_boxes(boxes, None, where)
                self._class_ids(objects, where)
                counts = {part: len(read_objects(objects, where, part)) for part in self.parts}
                if len(set(counts.values())) > 1:
                    raise ValueError(f"The objects of {where} must be as many in each part, got {counts}.")
                if len(boxes) > most:
                    most, largest = len(boxes), where
        limit = model.config.detection_num_queries
        if most > limit and len(self.images.train):
            raise ValueError(
                f"No more than {limit} objects, `detection_num_queries`, can be found in one image, but {largest} has "
                f"{most}, the most of all: set `config.detection_num_queries={most}`, or leave that image out."
            )

    def classes_of(self, rows: Any, name: str) -> list[list[int]] | None:
        return [self._class_ids(objects, where) for where, objects in _named_objects(rows, name)]

    def _class_ids(self, objects: Any, where: str) -> list[int]:
        labels = read_objects(objects, where, "category")
        return class_ids([named(label, self.images.source_names) for label in labels], self.ids, where)

    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        image, where = self.read_image(row["image"], where), with_file(where, row["image"])
        boxes = self._read_corners(row["target"], where)
        labels = self._class_ids(row["target"], where)
        height, width = image.shape[-2:]
        self._check_boxes(boxes, (height, width), where)
        # pyrefly: ignore[unexpected-keyword]  (it takes the constructor of Tensor for that of the subclass)
        sample_boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        return {"image": image, "boxes": sample_boxes, "labels": torch.tensor(labels, dtype=torch.long)}

    def _read_corners(self, objects: Any, where: str) -> Tensor:
        return box_convert(_read_boxes(objects, where), self.settings.box_format, "xyxy")

    def _check_boxes(self, boxes: Tensor, size: tuple[int, int] | None, where: str) -> None:
        """Refuse boxes that are not finite, empty, or outside of an image of known height and width."""
        rules = {
            "is not finite": ~boxes.isfinite().all(dim=1),
            "is empty": (boxes[:, 2:] <= boxes[:, :2]).any(dim=1),
        }
        if size is not None:
            height, width = size
            is_left_or_above = (boxes[:, 2:] <= 0).any(dim=1)
            is_right_or_below = (boxes[:, :2] >= boxes.new_tensor([width, height])).any(dim=1)
            rules[f"lies outside its {height} x {width} pixels"] = is_left_or_above | is_right_or_below
        for problem, is_wrong in rules.items():
            if is_wrong.any():
                raise ValueError(
                    f"A box of {where} {problem}: left, top, right, bottom = {boxes[is_wrong][0].tolist()}. Boxes are "
                    f"in pixels, {self.settings.box_format}; see `box_format`."
                )

    def labels(self, sample: Sample) -> dict[str, Tensor]:
        height, width = sample["boxes"].canvas_size
        boxes = sample["boxes"].as_subclass(Tensor) / torch.tensor([width, height, width, height])
        return {"class_labels": sample["labels"], "boxes": box_convert(boxes, "xyxy", "cxcywh")}

    def collate(self, examples: Sequence[ModelInputs]) -> ModelInputs:
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": [example["labels"] for example in examples],
        }

    def compare(self, outputs: Any, batch: ModelInputs) -> tuple[Tensor, Tensor]:
        predictions = torch.stack([_rows(found) for found in self.predicted_objects(outputs)])
        references = [_rows(self.true_objects(label)) for label in batch["labels"]]
        references = pad_sequence(references, batch_first=True, padding_value=NO_OBJECT)
        return predictions, F.pad(references, (0, 0, 0, 1), value=NO_OBJECT)  # processes cannot gather empty tensors

    def predicted_objects(self, outputs: Any) -> list[dict[str, Tensor]]:
        """Return `boxes` (as in rows), `labels` and `scores` of each image, `(num_queries, ...)`.

        Those that tiles dropped, whose score is 0, have the label `NO_OBJECT`.
        """
        found = self.processor.post_process_object_detection(outputs, threshold=-1.0)
        return [{**each, "labels": each["labels"].masked_fill(each["scores"] == 0, NO_OBJECT)} for each in found]

    def true_objects(self, label: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the labeled objects of an image in that layout, `(num_objects, ...)`, with score 1."""
        boxes = box_convert(label["boxes"], "cxcywh", "xyxy")
        return {"boxes": boxes, "labels": label["class_labels"], "scores": torch.ones_like(boxes[:, 0])}

    def build_score(self) -> Score:
        return DetectionScore(self.size)

    def evidence(self, predictions: Tensor, references: Tensor) -> Evidence:
        images = [match_objects(*image, len(self.class_names)) for image in zip(predictions, references, strict=True)]
        errors = []
        for image in images:  # 1 minus the F1 of the shown boxes; 0 with nothing to find and nothing found
            is_shown = image.scores >= SHOWN_SCORE
            total = is_shown.sum() + image.num_truths.sum()
            errors.append(1 - 2 * (image.hits & is_shown).sum() / total if total else torch.tensor(0.0))
        return join([Evidence(error[None], image) for error, image in zip(errors, images, strict=True)])

    def draw_truth(self, ax: Axes, image: Tensor, reference: Tensor) -> None:
        self._draw_objects(ax, image, reference[reference[:, 4] != NO_OBJECT])

    def draw_prediction(self, ax: Axes, image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        prediction = prediction[prediction[:, 4] != NO_OBJECT]
        best = max(prediction[:, 5].tolist(), default=0.0)
        self._draw_objects(ax, image, prediction[prediction[:, 5] >= min(SHOWN_SCORE, best)])
        if best < SHOWN_SCORE:
            words = {"fontsize": 5, "color": "white", "backgroundcolor": "black", "ha": "center"}
            ax.text(0.5, 0.02, f"the most certain; nothing above {SHOWN_SCORE}", transform=ax.transAxes, **words)

    def _draw_objects(self, ax: Axes, image: Tensor, rows: Tensor) -> None:
        ax.imshow(image.numpy())
        height, width = image.shape[:2]
        for left, top, right, bottom, number, score in rows[:, :6].tolist():
            corner, color = (left * width, top * height), f"C{int(number) % 10}"
            sides = ((right - left) * width, (bottom - top) * height)
            ax.add_patch(Rectangle(corner, *sides, fill=False, color=color, linewidth=1.2))
            name = self.class_names[int(number)] + (f" {score:.2f}" if score < 1 else "")
            ax.text(*corner, name, fontsize=5, color="white", backgroundcolor=color, va="top")


class DetectionScore:
    """COCO's mean average precision; areas (small, medium, large) are those of the model's input images."""

    def __init__(self, size: tuple[int, int]):
        from torchmetrics.detection import MeanAveragePrecision

        self.metric = MeanAveragePrecision(box_format="xyxy", sync_on_compute=False)
        height, width = size
        self.scale = torch.tensor([width, height, width, height])

    def update(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch of rows in the layout of `DetectionTask`."""
        self.metric.update([self.unpack(rows) for rows in predictions], [self.unpack(rows) for rows in references])

    def unpack(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the objects of one image as torchmetrics takes them: `boxes` in pixels, `labels`, `scores`."""
        rows = rows[rows[:, 4] != NO_OBJECT]
        return {"boxes": rows[:, :4] * self.scale, "labels": rows[:, 4].long(), "scores": rows[:, 5]}

    def compute(self) -> dict[str, Tensor]:
        """Return those of `METRICS` that are defined: sizes that do not occur are left out."""
        return _take_metrics(self.metric.compute(), METRICS)

    def reset(self) -> None:
        """Reset the metric."""
        self.metric.reset()


def match_objects(predictions: Tensor, references: Tensor, num_classes: int) -> Ranking:
    """Return whether each box of an image is right, as COCO's metric does at an intersection over union of 0.5.

    The most certain boxes are first to take the object that they overlap most.

    Args:
        predictions: Rows of one image in the layout of `DetectionTask`.
        references: Rows of its objects.
        num_classes: Number of classes.
    """
    found = predictions[predictions[:, 4] != NO_OBJECT]
    found = found[found[:, 5].argsort(descending=True, stable=True)]
    truth = references[references[:, 4] != NO_OBJECT]
    overlaps = box_iou(found[:, :4], truth[:, :4]).masked_fill(found[:, 4, None] != truth[None, :, 4], 0.0)
    hits = torch.zeros(len(found), dtype=torch.bool)
    for row in range(len(found) if len(truth) else 0):
        overlap, index = overlaps[row].max(dim=0)
        if overlap >= MATCHING_OVERLAP:
            hits[row] = True
            overlaps[:, index] = 0.0  # an object is found once
    num_truths = truth[:, 4].long().bincount(minlength=num_classes)
    return Ranking(found[:, 4].long(), found[:, 5], hits, num_truths)


def _take_metrics(result: Mapping[str, Tensor], names: Sequence[str], prefix: str = "") -> dict[str, Tensor]:
    """Return some metrics of torchmetrics without their prefix and those of -1, of sizes that do not occur."""
    return {name: result[prefix + name] for name in names if result[prefix + name] >= 0}


def _named_objects(rows: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the objects of each row, with its number and its file, if any, for messages."""
    paths = image_paths(rows, "image") if "image" in rows.column_names else [None] * len(rows)
    for index, (path, objects) in enumerate(zip(paths, rows["target"], strict=True)):
        yield f"{name} {index}" + (f" ({path})" if path else ""), objects


def _read_boxes(objects: Any, where: str) -> Tensor:
    """Return the boxes of an image as they are stored, `(num_boxes, 4)`."""
    boxes = read_objects(objects, where, "bbox")
    try:
        return torch.tensor(boxes, dtype=torch.float32).reshape(len(boxes), 4)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"The boxes of {where} must be four numbers each, got {boxes!r:.100}.") from error


def _category_names(rows: Any) -> tuple[str, ...]:
    """Return the names of the classes: those of a `ClassLabel` of the column of objects, else those that occur."""
    stated = stated_categories(rows)
    if stated is not None:
        return stated
    objects = _named_objects(rows, "training image")
    return name_classes(label for where, each in objects for label in read_objects(each, where, "category"))


def _rows(objects: Mapping[str, Tensor]) -> Tensor:
    """Return corners, class and score of each object, and its mask if any, `(num_objects, row_size)`."""
    parts = [objects["boxes"], objects["labels"][:, None], objects["scores"][:, None]]
    if "masks" in objects:
        parts.append(objects["masks"].flatten(1))
    return torch.cat([part.float() for part in parts], dim=1)


class InstanceSegmentationTask(DetectionTask):
    """Boxes with classes and masks.

    Predictions and references are the rows of `DetectionTask`, each followed by its mask of 0 and 1 at a quarter of the
    image's height and width, as the model predicts it: `(batch, num_rows, 6 + height / 4 * width / 4)`.
    """

    model_class = RadioForInstanceSegmentation
    targets = OUTLINES
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
        masks = F.interpolate(label["masks"][None].float(), self.mask_size, mode="area")[0]
        return {**super().true_objects(label), "masks": masks >= 0.5}  # at least half of a pixel is in the mask

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
    """COCO's mean average precision of boxes and masks, at the size of predicted masks.

    As in COCO an object is small, medium or large by the area of its mask.
    """

    def __init__(self, size: tuple[int, int], mask_size: tuple[int, int]):
        from torchmetrics.detection import MeanAveragePrecision

        super().__init__(size)
        self.metric = MeanAveragePrecision(iou_type=("bbox", "segm"), sync_on_compute=False)
        self.mask_size = mask_size

    def unpack(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the objects of one image as torchmetrics takes them, with `masks` and `area`."""
        masks = unpack_masks(rows[rows[:, 4] != NO_OBJECT], self.mask_size)
        return {**super().unpack(rows), "masks": masks, "area": masks.sum(dim=(1, 2)) * MASK_STRIDE**2}

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of `DetectionScore` for boxes, and those of masks with the prefix `mask_`."""
        result = self.metric.compute()
        masks = _take_metrics(result, MASK_METRICS, "segm_")
        return {**_take_metrics(result, METRICS, "bbox_"), **{f"mask_{name}": value for name, value in masks.items()}}


def decode_mask(segmentation: Any, size: Sequence[int], where: str) -> np.ndarray:
    """Return COCO's outline of an object as pixels.

    Args:
        segmentation: Polygons, lists of x, y, x, y, ... in pixels; or run lengths, `counts` and `size`; or JSON of
            either.
        size: Height and width of the image.
        where: Name of the image in messages.

    Returns:
        0 and 1, `(height, width)`, uint8.

    Raises:
        ValueError: If the outline has another form or image size, or its runs do not fill the image.
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
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]  # pycocotools would take two points for a box
    farthest = np.abs(np.concatenate(polygons)).astype(np.float64).max()  # of Python's numbers it would pass over NaN
    if not farthest <= 2 * max(size):  # pycocotools hangs on NaN, and crashes on large numbers
        raise ValueError("a point lies far outside of the image")
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


def unpack_masks(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the masks of rows as in `InstanceSegmentationTask`, `(num_rows, height, width)`, boolean."""
    return rows[:, ROW_SIZE:].unflatten(1, size).bool()
