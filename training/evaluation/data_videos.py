"""Videos with the masks of their objects: the validation split of DAVIS 2017."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from modeling_radio.training.data.decoding import to_tensor
from modeling_radio.training.data.labeled.folders import read_names
from modeling_radio.training.data.labeled.labels import read_mask
from modeling_radio.training.evaluation.data import Examples, groups_of
from modeling_radio.training.evaluation.public_sets import (
    OTHER_SETS,
    PublicPart,
    check_count,
    files_state,
    load_image_file,
    size_of_image_file,
)


DAVIS = OTHER_SETS["davis"]
VIDEOS, OBJECTS = 30, 61
"""Videos of the validation split of DAVIS 2017, and the objects in them. https://arxiv.org/abs/1704.00675; counted in
the results that https://github.com/davisvideochallenge/davis2017-evaluation has."""
LONG_SIDE_STEP = 64
"""The longer side is a multiple of this; as in DINO's code."""


class Frames:
    """Frames with a shorter side of a given size, and a longer side that is a multiple of 64 pixels; as in DINO's code.

    Args:
        paths: Files of the frames.
        size_px: Shorter side.
    """

    def __init__(self, paths: list[Path], size_px: int) -> None:
        self.paths, self.size_px = paths, size_px

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = to_tensor(load_image_file(self.paths[index]))
        return resize(image, list(self._scaled(*image.shape[1:])), InterpolationMode.BILINEAR, antialias=False)

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels."""
        return self._scaled(*size_of_image_file(self.paths[index]))

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        longer = max(height, width) * self.size_px / min(height, width)
        longer = max(int(longer // LONG_SIDE_STEP) * LONG_SIDE_STEP, self.size_px)
        return (longer, self.size_px) if height > width else (self.size_px, longer)


class FrameMasks:
    """Ids of the objects in frames, int64 `(height, width)`; 0 is background."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return read_mask(load_image_file(self.paths[index], as_stored=True), str(self.paths[index]))


def open_davis(folder: Path, size_px: int) -> PublicPart:
    """Open the validation videos of a folder DAVIS.

    Args:
        folder: Has `ImageSets/2017/val.txt`, `JPEGImages/480p/VIDEO/` and `Annotations/480p/VIDEO/`.
        size_px: Shorter side of the frames.

    Raises:
        ValueError: If videos or frames are missing.
    """
    list_file = folder / "ImageSets" / "2017" / "val.txt"
    videos = read_names(list_file) if list_file.is_file() else []
    check_count(DAVIS.title, "validation videos", len(videos), VIDEOS, DAVIS.address)
    frames, masks, names = list[Path](), list[Path](), list[str]()
    for video in videos:
        found = sorted((folder / "JPEGImages" / "480p" / video).glob("*.jpg"))
        own = sorted((folder / "Annotations" / "480p" / video).glob("*.png"))
        if not found or [path.stem for path in found] != [path.stem for path in own] or not _is_whole(found):
            raise ValueError(f"`data` must have all frames of {video} and their masks in {folder}. See {DAVIS.address}")
        frames, masks, names = frames + found, masks + own, names + [video] * len(found)
    groups = groups_of(names)
    every = FrameMasks(masks)
    objects = sum(int(every[int((groups == video).nonzero()[0])].max()) for video in groups.unique())
    check_count(DAVIS.title, "objects in first frames", objects, OBJECTS, DAVIS.address)
    state = f"{files_state(folder, [*frames, *masks])} {size_px}"
    examples = Examples(Frames(frames, size_px), state, masks=every, groups=groups)
    return PublicPart(DAVIS.title, ("videos",), examples, DAVIS.address)


def _is_whole(frames: list[Path]) -> bool:
    """Return whether frames are numbered from 0 without a gap."""
    return [path.stem for path in frames] == [f"{number:05d}" for number in range(len(frames))]


def frames_of_videos(groups: Tensor) -> list[list[int]]:
    """Return the indices of the frames of each video, in their order."""
    return [(groups == video).nonzero().flatten().tolist() for video in torch.unique(groups)]
