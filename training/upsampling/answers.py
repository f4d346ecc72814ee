"""What the trainer is fed: images, and the frozen teacher's answers to them, their tiles and their views."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.data.decoding import to_tensor
from training.data.image_table import SPLITS, Images, Split
from training.data.sources import DEMO_SOURCES
from training.demo_kit.assets import load_demo_assets
from training.demo_kit.drawing import load_pixel_bank
from training.recipe import DataRecipe
from training.teachers.answers import resize_images
from training.teachers.base import Teacher
from training.teachers.run_modes.tile_upsampling import cut_tiles, stitch_tiles
from training.upsampling.views import WHOLE, View, draw_view, view_of_image
from training.views.images import build_images, build_training_images


KEPT_DTYPE = torch.bfloat16


class PhotographCrops(Images):
    """Square crops of the demo's photographs, never enlarged; one photograph after the other.

    Args:
        source: "demo" or "demo-pypi".
        size: Their side, pixels.
        num_images: How many.
        split: Whose photographs.
    """

    def __init__(self, source: str, *, size: int, num_images: int, split: Split) -> None:
        self.size, self.num_images, self.split = size, num_images, split
        assets = load_demo_assets(source)
        self.photographs, self.description = load_pixel_bank(assets, split).photographs, assets.description

    def __len__(self) -> int:
        return self.num_images

    def fingerprint(self) -> str:
        """Return what they are made of."""
        return self.description

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`: uint8 `(3, size, size)`, RGB."""
        photograph = self.photographs[index % len(self.photographs)]
        share, x, y = np.random.default_rng([SPLITS.index(self.split), index]).random(3)
        shortest = min(photograph.size)
        side = max(min(self.size, shortest), shortest * share)
        left, top = x * (photograph.width - side), y * (photograph.height - side)
        box = (left, top, left + side, top + side)
        return to_tensor(photograph.resize((self.size, self.size), box=box, reducing_gap=3.0))


def open_images(data: DataRecipe, size: int, num_images: int, split: Split) -> Images:
    """Return a recipe's images as squares: of the demo its photographs, which have detail everywhere.

    Raises:
        ValueError: If there are none, or none that are held out.
    """
    if data.source in DEMO_SOURCES:
        return PhotographCrops(data.source, size=size, num_images=num_images, split=split)
    if split == "held_out":
        return build_images(data.source, size=size, split=split)
    return build_training_images(data.replace(image_size_px=size), is_square=True)


class Example(NamedTuple):
    """A batch of the trainer, on its device.

    Attributes:
        images: Pixels at `factor` times the teacher's input, normalized as it does, `(batch, 3, side, side)`.
        whole: Its features of the images at its input size, `(batch, feature_dim, grid, grid)`.
        tiles: Its stitched features of tiles, `(batch, feature_dim, factor * grid, factor * grid)`.
        views: What is seen of each image, one list for each view.
        targets: Its features of these views, `(len(views), batch, feature_dim, grid, grid)`.
    """

    images: Tensor
    whole: Tensor
    tiles: Tensor
    views: list[list[View]]
    targets: Tensor


class Answers:
    """A fixed-size teacher's answers, in half precision, on its device.

    They are kept in the main memory as long as there is room; those that find none are computed at each use, and are
    the same.

    Args:
        teacher: In the run mode "fixed".
        images: Squares of `factor` times its input size.
        factor: Tiles along a side.
        seed: Decides the views, and in training the weights and the order of the images.
        largest_view: Largest side of a view over the image's.
        memory_gb: Room for what is kept.
    """

    def __init__(
        self,
        teacher: Teacher,
        images: Images,
        factor: int,
        seed: int,
        *,
        largest_view: float = 1.0,
        memory_gb: float = math.inf,
    ) -> None:
        assert teacher.run.input_size_px is not None
        self.teacher, self.images, self.factor, self.seed = teacher, images, factor, seed
        self.largest_view = largest_view
        self.size = teacher.run.input_size_px
        self._kept: dict[tuple[int, int | str], Tensor] = {}
        self._room = 1e9 * memory_gb

    def num_bytes(self, num_images: int, num_views: int) -> int:
        """Return what all answers to so many images take: to each as a whole, to its views and to its tiles."""
        num_cells = (self.size // self.teacher.patch_size) ** 2
        num_maps = 1 + num_views + self.factor**2
        return num_images * num_maps * num_cells * self.teacher.feature_dim * KEPT_DTYPE.itemsize

    def pixels(self, index: int) -> Tensor:
        """Return image `index` on the teacher's device, RGB in [0, 1], `(1, 3, side, side)`."""
        return self.images[index][None].to(self.teacher.mean.device).float() / 255

    def run(self, pixel_values: Tensor) -> Tensor:
        """Return the teacher's features of images, on the grid that their size gives."""
        return self.teacher([[pixel_values]])[0].features

    def view(self, index: int, number: int) -> View:
        """Return view `number` of an image; the first is the whole."""
        side, largest = self.factor * self.size, self.largest_view
        return draw_view(side, self.seed, index, number, largest=largest) if number else WHOLE

    def of_view(self, index: int, number: int) -> Tensor:
        """Return the features of a view, `(1, feature_dim, grid, grid)`."""

        def compute() -> Tensor:
            return self.run(view_of_image(self.pixels(index), self.view(index, number), self.size))

        return self._answer((index, number), compute)

    def of_tiles(self, index: int) -> Tensor:
        """Return the stitched features of an image's tiles, `(1, feature_dim, factor * grid, factor * grid)`."""

        def compute() -> Tensor:
            tiles = self.run(cut_tiles(self.pixels(index), self.factor, self.factor))
            return stitch_tiles(tiles, self.factor, self.factor)

        return self._answer((index, "tiles"), compute)

    def _answer(self, key: tuple[int, int | str], compute: Callable[[], Tensor]) -> Tensor:
        if key in self._kept:
            return self._kept[key].to(self.teacher.mean.device).float()
        answer = compute().to(KEPT_DTYPE)
        if answer.nbytes <= self._room:
            self._room -= answer.nbytes
            self._kept[key] = answer.cpu()
        return answer.float()

    def example(self, indices: Sequence[int], numbers: Sequence[int]) -> Example:
        """Return some images and, besides each as a whole, some of its views."""
        numbers = [0, *numbers]
        pixels = torch.cat([self.pixels(index) for index in indices])
        targets = [torch.cat([self.of_view(index, number) for index in indices]) for number in numbers]
        return Example(
            (pixels - self.teacher.mean) / self.teacher.std,
            targets[0],
            torch.cat([self.of_tiles(index) for index in indices]),
            [[self.view(index, number) for index in indices] for number in numbers],
            torch.stack(targets),
        )

    def larger(self, index: int) -> Tensor:
        """Return the features of an image that the teacher sees at once at its full size, as fine as its tiles'."""
        return self.run(resize_images(self.pixels(index), (self.factor * self.size,) * 2))
