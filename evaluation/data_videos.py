"""Videos with the masks of their objects: the validation splits of DAVIS 2017 and YouTube-VOS."""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from modeling_radio.evaluation.data import Examples, groups_of
from modeling_radio.evaluation.public_sets import (
    OTHER_SETS,
    PublicPart,
    SetOrigin,
    check_count,
    files_state,
    load_image_file,
    size_of_image_file,
)
from modeling_radio.training.data.decoding import to_tensor
from modeling_radio.training.data.labeled.folders import read_names
from modeling_radio.training.data.labeled.labels import read_mask


DAVIS, YOUTUBE_VOS = OTHER_SETS["davis"], OTHER_SETS["youtube-vos"]
VIDEOS, OBJECTS = 30, 61
"""Videos of the validation split of DAVIS 2017, and the objects in them. https://arxiv.org/abs/1704.00675; counted in
the results that https://github.com/davisvideochallenge/davis2017-evaluation has."""
YOUTUBE_OBJECTS = {474: 894, 507: 1063}
"""Videos of the validation splits of 2018 and 2019, and the objects in them. https://youtube-vos.org/dataset/vos"""
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
    """Ids of the objects in frames, int64 `(height, width)`; 0 is background.

    Args:
        paths: Files of the masks, `VIDEO/FRAME.png`.
        given: Frames whose objects are given to a model, which has to find them in the later frames of the video.
        are_public: Whether the other frames have masks here.
    """

    def __init__(self, paths: list[Path], given: Collection[int], *, are_public: bool = True) -> None:
        self.paths, self.given, self.are_public = paths, frozenset(given), are_public

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
    frames, masks = list[list[Path]](), list[Path]()
    for video in videos:
        found = sorted((folder / "JPEGImages" / "480p" / video).glob("*.jpg"))
        own = sorted((folder / "Annotations" / "480p" / video).glob("*.png"))
        if not found or [path.stem for path in found] != [path.stem for path in own] or not _is_whole(found):
            raise ValueError(f"`data` must have all frames of {video} and their masks in {folder}. See {DAVIS.address}")
        frames, masks = [*frames, found], masks + own
    every = FrameMasks(masks, list(accumulate(map(len, frames), initial=0))[:-1])
    objects = sum(int(every[first].max()) for first in every.given)
    check_count(DAVIS.title, "objects in first frames", objects, OBJECTS, DAVIS.address)
    return _public_part(DAVIS, folder, frames, every, size_px)


def open_youtube_vos(folder: Path, size_px: int) -> PublicPart:
    """Open the validation videos of YouTube-VOS 2018 or 2019; only its server has their masks beyond the first ones.

    Args:
        folder: Has `valid/JPEGImages/VIDEO/`, and in `valid/Annotations/VIDEO/` the frames in which objects appear.
        size_px: Shorter side of the frames.

    Raises:
        ValueError: If videos or masks are missing.
    """
    root = folder / "valid"
    frames = [sorted(video.glob("*.jpg")) for video in sorted((root / "JPEGImages").glob("*"))]
    if len(frames) not in YOUTUBE_OBJECTS or not all(frames):
        years = " or ".join(map(str, YOUTUBE_OBJECTS))
        raise ValueError(
            f"`data` must have {years} videos of {YOUTUBE_VOS.title} in {root / 'JPEGImages'}, each with frames, got "
            f"{len(frames)}. See {YOUTUBE_VOS.address}"
        )
    masks = [root / "Annotations" / path.parent.name / f"{path.stem}.png" for video in frames for path in video]
    given = [index for index, path in enumerate(masks) if path.is_file()]
    every = FrameMasks(masks, given, are_public=False)
    objects = {(masks[index].parent, number) for index in given for number in every[index].unique().tolist() if number}
    check_count(YOUTUBE_VOS.title, "objects", len(objects), YOUTUBE_OBJECTS[len(frames)], YOUTUBE_VOS.address)
    return _public_part(YOUTUBE_VOS, folder, frames, every, size_px)


def _public_part(
    origin: SetOrigin, folder: Path, frames: list[list[Path]], masks: FrameMasks, size_px: int
) -> PublicPart:
    paths = [path for video in frames for path in video]
    groups = groups_of([path.parent.name for path in paths])
    there = masks.paths if masks.are_public else [masks.paths[index] for index in masks.given]
    state = f"{files_state(folder, [*paths, *there])} {size_px}"
    examples = Examples(Frames(paths, size_px), state, masks=masks, groups=groups)
    return PublicPart(origin.title, ("videos",), examples, origin.address)


def _is_whole(frames: list[Path]) -> bool:
    """Return whether frames are numbered from 0 without a gap."""
    return [path.stem for path in frames] == [f"{number:05d}" for number in range(len(frames))]


def frames_of_videos(groups: Tensor) -> list[list[int]]:
    """Return the indices of the frames of each video, in their order."""
    return [(groups == video).nonzero().flatten().tolist() for video in torch.unique(groups)]
