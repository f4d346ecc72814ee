"""Pictures, and outputs of detectors, that tests of the image processor and of its parts share."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modeling_radio import RadioImageProcessor


def make_pixels(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Return a smooth random RGB picture, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def process(processor: RadioImageProcessor, images: object, **options: object) -> Tensor:
    """Return the `pixel_values` of one or more images."""
    return processor(images, return_tensors="pt", **options)["pixel_values"]


def detections(*queries: tuple[float, ...], num_classes: int = 3) -> SimpleNamespace:
    """Return outputs of one image from `(class, probability, center x, center y, width, height)` for each query."""
    logits = torch.full((1, len(queries), num_classes), -9.0)
    for row, (label_id, probability, *_) in zip(logits[0], queries, strict=True):
        row[label_id] = torch.logit(torch.tensor(probability))
    return SimpleNamespace(logits=logits, pred_boxes=torch.tensor([[query[2:] for query in queries]]))
