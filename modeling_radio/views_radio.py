"""Several looks at an image at test time: tiles of a large one, other scales, its mirror image; and their joint answer.

Tiles are what sliding windows are in semantic segmentation (the stride is a tile without its overlap) and what SAHI
does for small objects: https://arxiv.org/abs/2202.06934.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from .class_scores_radio import reading_of
from .configuration_radio import RadioConfig
from .resolution_radio import Resolution, largest_side, nearest_multiple, nearest_resolution


CUT_SHARE = 0.01  # our choice: of a tile's side, how near its inner edge a box ends where the tile cuts the object
LARGEST_SCALE = 16.0  # our choice: far above any use


class View(NamedTuple):
    """One look at a batch of images.

    Attributes:
        pixel_values: `(batch, channels, height, width)`.
        place: Left, top, right and bottom as shares of the whole image.
        is_flipped: Whether it is mirrored.
    """

    pixel_values: Tensor
    place: tuple[float, float, float, float]
    is_flipped: bool


@dataclass(frozen=True)
class ViewOptions:
    """Which looks are taken; a model answers once for each.

    Attributes:
        tile_size: Side of square tiles in pixels; `None` for whole images. A side that is shorter is one tile.
        tile_overlap: Share of a tile that the next one also has, in [0, 1).
        scales: Factors on the sides of the image, each of them a look.
        flip: Also look at the mirror image.

    Raises:
        ValueError: If one of them cannot be.
    """

    tile_size: int | None = None
    tile_overlap: float = 0.25  # our choice, near SAHI's 0.2: a multiple of the patch for usual tiles
    scales: Sequence[float] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.tile_size is not None and (type(self.tile_size) is not int or self.tile_size < 1):
            raise ValueError(f"`tile_size` must be a number of pixels or None, got {self.tile_size!r}.")
        if not 0 <= self.tile_overlap < 1:
            raise ValueError(f"`tile_overlap` must be in [0, 1), got {self.tile_overlap!r}.")
        if not self.scales or not all(0 < scale <= LARGEST_SCALE for scale in self.scales):
            raise ValueError(f"`scales` must be numbers in (0, {LARGEST_SCALE:g}], got {self.scales!r}.")

    def refuse(self, name: str, why: str) -> None:
        """Raise a `ValueError` if an option has another value than its default."""
        value, default = getattr(self, name), getattr(ViewOptions, name)
        if value != default and (name != "scales" or tuple(value) != default):
            raise ValueError(f"`{name}` must be {default!r}, got {value!r}: {why}.")

    def take(self, config: RadioConfig, pixel_values: Tensor) -> Iterator[View]:
        """Return the views of images.

        Args:
            config: Of the model, which says what sizes it takes.
            pixel_values: `(batch, channels, height, width)`, of any size where there are tiles.

        Raises:
            ValueError: If a tile is none of a model's sizes.
        """
        tile = None if self.tile_size is None else self._tile(config)
        for scale in self.scales:
            image = self._scaled(config, pixel_values, scale)
            height, width = image.shape[-2:]
            for top, left, rows, cols in _tiles(height, width, tile, self.tile_overlap, config.resolution_step):
                crop = image[..., top : top + rows, left : left + cols]
                place = (left / width, top / height, (left + cols) / width, (top + rows) / height)
                yield View(crop, place, is_flipped=False)
                if self.flip:
                    yield View(crop.flip(-1), place, is_flipped=True)

    def _tile(self, config: RadioConfig) -> int:
        side = self.tile_size
        nearest = nearest_resolution(config, side or 0, side or 0).height
        if side != nearest:
            raise ValueError(
                f"`tile_size` must be a multiple of {config.resolution_step} and at most {largest_side(config)}, got "
                f"{side}. The nearest is {nearest}."
            )
        return nearest

    def _scaled(self, config: RadioConfig, images: Tensor, scale: float) -> Tensor:
        height, width = images.shape[-2:]
        if scale == 1:
            return images
        # Tiles bound what the model sees, so that the image itself may be of any size.
        bound = largest_side(config) if self.tile_size is None else int(LARGEST_SCALE * max(height, width))
        return _resized(images, nearest_multiple(height * scale, width * scale, config.resolution_step, bound))


def _resized(images: Tensor, size: Resolution) -> Tensor:
    """Return images with values in [0, 1] in another size, in float32 between: CPUs have no kernel for less."""
    resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1).to(images.dtype)


def _tiles(height: int, width: int, tile: int | None, overlap: float, step: int) -> Iterator[tuple[int, ...]]:
    """Return top, left, height and width of each tile; the last ones end with the image."""
    if tile is None:
        yield 0, 0, height, width
        return
    stride = max(int(tile * (1 - overlap)) // step, 1) * step
    for top in _starts(height, tile, stride):
        for left in _starts(width, tile, stride):
            yield top, left, min(tile, height), min(tile, width)


def _starts(side: int, tile: int, stride: int) -> list[int]:
    last = max(side - tile, 0)
    return [*range(0, last, stride), last]


def average_maps(views: Iterator[tuple[View, Tensor]], size: Resolution) -> Tensor:
    """Return the mean of maps over all views that show a pixel.

    Args:
        views: Each with what the model made of it, `(batch, channels, rows, cols)`.
        size: Height and width of the whole images in pixels.

    Returns:
        `(batch, channels, height, width)`.
    """
    total = count = None
    for view, maps in views:
        maps = maps.flip(-1) if view.is_flipped else maps
        left, top, right, bottom = (
            round(share * side) for share, side in zip(view.place, (size.width, size.height) * 2, strict=True)
        )
        fitted = F.interpolate(maps, (bottom - top, right - left), mode="bilinear", align_corners=False)
        if total is None or count is None:
            total, count = maps.new_zeros(*maps.shape[:2], *size), maps.new_zeros(1, 1, *size)
        total[..., top:bottom, left:right] += fitted
        count[..., top:bottom, left:right] += 1
    assert total is not None
    assert count is not None
    return total / count


class ObjectsOfViews:
    """Boxes of several views as those of the whole images, of which one is kept where several show one object.

    Args:
        nms_threshold: Boxes of one class that overlap by more (intersection over union) are one object.
    """

    def __init__(self, nms_threshold: float) -> None:
        if not 0 <= nms_threshold <= 1:
            raise ValueError(f"`nms_threshold` must be in [0, 1], got {nms_threshold!r}.")
        self.nms_threshold = nms_threshold
        self.logits: list[Tensor] = []
        self.corners: list[Tensor] = []

    def add(self, view: View, logits: Tensor, boxes: Tensor) -> None:
        """Add what a model saw in a view.

        Boxes that end at an edge where the image goes on are left out: the object is cut there, and its whole stands in
        another tile or in the view of the whole image.

        Args:
            view: The view.
            logits: `(batch, num_queries, num_labels)`.
            boxes: Center x, center y, width and height as shares of the view, `(batch, num_queries, 4)`.
        """
        corners = box_convert(boxes, "cxcywh", "xyxy")
        if view.is_flipped:
            left, top, right, bottom = corners.unbind(-1)
            corners = torch.stack([1 - right, top, 1 - left, bottom], dim=-1)
        place = corners.new_tensor(view.place)
        is_inner = place != place.new_tensor([0, 0, 1, 1])
        is_at_edge = torch.cat([corners[..., :2] < CUT_SHARE, corners[..., 2:] > 1 - CUT_SHARE], dim=-1)
        is_cut = (is_inner & is_at_edge).any(dim=-1, keepdim=True)
        start, extent = place[:2].repeat(2), (place[2:] - place[:2]).repeat(2)
        self.logits.append(logits.masked_fill(is_cut, -torch.inf))
        self.corners.append(start + corners * extent)

    def merge(self) -> tuple[Tensor, Tensor]:
        """Return the logits and boxes of all views side by side, -inf for what another one shows better.

        Returns:
            `(batch, all_queries, num_labels)`, and `(batch, all_queries, 4)` as `add` takes them.
        """
        logits, corners = torch.cat(self.logits, dim=1), torch.cat(self.corners, dim=1)
        merged = torch.stack([self._suppress(*image) for image in zip(logits, corners, strict=True)])
        return merged, box_convert(corners, "xyxy", "cxcywh")

    def _suppress(self, logits: Tensor, corners: Tensor) -> Tensor:
        num_queries, num_classes = logits.shape
        # As in post-processing, the best pairs of query and class compete, of each view as many as it has queries.
        scores, pairs = logits.float().flatten().topk(num_queries)
        queries, classes = pairs // num_classes, pairs % num_classes
        known = scores > -torch.inf
        scores, queries, classes, pairs = scores[known], queries[known], classes[known], pairs[known]
        kept = batched_nms(corners[queries].float(), scores, classes, self.nms_threshold)
        result = torch.full_like(logits, -torch.inf).flatten()
        result[pairs[kept]] = logits.flatten()[pairs[kept]]
        return result.unflatten(0, (num_queries, num_classes))


def mean_of_probabilities(logits: Sequence[Tensor], config: RadioConfig) -> Tensor:
    """Return logits whose probabilities are the means of those of several views, or for regression the mean number.

    Args:
        logits: Of each view, `(batch, num_labels)`.
        config: Of the classifier.

    Returns:
        `(batch, num_labels)`, float32.
    """
    stacked, reading = torch.stack([each.float() for each in logits]), reading_of(config)
    if reading == "none":
        return stacked.mean(0)
    if reading == "sigmoid":
        return stacked.sigmoid().mean(0).logit()
    return stacked.log_softmax(-1).logsumexp(0).sub(torch.tensor(float(len(logits))).log())


def fit_whole(config: RadioConfig, pixel_values: Tensor, tile_size: int) -> Tensor:
    """Return images made so small that they have no more pixels than a tile, and if they are long, few less.

    A detector needs as many patches as it has queries, which a long image as wide as a tile would not have.
    """
    height, width = pixel_values.shape[-2:]
    factor = min(1.0, tile_size / (height * width) ** 0.5, largest_side(config) / max(height, width))
    return _resized(pixel_values, nearest_resolution(config, round(height * factor), round(width * factor)))


def require_pixels(pixel_values: Any) -> Resolution:
    """Return the size of images `(batch, channels, height, width)`.

    Raises:
        ValueError: If they are none.
    """
    if not isinstance(pixel_values, Tensor) or pixel_values.ndim != 4:
        found = tuple(pixel_values.shape) if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise ValueError(f"`pixel_values` must be (batch, channels, height, width), got {found}.")
    return Resolution(*pixel_values.shape[-2:])
