"""How depth maps are read, scored and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors

from modeling_radio import RadioForDepthEstimation
from training.data.labeled.opening import read_row
from training.data.labeled.targets import read_depth
from training.data.named_files import check_named_file
from training.evaluation.metrics.depth import DepthScore
from training.finetuning.data.augmentation import Sample
from training.finetuning.data.sources import LabeledImages
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks.base import Batch, FinetuningTask, Score, require_same_size
from training.finetuning.tasks.evidence import Evidence


class DepthTask(FinetuningTask):
    """Meters for each pixel, `(batch, height, width)`; 0 marks pixels without a depth.

    Raises:
        ValueError: If the first depth map of a split cannot be right: all are probably alike.
    """

    model_class = RadioForDepthEstimation
    best_metric = "abs_rel"
    greater_is_better = False
    covers_image = True

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        super().__init__(settings, images)
        self.class_names = ()
        for name, table in (("training image", images.train), ("validation image", images.validation)):
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

    def compare(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
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
