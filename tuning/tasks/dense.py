"""Tasks of maps: semantic segmentation and depth estimation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import tqdm
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors

from modeling_radio import RadioConfig, RadioForDepthEstimation, RadioForSemanticSegmentation, RadioPreTrainedModel
from modeling_radio.checks_radio import Resolution
from modeling_radio.core.errors import first_few
from modeling_radio.data.labeled.images import DEPTH, MASKS, LabeledImages
from modeling_radio.data.labeled.labels import class_ids, read_depth, read_mask
from modeling_radio.data.labeled.tables import encoded, read_row
from modeling_radio.data.sources import check_named_file
from modeling_radio.figures.features import background_of, hex_color, overlaid, to_colors, to_pixels
from modeling_radio.figures.style import INK
from modeling_radio.metrics.dense import IGNORE_INDEX, ConfusionMatrix, DepthScore
from modeling_radio.tuning.data import Sample, choose_weights
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.tuning.tasks.base import (
    Evidence,
    FinetuningTask,
    LinearLoss,
    ModelInputs,
    Score,
    count_confusion,
    cross_entropy_of_shares,
    require_same_size,
    with_file,
)


logger = logging.getLogger(__name__)

NUM_NAMED = 12  # our choice: names of classes that fit below a figure
SMALLEST_SHARE_OF_IDS = 0.5  # our choice: with fewer ids in use there is a mistake, such as a stray 254
MAX_SHOWN_IDS = 20  # our choice
MAX_COUNTED_MASKS = 500  # our choice: enough for shares of classes to a percent, read in seconds


class SegmentationTask(FinetuningTask):
    """A class for each pixel; predictions and references are ids, `(batch, height, width)`.

    Attributes:
        ignore_index: Id of pixels without a loss and a score: `semantic_loss_ignore_index` of the settings' `config`,
            else 255.
        bare: Ids that drawings leave without a color: the background. It is class 0 where classes have no names.
        own_ids: Id of each class of the source, where the source may number them in another way; else empty.
    """

    model_class = RadioForSemanticSegmentation
    targets = MASKS
    best_metric = "mean_iou"
    error_name = "share of wrong pixels"
    takes_class_weights = True

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        super().__init__(settings, images)
        self.ignore_index: int = settings.config.get("semantic_loss_ignore_index", IGNORE_INDEX)
        if not isinstance(self.ignore_index, int):
            raise ValueError(
                f"`config.semantic_loss_ignore_index` must be the id of a class, got {self.ignore_index!r}."
            )
        if len(images.train):
            self._require_two_classes()
        self.bare = background_of(dict(enumerate(self.class_names))) if self.class_names else {0}
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self.own_ids = class_ids(images.source_names, numbers, settings.data)
        self.class_names = self.class_names or tuple(f"class {number}" for number in range(self._count_classes()))

    @classmethod
    def has_linear_head(cls, config: RadioConfig) -> bool:
        return config.segmentation_head == "linear"

    def config_fields(self) -> dict[str, Any]:
        fields = {**super().config_fields(), "semantic_loss_ignore_index": self.ignore_index}
        if self.settings.class_weights is not None:
            fields["class_weights"] = choose_weights(self.settings.class_weights, self.class_names, self._count_pixels)
        return fields

    def _require_two_classes(self) -> None:
        """Read masks until two classes are found; with fewer every prediction would be right."""
        found: set[int] = set()
        for _, mask in self._training_masks("two classes"):
            found |= set(mask.unique().tolist())
            if len(found - {self.ignore_index}) > 1:
                return
        ids = first_few(sorted(found), MAX_SHOWN_IDS)
        raise ValueError(
            f"The training masks of {self.settings.data!r} have the ids {ids} alone, and "
            f"{self.ignore_index} is ignored; two classes are needed. Write class ids into the masks, such as 0 for "
            "the background and 1 (not 255) for the foreground."
        )

    def _count_classes(self) -> int:
        """Return the number of classes of the training masks; refuse ids of which most do not occur."""
        ids: set[int] = set()
        for _, mask in self._training_masks("classes"):
            ids |= set(mask.unique().tolist())
        ids.discard(self.ignore_index)
        count = max(ids) + 1
        if len(ids) < SMALLEST_SHARE_OF_IDS * count:
            shown = first_few(sorted(ids), MAX_SHOWN_IDS)
            raise ValueError(
                f"The training masks of {self.settings.data!r} have the ids {shown} alone, which would "
                f"make {count} classes: correct wrong ids, ignore one with "
                "`config.semantic_loss_ignore_index`, or give all `classes`."
            )
        if len(ids) < count:
            logger.warning(
                "%s: %d classes, but no training mask has the ids %s",
                self.settings.data,
                count,
                first_few([number for number in range(count) if number not in ids], MAX_SHOWN_IDS),
            )
        return count

    def _count_pixels(self) -> Tensor:
        counts = torch.zeros(len(self.class_names), dtype=torch.long)
        for where, mask in self._training_masks("class weights", MAX_COUNTED_MASKS):
            mask = self._number(mask, where)
            counts += mask[mask != self.ignore_index].bincount(minlength=len(counts))
        return counts

    def _training_masks(self, purpose: str, limit: int | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield the masks of the training images, each with the name of its image."""
        yield from _read_masks(self.images.train, "training image", purpose, limit)

    def prepare(self, model: RadioPreTrainedModel) -> None:
        """Refuse masks that would stop the run in its middle, among the first of each split.

        Raises:
            ValueError: If a mask has an id of no class, or images are too small for the head's batch norm.
        """
        if self.has_linear_head(model.config) and math.prod(self.size) <= model.config.patch_size**2:
            height, width = self.size
            raise ValueError(
                f"`size` must have at least two patches, got {height} x {width}: the batch norm of the linear head "
                "cannot train on a batch of one. Raise it, or set config.segmentation_head=dpt."
            )
        for name, rows in self.images.splits():
            for where, mask in _read_masks(rows, name, "ids of masks", MAX_COUNTED_MASKS):
                self._number(mask, where)

    def classes_of(self, rows: Any, name: str) -> list[list[int]] | None:
        classes = []
        for where, mask in _read_masks(rows, name, "classes of masks"):
            mask = self._number(mask, where)
            classes.append(mask[mask != self.ignore_index].unique().tolist())
        return classes

    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        image, where = self.read_image(row["image"], where), with_file(where, row["target"])
        mask = read_mask(row["target"], where)
        require_same_size(image, mask, where, "mask")
        return {"image": image, "mask": tv_tensors.Mask(self._number(mask, where))}

    def _number(self, mask: Tensor, where: str) -> Tensor:
        """Return a mask with the ids of `class_names`; refuse others."""
        num_classes = len(self.own_ids) or len(self.class_names)
        wrong = mask[((mask < 0) | (mask >= num_classes)) & (mask != self.ignore_index)]
        if len(wrong):
            raise ValueError(
                f"The mask of {where} has the id {int(wrong.max())}, but there are {num_classes} classes (ids 0 to "
                f"{num_classes - 1}; {self.ignore_index} is ignored): correct it, or give all `classes`."
            )
        is_class = mask != self.ignore_index
        return torch.tensor(self.own_ids)[mask.where(is_class, 0)].where(is_class, mask) if self.own_ids else mask

    def linear_loss(self, class_weights: Sequence[float] | None) -> LinearLoss | None:
        return partial(cross_entropy_of_shares, class_weights=class_weights)

    def linear_targets(self, labels: Tensor, grid: Resolution | None) -> Tensor:
        """Return the share of each class in the pixels of each patch; ignored ones are of no class."""
        assert grid is not None
        height, width = labels.shape[-2:]
        rows = torch.arange(height, device=labels.device) * grid.height // height
        columns = torch.arange(width, device=labels.device) * grid.width // width
        patches, num_classes = rows[:, None] * grid.width + columns, len(self.class_names)
        counted = labels != self.ignore_index
        places = (patches * num_classes + labels.long().where(counted, 0)).flatten(1)
        counts = torch.zeros(len(labels), grid.height * grid.width * num_classes, device=labels.device)
        counts.scatter_add_(1, places, counted.flatten(1).float())
        return counts.unflatten(1, (-1, num_classes)) / (height * width / (grid.height * grid.width))

    def labels(self, sample: Sample) -> Tensor:
        return sample["mask"].as_subclass(Tensor)

    def compare(self, outputs: Any, batch: ModelInputs) -> tuple[Tensor, Tensor]:
        size = batch["labels"].shape[-2:]
        logits = F.interpolate(outputs.logits.float(), size, mode="bilinear", align_corners=False)
        return logits.argmax(dim=1), batch["labels"]

    def build_score(self) -> Score:
        return ConfusionMatrix(len(self.class_names), self.ignore_index)

    def evidence(self, predictions: Tensor, references: Tensor) -> Evidence:
        counts = references != self.ignore_index
        wrong = (predictions != references) & counts
        errors = wrong.flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1).clamp(min=1)
        confusion = count_confusion(predictions[counts], references[counts], len(self.class_names))
        return Evidence(errors, confusion=confusion)

    def draw_truth(self, ax: Axes, image: Tensor, reference: Tensor) -> None:
        ax.imshow(to_colors(overlaid(to_pixels(image), reference, {*self.bare, self.ignore_index})).numpy())

    def legend(self, shown: Sequence[Tensor]) -> list[Patch]:
        together = torch.cat([ids.flatten() for ids in shown])
        ids, areas = together[together != self.ignore_index].unique(return_counts=True)
        largest = ids[areas.argsort(descending=True)[:NUM_NAMED]].sort().values.tolist()
        colors = {number: "none" if number in self.bare else hex_color(number) for number in largest}
        return [Patch(label=self.class_names[each], facecolor=color, edgecolor=INK) for each, color in colors.items()]

    def draw_prediction(self, ax: Axes, image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        self.draw_truth(ax, image, prediction)


def _read_masks(rows: Any, name: str, purpose: str, limit: int | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the masks of a table, or the first ones, each with the name of its image."""
    rows = encoded(rows.select_columns(["target"]))
    for index in tqdm(range(min(len(rows), limit or len(rows))), desc=purpose, leave=False):
        stored = read_row(rows, index, name)["target"]
        where = with_file(f"{name} {index}", stored)
        yield where, read_mask(stored, where)


class DepthTask(FinetuningTask):
    """Meters for each pixel, `(batch, height, width)`; 0 marks pixels without a depth.

    Raises:
        ValueError: If the first depth map of a split is wrong: all are probably alike.
    """

    model_class = RadioForDepthEstimation
    targets = DEPTH
    best_metric = "abs_rel"
    greater_is_better = False
    error_name = "relative error"
    covers_image = True

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        super().__init__(settings, images)
        self.class_names = ()
        for name, table in images.splits():
            target = read_row(cast(Any, table).select_columns(["target"]), 0, name)["target"]
            self._read_depth(target, f"{name} 0")

    def config_fields(self) -> dict[str, Any]:
        return {}

    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        image, depth = self.read_image(row["image"], where), self._read_depth(row["target"], where)
        require_same_size(image, depth, where, "depth map")
        return {"image": image, "depth": tv_tensors.Mask(depth)}

    def _read_depth(self, target: Any, where: str) -> Tensor:
        if isinstance(target, str):
            check_named_file(target, self.settings.data)
        return read_depth(target, where, self.settings.depth_scale)

    def labels(self, sample: Sample) -> Tensor:
        return sample["depth"].as_subclass(Tensor)

    def compare(self, outputs: Any, batch: ModelInputs) -> tuple[Tensor, Tensor]:
        depth = outputs.predicted_depth.float().unsqueeze(1)
        depth = F.interpolate(depth, batch["labels"].shape[-2:], mode="bilinear", align_corners=False)
        return depth.squeeze(1), batch["labels"]

    def build_score(self) -> Score:
        return DepthScore()

    def evidence(self, predictions: Tensor, references: Tensor) -> Evidence:
        is_known = references > 0
        relative = ((predictions - references).abs() / references.where(is_known, 1.0)).where(is_known, 0.0)
        return Evidence(relative.flatten(1).sum(dim=1) / is_known.flatten(1).sum(dim=1).clamp(min=1))

    def draw_truth(self, ax: Axes, image: Tensor, reference: Tensor) -> None:
        self.draw_prediction(ax, image, reference, reference)

    def draw_prediction(self, ax: Axes, image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        shown = np.ma.masked_equal(prediction.numpy(), 0)
        ax.imshow(image.numpy())
        ax.imshow(shown, cmap="magma_r", vmin=0, vmax=float(reference.max()) or 1.0)
