"""How depth maps are read, scored and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors

from modeling_radio import RadioForDepthEstimation
from training.finetuning.data.augmentation import Sample
from training.finetuning.data.sources import LabeledImages
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks.base import Batch, FinetuningTask, Score, require_same_size


INTEGER_UNITS_PER_METER = 1000.0  # 16-bit depth is in millimeters, as in NYU Depth v2; KITTI has 256
DELTA = 1.25

# What NumPy and Pillow raise on broken files and ragged lists; MemoryError where a header lies about the size.
_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TokenError, MemoryError)


class DepthTask(FinetuningTask):
    """Meters for each pixel, `(batch, height, width)`; 0 marks pixels without a depth.

    Raises:
        ValueError: If the first depth map of a split cannot be right: all are probably alike.
    """

    model_class = RadioForDepthEstimation
    best_metric = "abs_rel"
    greater_is_better = False

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        super().__init__(settings, images)
        self.class_names = ()
        for name, table in (("training", images.train), ("validation", images.validation)):
            self._read_depth(table.select_columns(["target"])[0]["target"], f"{name} image 0")

    def config_fields(self) -> dict[str, Any]:
        return {}

    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        image, depth = self.read_image(row["image"], where), self._read_depth(row["target"], where)
        require_same_size(image, depth, where, "depth map")
        return {"image": image, "depth": tv_tensors.Mask(depth)}

    def _read_depth(self, target: Any, where: str) -> Tensor:
        """Return a depth map in meters, `(height, width)`."""
        where = f"{where} ({target})" if isinstance(target, str) else where
        values = _read_values(target, where)
        if values.ndim != 2:
            raise ValueError(f"The depth map of {where} must have the shape (height, width), got {values.shape}.")
        if values.dtype.kind not in "iuf":
            raise ValueError(f"The depth map of {where} must have whole or floating-point numbers, got {values.dtype}.")
        depth = torch.from_numpy(values.astype(np.float32)) / self._units_per_meter(values)
        is_known = depth.isfinite() & (depth > 0)
        if not is_known.any():
            raise ValueError(
                f"The depth map of {where} has no pixel with a depth, a finite number above 0: correct it, or leave "
                "the image out."
            )
        return depth.where(is_known, 0.0)

    def _units_per_meter(self, values: np.ndarray) -> float:
        if self.settings.depth_scale is not None:
            return self.settings.depth_scale
        return INTEGER_UNITS_PER_METER if np.issubdtype(values.dtype, np.integer) else 1.0

    def labels(self, sample: Sample) -> Tensor:
        return sample["depth"].as_subclass(Tensor)

    def compare(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        depth = outputs.predicted_depth.float().unsqueeze(1)
        depth = F.interpolate(depth, batch["labels"].shape[-2:], mode="bilinear", align_corners=False)
        return depth.squeeze(1), batch["labels"]

    def build_score(self) -> Score:
        return DepthScore()

    def draw_truth(self, ax: Axes, image: Tensor, reference: Tensor) -> None:
        self.draw_prediction(ax, image, reference, reference)

    def draw_prediction(self, ax: Axes, image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        shown = np.ma.masked_equal(prediction.numpy(), 0)
        ax.imshow(image.numpy())
        ax.imshow(shown, cmap="magma_r", vmin=0, vmax=float(reference.max()) or 1.0)


class DepthScore:
    """Errors over all pixels with a depth.

    References:
        abs_rel, rmse and delta1 as in Eigen et al., 2014, https://arxiv.org/abs/1406.2283.
    """

    def __init__(self) -> None:
        self.reset()

    def update(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch of depths in meters, `(batch, height, width)`."""
        valid = references > 0
        predicted, true = predictions[valid].double(), references[valid].double()
        ratio = torch.maximum(predicted / true, true / predicted.clamp(min=1e-6))
        self.num_pixels += len(true)
        self.sums += torch.stack(
            [((predicted - true).abs() / true).sum(), (predicted - true).square().sum(), (ratio < DELTA).sum()]
        )

    def compute(self) -> dict[str, Tensor]:
        """Return the mean relative error, the root mean square error in meters and the share within a factor 1.25.

        All are NaN where no pixel has a depth.
        """
        relative, square, share = self.sums / self.num_pixels
        return {"abs_rel": relative, "rmse": square.sqrt(), "delta1": share}

    def reset(self) -> None:
        """Reset the metric."""
        self.num_pixels = 0
        self.sums = torch.zeros(3, dtype=torch.float64)


def _read_values(target: Any, where: str) -> np.ndarray:
    """Return a depth map as it is stored: a path to `.npy` or PNG, a picture or nested lists."""
    try:
        if not isinstance(target, str):
            return np.asarray(target)
        if Path(target).suffix == ".npy":
            return np.load(target, allow_pickle=False)
        with Image.open(target) as picture:
            return np.asarray(picture)
    except _UNREADABLE as error:
        raise ValueError(f"The depth map of {where} cannot be read: {error}") from error
