"""A folder of a user's own images as a training set."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from training.data.demo_assets import SPLITS, Split
from training.data.pixels import crop_to_shape, to_tensor


logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})
MIN_SIDE_PX = 32  # our choice: below two patches of 16 there is nothing for a dense teacher to see
HELD_OUT_SHARE = 0.1  # our choice
CROP_MIN_AREA = 0.3  # our choice: share of the image's area that a training crop keeps at least
_UNREADABLE = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class ImageFolder(Dataset[Tensor]):
    """All images below a folder: random crops for training, centred ones when held out.

    A tenth of the files is held out, chosen by a hash of their names. Item `index` depends on (seed, index,
    size) and the folder alone; beyond the number of files it shows them again, cropped differently. Files
    that are too small or cannot be read are skipped, logged by name and listed in `skipped`; an image that
    only breaks while it is decoded is replaced by the next one.

    Args:
        folder: Where to look, sub-folders included.
        size: Side of the square images, pixels.
        num_images: Length of the data set; None takes every file once.
        seed: Which random crops.
        split: Which files.

    Raises:
        ValueError: If the folder does not exist or has no usable image.
    """

    def __init__(
        self, folder: Path, *, size: int, num_images: int | None = None, seed: int = 0, split: Split = "train"
    ):
        if size < 1 or (num_images is not None and num_images < 1):
            raise ValueError(f"size and num_images must be positive, not {size} and {num_images}")
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        self.size = size
        self.seed = seed
        self.split = split
        self.skipped: dict[Path, str] = {}
        self.paths = _files_of_split(folder, self._usable_files(folder), split)
        self.num_images = len(self.paths) if num_images is None else num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`: uint8 `(3, size, size)`, RGB."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"image {index} of {self.num_images}")
        for attempt in range(len(self.paths)):
            path = self.paths[(index + attempt) % len(self.paths)]
            picture = None if path in self.skipped else self._decode(path)
            if picture is not None:
                return to_tensor(self._crop(picture, index))
        raise ValueError(f"none of the {len(self.paths)} images could be decoded; the first is {self.paths[0]}")

    def _usable_files(self, folder: Path) -> list[Path]:
        if not folder.is_dir():
            raise ValueError(f"image folder {str(folder)!r} does not exist")
        candidates = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        usable = [path for path in candidates if self._header_is_fine(path)]
        if not usable:
            raise ValueError(
                f"image folder {str(folder)!r} has no usable image ({len(self.skipped)} skipped); "
                f"it needs files ending in {', '.join(sorted(IMAGE_SUFFIXES))} of at least {MIN_SIDE_PX} px"
            )
        if self.skipped:
            logger.warning("%s: skipped %d of %d images", folder, len(self.skipped), len(candidates))
        return usable

    def _header_is_fine(self, path: Path) -> bool:
        try:
            with Image.open(path) as picture:
                width, height = picture.size
        except _UNREADABLE as error:
            self._skip(path, f"unreadable: {error}")
            return False
        if min(width, height) < MIN_SIDE_PX:
            self._skip(path, f"too small: {width} x {height} px")
            return False
        return True

    def _decode(self, path: Path) -> Image.Image | None:
        try:
            with Image.open(path) as file:
                # A quarter of the area is cut away at most, so twice the size is enough for every crop.
                file.draft("RGB", (2 * self.size, 2 * self.size))
                return file.convert("RGB")
        except _UNREADABLE as error:
            self._skip(path, f"unreadable: {error}")
            return None

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped[path] = reason
        logger.warning("skipping image %s: %s", path, reason)

    def _crop(self, picture: Image.Image, index: int) -> Image.Image:
        if self.split == "held_out":
            return crop_to_shape(picture, self.size, self.size)
        area, x, y, mirror = np.random.default_rng([self.seed, index]).random(4)
        side = min(picture.size) * (CROP_MIN_AREA + (1 - CROP_MIN_AREA) * area) ** 0.5
        left, top = x * (picture.width - side), y * (picture.height - side)
        box = (left, top, left + side, top + side)
        crop = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else crop


def _files_of_split(folder: Path, paths: list[Path], split: Split) -> list[Path]:
    """Return the files of one split: the first tenth in the order of their names' hashes is held out."""
    by_hash = sorted(paths, key=lambda path: hashlib.sha256(str(path.relative_to(folder)).encode()).digest())
    num_held_out = max(1, round(HELD_OUT_SHARE * len(paths))) if len(paths) > 1 else 0
    chosen = set(by_hash[:num_held_out] if split == "held_out" else by_hash[num_held_out:])
    if not chosen:
        raise ValueError(f"image folder {str(folder)!r} has one image only: none is left for the split {split!r}")
    return [path for path in paths if path in chosen]
