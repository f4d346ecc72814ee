"""Predictions of any tuned model on a photograph, and their drawings; photographs are read here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resize
from torchvision.utils import draw_bounding_boxes

from modeling_radio import (
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioPreTrainedModel,
)
from modeling_radio.checks_radio import Resolution
from modeling_radio.core.opening import OBJECTS, Opened
from modeling_radio.core.tables import counted
from modeling_radio.figures.features import background_of, class_color, overlaid, similarity_colors, to_pixels
from modeling_radio.image_processing_radio import (
    MAX_SHOWN,
    UNREADABLE,
    load_upright,
    open_image_file,
    to_eight_bits,
)
from modeling_radio.pipelines_radio import limits_of
from modeling_radio.post_processing_radio import class_scores
from modeling_radio.views_radio import ViewOptions


TILED = (RadioForSemanticSegmentation, RadioForDepthEstimation, RadioForObjectDetection)
"""Models whose `predict` sees tiles."""
MAX_OBJECTS = 50
"""Largest number of objects drawn, the most certain ones; our choice."""
SHOWN_PX = 768
"""Longer side of figures, our choice: sharp on a screen, and some dozens of kB."""
MAX_PIXELS = 100_000_000
"""Largest size of a photograph; our choice, above what cameras write, and 300 MB of memory."""
OVERFLOW = "the model's outputs are not finite: its type may be too small for them, use float32"


def read_photograph(path: str | Path | None) -> Tensor:
    """Return an image file as uint8 RGB `(3, height, width)`, rotated by its EXIF orientation.

    Args:
        path: The file; None if none was chosen.

    Raises:
        ValueError: If no file was chosen, or the file is no image, is damaged or too large.
    """
    if path is None:
        raise ValueError("`image` must be a photograph, got none. Choose one first.")
    path = Path(path)
    try:
        with open_image_file(path) as image:
            width, height = image.size
            is_small = width * height <= MAX_PIXELS
            pixels = pil_to_tensor(to_eight_bits(load_upright(image))) if is_small else None
    except UNREADABLE as error:
        raise ValueError(
            f"`image` must be a file in a format such as JPEG, PNG or WebP, got {path.name!r}, which cannot be read: "
            f"{str(error)[:MAX_SHOWN]}"
        ) from error
    if pixels is None:
        raise ValueError(
            f"`image` must have at most {MAX_PIXELS // 1_000_000} megapixels, got {width} x {height}. Make it "
            "smaller first: the model sees a smaller one anyway."
        )
    return pixels


def shown(photograph: Tensor) -> Tensor:
    """Return a photograph at the size of figures, uint8 `(3, height, width)`; small ones stay as they are."""
    height, width = photograph.shape[-2:]
    scale = min(1.0, SHOWN_PX / max(height, width))
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    return resize(photograph, size, InterpolationMode.BICUBIC, antialias=True)


class LabeledRegion(NamedTuple):
    """A part of a photograph.

    Attributes:
        area: A mask, bool `(height, width)` of NumPy, or a box: left, top, right, bottom in pixels.
        label: Name of its class, of an object with its score.
        index: Index of its class.
    """

    area: Any
    label: str
    index: int


@dataclass(frozen=True)
class Prediction:
    """Output of a tuned model for a photograph; fields that the task does not have are None.

    Attributes:
        description: The prediction in words.
        photograph: At the size of figures, uint8 RGB `(3, height, width)`.
        regions: Its parts.
        scores: Scores of the labels of the whole photograph, in [0, 1].
        depth: As colors, uint8 RGB `(3, height, width)`.
    """

    description: str
    photograph: Tensor
    regions: list[LabeledRegion] | None = None
    scores: dict[str, float] | None = None
    depth: Tensor | None = None

    def drawn(self) -> Tensor:
        """Return the depth, or the photograph with its regions in the colors of their classes, uint8 RGB."""
        if self.depth is not None:
            return self.depth
        boxes, index_map = [], torch.full(self.photograph.shape[1:], -1)
        for region in reversed(self.regions or []):  # the most certain one lies on top
            if isinstance(region.area, tuple):
                boxes.append(region)
            else:
                index_map[torch.from_numpy(region.area)] = region.index
        names = {region.index: region.label for region in self.regions or []}
        image = overlaid(self.photograph, index_map, bare={-1, *background_of(names)})
        if not boxes:
            return image
        colors: list[str | tuple[int, int, int]] = [class_color(box.index) for box in boxes]
        return draw_bounding_boxes(image, torch.tensor([box.area for box in boxes]), colors=colors, width=2)


def check_tiles(model: RadioPreTrainedModel, tiles: ViewOptions) -> None:
    """Refuse tiles that a tuned model does not take.

    Raises:
        ValueError: If its task has no tiles, or not of this size.
    """
    if not isinstance(model, TILED):
        raise ValueError(f"`tile_size` must be left out for a {type(model).__name__}, got {tiles.tile_size}.")
    tiles.tiles(model.config, Resolution(1, 1))  # refuses a size that does not fit
    needed = model.config.detection_num_queries if isinstance(model, RadioForObjectDetection) else 0
    if tiles.tile_size is not None and (tiles.tile_size // model.config.patch_size) ** 2 < needed:
        raise ValueError(
            f"`tile_size` must be of as many patches as the detector has queries, {needed}, got {tiles.tile_size} with "
            f"patches of {model.config.patch_size}."
        )


def predict_tiles(model: Any, pixel_values: Tensor, tiles: ViewOptions) -> Any:
    """Return the output of one of `TILED` for images, `(batch, channels, height, width)`, that it sees in tiles."""
    return model.predict(pixel_values, tile_size=tiles.tile_size, tile_overlap=tiles.tile_overlap)


def is_finite(outputs: Mapping[str, Any], may_drop: bool = False) -> bool:
    """Return whether no tensor of a model's outputs is NaN or infinite, as float16 is above 65,504.

    Args:
        outputs: Tensors, or lists of them, by name.
        may_drop: Whether logits may be -inf: those of boxes that tiles drop.
    """
    for name, value in outputs.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, Tensor) and each.is_floating_point():
                known = each[each != -torch.inf] if may_drop and name == "logits" else each
                if not known.isfinite().all():
                    return False
    return True


def check_outputs(outputs: Mapping[str, Any]) -> None:
    """Refuse outputs of a model that are not finite.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    if not is_finite(outputs):
        raise ValueError(OVERFLOW)


