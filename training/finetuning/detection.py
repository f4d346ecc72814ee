"""Object detection for the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert

from modeling_radio import RadioForObjectDetection
from training.finetuning.augmentation import Sample
from training.finetuning.settings import FinetuneSettings
from training.finetuning.sources import LabelledImages
from training.finetuning.task import Batch, FinetuningTask, Score


NO_OBJECT = -1
"""Class of the rows that fill references up to equal length."""

SHOWN_SCORE = 0.3  # our choice: pictures show boxes at least this certain


class DetectionTask(FinetuningTask):
    """Boxes with classes; images without objects train too.

    Predictions and references are rows of left, top, right, bottom (shares of the image), class and score,
    `(batch, num_queries, 6)`.
    """

    model_class = RadioForObjectDetection
    best_metric = "map"
    head_learning_rate = 1e-4  # as in RF-DETR, https://arxiv.org/abs/2511.09554

    def __init__(self, settings: FinetuneSettings, images: LabelledImages):
        super().__init__(settings, images)
        if not self.class_names:
            self.class_names = self._name_classes()

    def _name_classes(self) -> tuple[str, ...]:
        numbers = {number for objects in self.images.train["target"] for number in _columns(objects)["category"]}
        feature = _category_feature(self.images.train.features["target"])
        if feature is not None:
            return tuple(feature.names)
        if not numbers:
            raise ValueError(f"{self.settings.data!r} has no boxes in its training images.")
        return tuple(f"class {number}" for number in range(max(numbers) + 1))

    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        image, objects = self.read_image(row["image"], where), _columns(row["target"])
        height, width = image.shape[-2:]
        boxes = torch.tensor(objects["bbox"], dtype=torch.float32).reshape(-1, 4)
        boxes = box_convert(boxes, self.settings.box_format, "xyxy")
        labels = torch.tensor(objects["category"], dtype=torch.long)
        self._check(boxes, labels, (height, width), where)
        # pyrefly: ignore[unexpected-keyword]  (it takes the constructor of Tensor for that of the subclass)
        sample_boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        return {"image": image, "boxes": sample_boxes, "labels": labels}

    def _check(self, boxes: Tensor, labels: Tensor, size: tuple[int, int], where: str) -> None:
        wrong = labels[(labels < 0) | (labels >= len(self.class_names))]
        if len(wrong):
            raise ValueError(
                f"A box of {where} has the class {int(wrong[0])}, but there are {len(self.class_names)} classes (ids 0 "
                f"to {len(self.class_names) - 1})."
            )
        height, width = size
        outside = (boxes[:, :2] >= boxes.new_tensor([width, height])).any(dim=1) | (boxes[:, 2:] <= 0).any(dim=1)
        if outside.any():
            raise ValueError(
                f"A box of {where} lies outside its {height} x {width} pixels: left, top, right, bottom = "
                f"{boxes[outside][0].tolist()}. Boxes are in pixels, {self.settings.box_format}; see `box_format`."
            )

    def labels(self, sample: Sample) -> dict[str, Tensor]:
        height, width = sample["boxes"].canvas_size
        boxes = sample["boxes"].as_subclass(Tensor) / torch.tensor([width, height, width, height])
        return {"class_labels": sample["labels"], "boxes": box_convert(boxes, "xyxy", "cxcywh")}

    def collate(self, examples: Sequence[Batch]) -> Batch:
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": [example["labels"] for example in examples],
        }

    def compare(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        num_rows = outputs.logits.shape[1]
        found = self.processor.post_process_object_detection(outputs, threshold=-1.0)
        predictions = [_rows(image["boxes"], image["labels"], image["scores"], num_rows) for image in found]
        references = [
            _rows(
                box_convert(label["boxes"], "cxcywh", "xyxy"),
                label["class_labels"],
                torch.ones_like(label["boxes"][:, 0]),
                num_rows,
            )
            for label in batch["labels"]
        ]
        return torch.stack(predictions), torch.stack(references)

    def build_score(self) -> Score:
        assert self.settings.size is not None  # the run fills it in
        return DetectionScore(self.settings.size)

    def draw(self, axes: Sequence[Axes], image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        certain = prediction[prediction[:, 5] >= SHOWN_SCORE]
        for ax, rows, title in zip(axes, (reference, certain), ("truth", "prediction"), strict=True):
            ax.imshow(image.numpy())
            ax.set_title(title, fontsize=7)
            for row in rows[rows[:, 4] != NO_OBJECT].tolist():
                self._draw_box(ax, row, image.shape[1], image.shape[0])

    def _draw_box(self, ax: Axes, row: list[float], width: int, height: int) -> None:
        left, top, right, bottom, number, score = row
        corner = (left * width, top * height)
        color = f"C{int(number) % 10}"
        box = Rectangle(corner, (right - left) * width, (bottom - top) * height, fill=False, color=color, linewidth=1.2)
        ax.add_patch(box)
        name = self.class_names[int(number)] + (f" {score:.2f}" if score < 1 else "")
        ax.text(*corner, name, fontsize=5, color="white", backgroundcolor=color, va="top")


class DetectionScore:
    """COCO's mean average precision; areas (small, medium, large) are those of the images as the model sees them."""

    def __init__(self, size: tuple[int, int]):
        from torchmetrics.detection import MeanAveragePrecision

        self.metric = MeanAveragePrecision(box_format="xyxy", sync_on_compute=False)
        height, width = size
        self.scale = torch.tensor([width, height, width, height])

    def update(self, predictions: Tensor, references: Tensor) -> None:
        """Take rows as in `DetectionTask`."""
        self.metric.update([self._unpack(rows) for rows in predictions], [self._unpack(rows) for rows in references])

    def _unpack(self, rows: Tensor) -> dict[str, Tensor]:
        rows = rows[rows[:, 4] != NO_OBJECT]
        return {"boxes": rows[:, :4] * self.scale, "labels": rows[:, 4].long(), "scores": rows[:, 5]}

    def compute(self) -> dict[str, Tensor]:
        """Return mAP over IoU 0.50 to 0.95, at 0.50 and at 0.75; sizes that do not occur are left out."""
        result = self.metric.compute()
        names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
        return {name: result[name] for name in names if result[name] >= 0}

    def reset(self) -> None:
        """Forget all images."""
        self.metric.reset()


def _columns(objects: Any) -> Mapping[str, Sequence]:
    """Return objects as lists by key; data sets of the Hub have lists of objects too."""
    if isinstance(objects, Mapping):
        return objects
    return {key: [entry[key] for entry in objects] for key in ("bbox", "category")}


def _category_feature(feature: Any) -> Any:
    """Return the `ClassLabel` of a feature of objects, or None if their categories are numbers only."""
    from datasets import ClassLabel, List

    while isinstance(feature, List):
        feature = feature.feature
    category = feature["category"]
    while isinstance(category, List):
        category = category.feature
    return category if isinstance(category, ClassLabel) else None


def _rows(boxes: Tensor, labels: Tensor, scores: Tensor, num_rows: int) -> Tensor:
    """Return `(num_rows, 6)`; the rows after the last object have the class `NO_OBJECT`."""
    rows = torch.cat([boxes.float(), labels[:, None].float(), scores[:, None].float()], dim=1)
    filling = rows.new_full((num_rows - len(rows), 6), NO_OBJECT)
    return torch.cat([rows, filling])
