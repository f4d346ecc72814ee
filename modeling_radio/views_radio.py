"""Views of images: overlapping tiles, scales and mirror images, and the maps of tiles joined without seams.

Tiles are the sliding windows of segmentation (the stride is a tile without its overlap) and SAHI's slices for small
objects: https://arxiv.org/abs/2202.06934.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks_radio import Resolution, nearest_multiple, window_starts
from .configuration_radio import RadioConfig
from .outputs_radio import RadioAdaptorOutput, RadioModelOutput


LARGEST_SCALE = 16.0  # our choice: far above any use


class View(NamedTuple):
    """One view of a batch of images.

    Attributes:
        pixel_values: `(batch, channels, height, width)`.
        region: Left, top, right and bottom edge as shares of the whole image.
        is_flipped: Whether the view is mirrored.
    """

    pixel_values: Tensor
    region: tuple[float, float, float, float]
    is_flipped: bool


@dataclass(frozen=True)
class Tiles:
    """Overlapping square tiles of an image, whose maps are joined without seams.

    Where tiles overlap, the weight of each falls linearly to its border, and the weights of a place sum to one.

    Attributes:
        size: Height and width of the image in pixels.
        side: Side of a tile in pixels; a tile covers a shorter side of the image in full.
        stride: Pixels from one tile to the next, at most `side`; the last tiles end at the edges of the image.

    Raises:
        ValueError: If the stride would leave gaps, or is not positive.
    """

    size: tuple[int, int]
    side: int
    stride: int

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.side:
            raise ValueError(f"`stride` must be from 1 to the `side` of a tile, {self.side}, got {self.stride}.")

    def places(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield top, left, height and width of each tile in pixels, row by row."""
        for top, left in itertools.product(*(window_starts(side, self.side, self.stride) for side in self.size)):
            yield top, left, min(self.side, self.size[0]), min(self.side, self.size[1])

    def strips(self, run: Callable[[int, int, int, int], Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        """Yield maps of the image in strips, from the top to the bottom; in memory is one row of tiles.

        Args:
            run: Takes top, left, height and width of a tile in pixels. It returns maps of the tile, each
                `(batch, channels, rows, cols)` with a cell for a pixel or a square of pixels.

        Yields:
            For each map of a tile the next rows of that of the image, `(batch, channels, rows, all_cols)`.

        Raises:
            ValueError: If a tile does not begin at a cell of its maps.
        """
        strips: list[_Strip] = []
        for row, places in itertools.groupby(self.places(), lambda place: place[0]):
            for top, left, height, width in places:
                maps = run(top, left, height, width)
                strips = strips or [_Strip(self, each) for each in maps]
                for strip, each in zip(strips, maps, strict=True):
                    strip.add(top, left, each)
            yield [strip.finish(row) for strip in strips]

    def join(self, run: Callable[[int, int, int, int], Sequence[Tensor]]) -> list[Tensor]:
        """Return maps of the image, each `(batch, channels, rows, cols)`; those of a single tile as they are.

        Args:
            run: See `strips`.

        Raises:
            ValueError: As `strips`.
        """
        parts = zip(*self.strips(run), strict=True)
        return [each[0] if len(each) == 1 else torch.cat(each, dim=2) for each in parts]


class _Strip:
    """Rows of a map that the tiles at hand cover.

    Args:
        tiles: The tiles.
        first: Map of one of them.
    """

    def __init__(self, tiles: Tiles, first: Tensor) -> None:
        weights = []
        for length, cells in zip(tiles.size, first.shape[2:], strict=True):
            pixels = min(tiles.side, length)
            starts = window_starts(length, tiles.side, tiles.stride)
            if any(start * cells % pixels for start in starts):
                raise ValueError(
                    f"`tile_overlap` must let each tile begin at a cell of the maps, got tiles of {pixels} pixels at "
                    f"{starts}, whose maps have {cells} cells."
                )
            inside = [start * cells // pixels for start in starts]
            weights.append(dict(zip(starts, zip(inside, _weights(inside, cells), strict=True), strict=True)))
        self.rows, self.cols = weights
        tops = [top for top, _ in self.rows.values()]
        self.ends = dict(zip(self.rows, [*(b - a for a, b in itertools.pairwise(tops)), first.shape[2]], strict=True))
        width = max(left for left, _ in self.cols.values()) + first.shape[3]
        # Sums of half precision would be coarser than its numbers.
        self.dtype, summed = first.dtype, torch.promote_types(first.dtype, torch.float32)
        self.band = first.new_zeros((*first.shape[:3], width), dtype=summed)

    def add(self, top: int, left: int, maps: Tensor) -> None:
        """Add the map of the tile that begins at a pixel."""
        down, (start, across) = self.rows[top][1], self.cols[left]
        weights = (down[:, None] * across).to(self.band)
        self.band[..., start : start + maps.shape[3]] += maps * weights

    def finish(self, top: int) -> Tensor:
        """Return the rows that are complete after the tiles that begin at a row of pixels."""
        end = self.ends[top]
        done, rest = self.band[:, :, :end], self.band[:, :, end:]
        if top != max(self.rows):
            self.band = torch.cat([rest, torch.zeros_like(done)], dim=2)
        return done.to(self.dtype)


def _weights(starts: list[int], length: int) -> list[Tensor]:
    """Return the weights of tiles along one side, `(length,)` each: they sum to one at every place.

    Args:
        starts: First place of each tile.
        length: Places of a tile.
    """
    places, ramps = torch.arange(length, dtype=torch.float64) + 0.5, []
    total = torch.zeros(starts[-1] + length, dtype=torch.float64)
    # Tiles that do not overlap keep their full weight: half a place is nearer than the first one.
    shared = [max(first + length - second, 0.5) for first, second in itertools.pairwise(starts)]
    for start, before, after in zip(starts, [0.5, *shared], [*shared, 0.5], strict=True):
        ramps.append(torch.minimum(places / before, (length - places) / after).clamp(max=1))
        total[start : start + length] += ramps[-1]
    return [ramp / total[start : start + length] for start, ramp in zip(starts, ramps, strict=True)]


@dataclass(frozen=True)
class ViewOptions:
    """Options of test-time augmentation; the model runs once for each view.

    Attributes:
        tile_size: Side of the square tiles in pixels; `None` takes whole images. A tile covers a shorter side in full.
        tile_overlap: Share of a tile that overlaps the next one, in [0, 1).
        scales: Factors on the sides of the image; each gives a view.
        flip: Also take the mirror image.

    Raises:
        ValueError: If an option is invalid.
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
        """Yield the views of images.

        Args:
            config: The model's configuration, which limits the sizes.
            pixel_values: `(batch, channels, height, width)`, of any size where there are tiles.

        Raises:
            ValueError: If the model does not take a tile of this size.
        """
        for scale in self.scales:
            image = self._scaled(config, pixel_values, scale)
            height, width = image.shape[-2:]
            for top, left, rows, cols in self.tiles(config, Resolution(height, width)).places():
                crop = image[..., top : top + rows, left : left + cols]
                region = (left / width, top / height, (left + cols) / width, (top + rows) / height)
                yield View(crop, region, is_flipped=False)
                if self.flip:
                    yield View(crop.flip(-1), region, is_flipped=True)

    def tiles(self, config: RadioConfig, size: Resolution) -> Tiles:
        """Return the tiles of an image; without `tile_size` it is one.

        Args:
            config: The model's configuration, which limits the sizes.
            size: Height and width of the image in pixels.

        Raises:
            ValueError: If the model does not take a tile of this size.
        """
        step = config.resolution_step
        if self.tile_size is not None:
            nearest = config.nearest_resolution(self.tile_size, self.tile_size).height
            if self.tile_size != nearest:
                raise ValueError(
                    f"`tile_size` must be a multiple of {step} and at most {config.largest_side}, got "
                    f"{self.tile_size}. The nearest is {nearest}."
                )
        side = self.tile_size or max(size)
        return Tiles(size, side, min(max(int(side * (1 - self.tile_overlap)) // step, 1) * step, side))

    def join(self, config: RadioConfig, pixel_values: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean of the maps of all views, those of tiles joined, `(batch, channels, height, width)`.

        Args:
            config: The model's configuration, which limits the sizes.
            pixel_values: See `take`.
            run: Returns the map of images, with their height and width.

        Raises:
            ValueError: As `tiles`.
        """
        size, total = pixel_values.shape[-2:], None
        for scale in self.scales:
            maps = self._join_tiles(config, self._scaled(config, pixel_values, scale), run)
            if maps.shape[-2:] != size:
                maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
            total = maps if total is None else total + maps
        assert total is not None  # there are scales
        return total / len(self.scales)

    def _join_tiles(self, config: RadioConfig, image: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        def of_tile(top: int, left: int, height: int, width: int) -> list[Tensor]:
            crop = image[..., top : top + height, left : left + width]
            maps = run(crop)
            return [(maps + run(crop.flip(-1)).flip(-1)) / 2 if self.flip else maps]

        return self.tiles(config, Resolution(*image.shape[-2:])).join(of_tile)[0]

    def _scaled(self, config: RadioConfig, images: Tensor, scale: float) -> Tensor:
        height, width = images.shape[-2:]
        if scale == 1:
            return images
        # The model sees only tiles where there are any, so the image itself may have any size.
        bound = config.largest_side if self.tile_size is None else int(LARGEST_SCALE * max(height, width))
        return resized(images, nearest_multiple(height * scale, width * scale, config.resolution_step, bound))


def resized(images: Tensor, size: Resolution) -> Tensor:
    """Resize images with values in [0, 1], in float32, since CPUs have no kernel for half precision."""
    resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1).to(images.dtype)


@torch.no_grad()
def encode_tiles(
    config: RadioConfig, pixel_values: Tensor, encode: Callable[[Tensor], Any], options: ViewOptions
) -> RadioModelOutput:
    """Return the features of large images, seen in tiles.

    Args:
        config: The model's configuration, which limits the sizes.
        pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`, sides multiples of the patch.
        encode: Returns a `RadioModelOutput` of images, or what has its `summary`, `features` and `adaptors`; features
            in the "NCHW" format.
        options: `tile_size` and `tile_overlap`.

    Returns:
        `summary`, the mean of those of the tiles; `features` of the images, `(batch, hidden_size, rows, cols)`; and
        the same of each adaptor. Of a single tile they are the model's own.

    Raises:
        ValueError: If the model does not take a tile of this size, or a tile does not begin at a cell of its maps.
    """
    found: list[dict[str, Any]] = []

    def of_tile(top: int, left: int, height: int, width: int) -> list[Tensor]:
        output = encode(pixel_values[..., top : top + height, left : left + width])
        pairs = {"": output, **(output.adaptors or {})}
        found.append({name: pair.summary for name, pair in pairs.items()})
        return [pair.features for pair in pairs.values()]

    size = Resolution(*pixel_values.shape[-2:])
    joined = options.tiles(config, size).join(of_tile)
    maps = dict(zip(found[0], joined, strict=True))
    means = {
        name: None if first is None else torch.stack([each[name] for each in found]).mean(0)
        for name, first in found[0].items()
    }
    adaptors = {name: RadioAdaptorOutput(means[name], maps[name]) for name in maps if name}
    return RadioModelOutput(means[""], maps[""], pooler_output=means[""], adaptors=adaptors)