@torch.inference_mode()
def predict(opened: Opened, photograph: Tensor, threshold: float | str = 0.5) -> Prediction:
    """Return the output of a tuned model for a photograph, at the size that its processor names.

    Args:
        opened: A model with a head.
        photograph: uint8 RGB `(3, height, width)`.
        threshold: Least score of objects, in [0, 1], or "tuned" for that of each class in the configuration.

    Raises:
        ValueError: If the model has no head, the threshold is out of range, or outputs are not finite.
    """
    model, processor = opened.model, opened.processor
    if not opened.has_head:
        raise ValueError(f"`checkpoint` must be a model tuned for a task, got {opened.checkpoint!r}.")
    limits = limits_of(model.config, threshold) if isinstance(model, OBJECTS) else {}
    inputs = processor(photograph, return_tensors="pt").to(model.device, model.dtype)
    outputs: Any = model(**inputs)
    check_outputs(outputs)
    for name, value in outputs.items():
        if torch.is_tensor(value) and value.is_floating_point():
            outputs[name] = value.float()  # masks and boxes are resized in float32
    small, mask = shown(photograph), inputs.get("pixel_mask")
    sizes = [tuple(small.shape[-2:])]
    if isinstance(model, RadioForImageClassification):
        return _of_classes(opened, outputs.logits[0], small)
    if isinstance(model, RadioForSemanticSegmentation):
        labels = processor.post_process_semantic_segmentation(outputs, sizes, pixel_mask=mask)[0].cpu()
        names = opened.class_names
        regions = [LabeledRegion((labels == index).numpy(), names[index], index) for index in labels.unique().tolist()]
        return Prediction(describe_shares(regions), small, regions)
    if isinstance(model, RadioForDepthEstimation):
        found = processor.post_process_depth_estimation(outputs, sizes, pixel_mask=mask)
        return _of_depth(found[0]["predicted_depth"].cpu(), small)
    least = min(limits.values())
    if isinstance(model, RadioForObjectDetection):
        found = processor.post_process_object_detection(outputs, least, sizes)[0]
        areas: Sequence[Any] = [tuple(box) for box in found["boxes"].round().int().tolist()]
        labels, scores = found["labels"].tolist(), found["scores"].tolist()
    else:
        found = processor.post_process_instance_segmentation(
            outputs, least, target_sizes=sizes, pixel_mask=mask, return_binary_maps=True
        )[0]
        areas = found["segmentation"].cpu().numpy()
        labels, scores = ([info[name] for info in found["segments_info"]] for name in ("label_id", "score"))
    return _of_objects(opened.class_names, small, zip(areas, labels, scores, strict=True), limits)


def _of_classes(opened: Opened, logits: Tensor, photograph: Tensor) -> Prediction:
    values = class_scores(logits, opened.model.config).tolist()
    scores = {opened.class_names[index]: score for index, score in enumerate(values)}
    if opened.model.config.problem_type == "regression":
        description = ", ".join(f"{name} {number:.3g}" for name, number in scores.items())
        return Prediction(f"{description}.", photograph, scores={})
    best = max(scores, key=lambda name: scores[name])
    return Prediction(f"{best}, {scores[best]:.2f}.", photograph, scores=scores)


def _of_depth(depth: Tensor, photograph: Tensor) -> Prediction:
    near, far = float(depth.min()), float(depth.max())
    description = f"Depth from {near:.3g} (dark) to {far:.3g}, in the unit of its labels."
    return Prediction(description, photograph, depth=draw_depth(depth))


def draw_depth(depth: Tensor) -> Tensor:
    """Return a map of depth `(height, width)` as colors, uint8 RGB `(3, height, width)`, the nearest dark."""
    near, far = float(depth.min()), float(depth.max())
    return to_pixels(similarity_colors((depth[None] - near) / max(far - near, 1e-12))[0])


def _of_objects(
    names: Mapping[int, str], photograph: Tensor, found: Iterable[tuple[Any, int, float]], limits: Mapping[str, float]
) -> Prediction:
    """Return objects (area, label, score) above the limit of their class as regions, the most certain first."""
    kept = [
        LabeledRegion(area, f"{names[label]} {score:.2f}", label)
        for area, label, score in sorted(found, key=lambda each: -each[2])
        if score > limits[names[label]]
    ]
    more = f", of which {MAX_OBJECTS} are drawn" if len(kept) > MAX_OBJECTS else ""
    return Prediction(f"{counted(len(kept), 'object')}{more}.", photograph, kept[:MAX_OBJECTS])


def describe_shares(regions: Sequence[LabeledRegion]) -> str:
    """Return the share of each region in the photograph, in words."""
    shares = ", ".join(f"{region.label} {100 * region.area.mean():.0f} %" for region in regions)
    return f"Share of the photograph: {shares or 'none'}."
