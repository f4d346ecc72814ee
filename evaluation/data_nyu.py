"""NYU depth with surface normals: GeoNet's training frames and the labeled test frames, as Probe3D measures them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from modeling_radio.evaluation.data import Examples
from modeling_radio.evaluation.public_sets import OTHER_SETS, PublicPart, check_count, files_state, read_json


NYU = OTHER_SETS["nyu"]
TRAIN_FRAMES, TEST_FRAMES = 30_816, 654
"""Training frames of GeoNet, which https://github.com/xjqi/GeoNet does not count (we had no files to count), and
labeled test frames of NYU, its official split."""
BAD_FRAMES = (21181, 6919)
"""Indices of two damaged frames in the order of names; as in Probe3D."""
MEAN_COLOR = (122.175, 116.169, 103.508)
"""GeoNet's files have colors from which this was subtracted twice."""
HEIGHT, WIDTH = 480, 640
LABELED, NORMALS, TEST_LIST = "nyu_depth_v2_labeled.mat", "all_normals.npy", "test_SN40.json"


class Frame(NamedTuple):
    """Image, uint8 `(3, 480, 640)`, depth in meters, `(480, 640)`, and normals, `(3, 480, 640)`."""

    image: Tensor
    depth: Tensor
    normals: Tensor


class FrameColumn:
    """One part of frames by number; as images it knows their size.

    Args:
        count: Number of frames.
        frame: Reads a frame.
        part: Name of the part.
    """

    def __init__(self, count: int, frame: Callable[[int], Frame], part: str) -> None:
        self.count, self.frame, self.part = count, frame, part

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.frame(index)._asdict()[self.part]

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels."""
        return (HEIGHT, WIDTH)


@dataclass(frozen=True)
class _TestFrame:
    img: str


_TEST_LIST = TypeAdapter(list[_TestFrame])


def open_nyu(folder: Path) -> PublicPart:
    """Open `geonet/` with GeoNet's `.mat` files, and `test/` with NYU's labeled frames, their normals and the list.

    The normals of Ladicky et al. are published as a pickle, which is code: `all_normals.npy` has the array in it.

    Raises:
        ValueError: If frames are missing, or a file is damaged.
    """
    files = sorted((folder / "geonet").glob("*.mat"))
    check_count(NYU.title, "training frames of GeoNet", len(files), TRAIN_FRAMES, NYU.address)
    for index in BAD_FRAMES:
        del files[index]
    indices = [_number(entry.img, folder) for entry in read_json(_TEST_LIST, folder / "test" / TEST_LIST)]
    check_count(NYU.title, "test frames", len(indices), TEST_FRAMES, NYU.address)
    labeled, normals = (folder / "test" / name for name in (LABELED, NORMALS))
    state = files_state(folder, [labeled, normals, folder / "test" / TEST_LIST])
    train = _examples(len(files), lambda index: _read_geonet(files[index]), files_state(folder, files))
    test = _examples(len(indices), _labeled_reader(labeled, normals, indices), state)
    return PublicPart(NYU.title, ("depth", "normals"), test, NYU.address, train)


def _number(name: str, folder: Path) -> int:
    first = name.split("_")[0]
    if not first.isdecimal():
        raise ValueError(f"{folder / 'test' / TEST_LIST} must list frames such as 1_rgb, got {name!r:.40}.")
    return int(first) - 1


def _examples(count: int, read: Callable[[int], Frame], state: str) -> Examples:
    frame = lru_cache(maxsize=2)(read)
    images, depth, normals = (FrameColumn(count, frame, part) for part in Frame._fields)
    return Examples(images, state, depth=depth, normals=normals)


def _read_geonet(file: Path) -> Frame:
    from scipy.io import loadmat

    try:
        content = loadmat(file, variable_names=["img", "depth", "norm"])
        image, depth, normals = (content[key][:HEIGHT, :WIDTH].astype(np.float32) for key in ("img", "depth", "norm"))
    except (KeyError, OSError, ValueError, NotImplementedError, TypeError) as error:
        raise ValueError(f"`data` must have frames of GeoNet, got {str(file)!r}: {error}") from error
    colors = (image + 2 * np.array(MEAN_COLOR, np.float32)).clip(0, 255).astype(np.uint8)
    return Frame(_channels_first(colors), torch.from_numpy(depth), _channels_first(normals))


def _labeled_reader(labeled: Path, normals: Path, indices: list[int]) -> Callable[[int], Frame]:
    """Return a function that reads test frames; arrays of MATLAB 7.3 are turned in HDF5."""
    from h5py import File

    try:
        content = File(labeled)
        images, depth = content["images"], content["rawDepths"]
        directions = np.load(normals, mmap_mode="r", allow_pickle=False)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"`data` must have {LABELED} and {NORMALS}, got {str(labeled.parent)!r}: {error}") from error
    if directions.shape[1:] != (HEIGHT, WIDTH, 3) or max(indices) >= len(directions):
        raise ValueError(f"`data` must have normals (1449, 480, 640, 3) in {normals}, got {directions.shape}.")

    def read(index: int) -> Frame:
        row = indices[index]
        image = torch.from_numpy(np.asarray(images[row])).mT.contiguous()  # pyrefly: ignore[bad-index]
        known = torch.from_numpy(np.asarray(depth[row], np.float32)).T.contiguous()  # pyrefly: ignore[bad-index]
        return Frame(image, known, _channels_first(np.array(directions[row], np.float32)))

    return read


def _channels_first(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
