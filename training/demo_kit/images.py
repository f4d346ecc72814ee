"""The demo's unlabeled images, each a pure function of (seed, index, size), and their rendering in bulk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from foundation.machine.timing import ProgressBar
from modeling_radio.checks_radio import check_choice
from training.data.decoding import to_tensor
from training.data.image_table import SPLITS, Images, Split
from training.demo_kit.assets import DemoAssets
from training.demo_kit.drawing import PixelBank, compose_scene, cut_out_on_ground, load_pixel_bank, random_crop


# Our choices, after a small study: mostly objects in front of photographs, the rest for variety.
SCENE_SHARE = 0.40
OBJECT_SHARE = 0.27
PHOTOGRAPH_SHARE = 0.17
EMOJI_SHARE = 0.16
assert abs(SCENE_SHARE + OBJECT_SHARE + PHOTOGRAPH_SHARE + EMOJI_SHARE - 1) < 1e-9

MAX_OBJECTS_IN_SCENE = 2  # our choice: at 128 px a third object mostly hides the others
MAX_MARGIN = 0.2  # our choice: an object alone fills 60 to 100 percent of the side
EMOJI_MIN_GROUND = 60  # our choice: emoji are drawn for light grounds; most vanish on near-black
RENDER_BATCH = 64  # our choice: images a worker hands over at once


class DemoImages(Images):
    """Pictures of real objects and places: composites, single objects, crops of photographs, emoji.

    Item `index` depends on (seed, split, index) alone, and on `size` only by resampling: the same item at
    another size is the same picture. Objects, emoji and photographs of the other split are never used.

    Args:
        assets: What the images are made of.
        size: Side of the square images, pixels.
        num_images: Length of the data set.
        seed: Decides the random images.
        split: Whose objects and photographs to use.

    Raises:
        ValueError: If a size or a number is not positive, or the split is unknown.
    """

    def __init__(self, assets: DemoAssets, *, size: int, num_images: int, seed: int = 0, split: Split = "train"):
        if size < 1 or num_images < 1:
            raise ValueError(f"`size` and `num_images` must be positive, got {size} and {num_images}.")
        check_choice("split", split, SPLITS)
        self.size = size
        self.num_images = num_images
        self.seed = seed
        self.split = split
        self.bank = load_pixel_bank(assets, split)
        self.description = assets.description

    def __len__(self) -> int:
        return self.num_images

    def fingerprint(self) -> str:
        """Return what they are made of: packages of fixed versions, as far as they could be reached."""
        return self.description

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`: uint8 `(3, size, size)`, RGB."""
        return to_tensor(_draw_image(self.bank, self.size, self._random(index)))

    def source_of(self, index: int) -> str:
        """Return the picture that most of image `index` shows: its photograph, or the cut-out that is alone on it.

        Images of one source resemble each other: intervals must not count them as independent.
        """
        bank, random = self.bank, self._random(index)
        kind = random.random()
        if kind < SCENE_SHARE + PHOTOGRAPH_SHARE:
            return f"photograph {random.integers(len(bank.photographs))}"  # what scenes and crops draw first
        cut_outs, name = _cut_outs(bank, kind)
        return f"{name} {random.integers(len(cut_outs))}"

    def _random(self, index: int) -> np.random.Generator:
        if not 0 <= index < self.num_images:
            raise IndexError(f"`index` must be in [0, {self.num_images}), got {index}.")
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index])


def _cut_outs(bank: PixelBank, kind: float) -> tuple[tuple[Image.Image, ...], Literal["emoji", "object"]]:
    """Return what an image with a cut-out alone is drawn from; without emoji (PyPI only) objects take their share."""
    return (bank.emoji, "emoji") if kind >= 1 - EMOJI_SHARE and bank.emoji else (bank.objects, "object")


def _draw_image(bank: PixelBank, size: int, random: np.random.Generator) -> Image.Image:
    kind = random.random()
    if kind < SCENE_SHARE:
        return compose_scene(bank, size, MAX_OBJECTS_IN_SCENE, random)[0]
    if kind < SCENE_SHARE + PHOTOGRAPH_SHARE:
        return random_crop(bank.photographs[random.integers(len(bank.photographs))], size, random)
    cut_outs, name = _cut_outs(bank, kind)
    darkest = EMOJI_MIN_GROUND if name == "emoji" else 0
    cut_out = cut_outs[random.integers(len(cut_outs))]
    margin, mirror = random.random(2)
    red, green, blue = (int(value) for value in random.integers(darkest, 256, size=3))
    picture = cut_out_on_ground(cut_out, size, MAX_MARGIN * margin, (red, green, blue))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else picture


def render(dataset: Images, indices: Sequence[int], *, num_workers: int = 2, show_progress: bool = True) -> Tensor:
    """Render many images with worker processes and a progress bar.

    Args:
        dataset: Images of one size.
        indices: Which items, in the order of the result.
        num_workers: Worker processes; 0 renders in this process. The result does not depend on it.
        show_progress: Whether to show the bar.

    Returns:
        uint8 `(len(indices), 3, height, width)`, RGB.

    Raises:
        ValueError: If `indices` is empty.
    """
    if len(indices) == 0:
        raise ValueError("`indices` must name at least one image, got none.")
    loader = DataLoader(Subset(dataset, indices), batch_size=RENDER_BATCH, num_workers=num_workers)
    images: Tensor | None = None
    position = 0
    with ProgressBar(
        total=len(indices), desc="images", unit="image", disable=not show_progress, leave=False
    ) as progress:
        for batch in loader:
            if images is None:
                images = torch.empty((len(indices), *batch.shape[1:]), dtype=batch.dtype)
            images[position : position + len(batch)] = batch
            position += len(batch)
            progress.update(len(batch))
    assert images is not None
    return images
