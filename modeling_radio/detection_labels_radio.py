"""Labels of objects: what is checked before a detector learns from them."""

from collections.abc import Mapping

from torch import Tensor
from torchvision.ops import box_convert

from .configuration_radio import RadioConfig
from .resolution_radio import Resolution


BOX_TOLERANCE = 1e-3  # our choice: how far rounding may bring a box out of [0, 1]


def check_num_queries(config: RadioConfig, grid: Resolution) -> None:
    """Refuse images with fewer patches than queries: each query starts from a patch of its own."""
    num_queries = config.detection_num_queries
    if grid.height * grid.width < num_queries:
        side = int(num_queries**0.5 + 0.999) * config.patch_size
        raise ValueError(
            f"`detection_num_queries` must be at most {grid.height * grid.width} for images of {grid.height} x "
            f"{grid.width} patches, got {num_queries}. Use larger images (for example {side} x {side} pixels) or fewer "
            "queries."
        )


def check_fields(label: Mapping[str, Tensor], index: int) -> None:
    """Raise a `ValueError` unless the labels of an image have classes and boxes, as many of one as of the other."""
    if not isinstance(label, Mapping):
        raise ValueError(
            f"`labels[{index}]` must be a dictionary with `class_labels` and `boxes`, got a {type(label).__name__}."
        )
    missing = {"class_labels", "boxes"} - set(label)
    if missing:
        raise ValueError(f"`labels[{index}]` must have {sorted(missing)} too, got only {sorted(label)}.")
    classes, boxes = label["class_labels"], label["boxes"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or classes.shape != boxes.shape[:1]:
        raise ValueError(
            f"`labels[{index}]` must have `boxes` (num_boxes, 4) and `class_labels` (num_boxes,), got "
            f"{tuple(boxes.shape)} and {tuple(classes.shape)}. An image without objects has torch.zeros(0, 4)."
        )


def are_boxes(boxes: Tensor) -> Tensor:
    """Return which rows are boxes inside the image, `(num_boxes,)`."""
    low, high = -BOX_TOLERANCE, 1 + BOX_TOLERANCE
    corners = box_convert(boxes, "cxcywh", "xyxy")
    return ((corners >= low) & (corners <= high)).all(dim=1) & (boxes[:, 2:] > 0).all(dim=1)


def check_boxes(boxes: Tensor, index: int) -> None:
    """Raise a `ValueError` that shows the first box of an image that is none."""
    valid = are_boxes(boxes)
    if not valid.all():
        raise ValueError(
            f"`boxes` of `labels[{index}]` must be (center x, center y, width, height) as shares of the image, inside "
            f"it and not empty, got {boxes[~valid][0].tolist()}. Divide pixels by the image's width and height, and "
            "clip or drop boxes that a crop has cut (torchvision's ClampBoundingBoxes and SanitizeBoundingBoxes)."
        )
