"""Pairs of images with points that correspond: SPair-71k and the wild sets of NAVI, chosen as Probe3D does."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from modeling_radio.core.seeds import make_generator
from modeling_radio.core.settings import hash_of
from modeling_radio.data.decoding import to_tensor
from modeling_radio.evaluation.data import Examples, ImagePair, groups_of
from modeling_radio.evaluation.public_sets import (
    OTHER_SETS,
    PublicPart,
    check_count,
    files_state,
    load_image_file,
    plain,
    read_json,
    size_of_image_file,
)


SPAIR, NAVI = OTHER_SETS["spair"], OTHER_SETS["navi"]
SPAIR_PAIRS = 12_234
"""Pairs of the test split of SPair-71k, https://arxiv.org/abs/1908.10543; 70,958 with the 58,724 of the others."""
PAIRS_OF_CLASS, SPAIR_SEED = 200, 20
"""Pairs that are measured of each class, and the seed of their choice; as in Probe3D."""

NAVI_IMAGES = 2298
"""Images of the 35 wild sets of NAVI, by its README."""
NAVI_PX, NAVI_STORED_PX = 512, 1024
"""Sides of the images that Probe3D measures, and of those that its script stores first."""
LARGEST_ANGLE, NAVI_STEP, NAVI_SEED = 120.0, 4, 8
"""Largest turn between the images of a pair in degrees, every how many images one is measured, and the seed of the
choice of its partner; as in Probe3D."""


@dataclass(frozen=True)
class _SpairPair:
    filename: str
    category: str
    trg_bndbox: tuple[float, float, float, float]
    trg_imsize: tuple[int, ...]


@dataclass(frozen=True)
class _SpairImage:
    kps: dict[str, tuple[float, float] | None]


_SPAIR_PAIR, _SPAIR_IMAGE = TypeAdapter(_SpairPair), TypeAdapter(_SpairImage)


class PaddedSquares:
    """Images, padded with white to the right and below, and resized to squares as Probe3D does for SPair-71k."""

    def __init__(self, paths: list[Path], size_px: int) -> None:
        self.paths, self.size_px = paths, size_px

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = load_image_file(self.paths[index])
        square = Image.new("RGB", (max(image.size), max(image.size)), "white")
        square.paste(image)
        return to_tensor(square.resize((self.size_px, self.size_px), Image.Resampling.BICUBIC))

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of an image."""
        return (self.size_px, self.size_px)


def open_spair(folder: Path, size_px: int) -> PublicPart:
    """Open the test pairs of a folder SPair-71k: at most 200 of each class, a seeded choice.

    Args:
        folder: Has `PairAnnotation/test/`, `ImageAnnotation/` and `JPEGImages/`.
        size_px: Side of the squares.

    Raises:
        ValueError: If the test split is not complete, or a file is damaged.
    """
    files = sorted((folder / "PairAnnotation" / "test").glob("*.json"))
    check_count(SPAIR.title, "test pairs", len(files), SPAIR_PAIRS, SPAIR.address)
    by_class: dict[str, list[_SpairPair]] = {}
    for file in files:
        pair = read_json(_SPAIR_PAIR, file)
        by_class.setdefault(plain(pair.category, file), []).append(pair)
    for several in by_class.values():
        random.Random(SPAIR_SEED).shuffle(several)
    chosen = [pair for name in sorted(by_class) for pair in by_class[name][:PAIRS_OF_CLASS]]
    images: dict[tuple[str, str], int] = {}
    points: list[dict[str, Tensor]] = []
    pairs = []
    for pair in chosen:
        ends = [(pair.category, plain(view, files[0])) for view in pair.filename.partition(":")[0].split("-")[1:3]]
        for end in ends:
            if end not in images:
                images[end] = len(images)
                points.append(_spair_points(folder, *end, size_px))
        source, target = (images[end] for end in ends)
        left, top, right, bottom = pair.trg_bndbox
        pairs.append(
            ImagePair(
                source,
                target,
                *_shared(points[source], points[target]),
                unit=max(right - left, bottom - top) / max(pair.trg_imsize[:2]),
                category=sorted(by_class).index(pair.category),
            )
        )
    paths = [folder / "JPEGImages" / category / f"{view}.jpg" for category, view in images]
    state = f"{files_state(folder, paths)} {size_px} {hash_of({'pairs': repr(pairs)})[:16]}"
    examples = Examples(PaddedSquares(paths, size_px), state, pairs=pairs)
    return PublicPart(SPAIR.title, ("pairs",), examples, SPAIR.address, class_names=tuple(sorted(by_class)))


def _spair_points(folder: Path, category: str, view: str, size_px: int) -> dict[str, Tensor]:
    """Return the visible keypoints of an image by name, x and y as shares of its padded square's side.

    They are whole pixels of the square at `size_px`, rounded down as in Probe3D.
    """
    found = read_json(_SPAIR_IMAGE, folder / "ImageAnnotation" / category / f"{view}.json").kps
    side = max(size_of_image_file(folder / "JPEGImages" / category / f"{view}.jpg"))
    return {
        name: (torch.tensor(point).int() * size_px / side).int() / size_px
        for name, point in found.items()
        if point is not None
    }


def _shared(source: dict[str, Tensor], target: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    names = [name for name in source if name in target]
    empty = torch.zeros(0, 2)
    return (
        torch.stack([source[name] for name in names]) if names else empty,
        torch.stack([target[name] for name in names]) if names else empty,
    )


@dataclass(frozen=True)
class _Camera:
    q: tuple[float, float, float, float]
    t: tuple[float, float, float]
    focal_length: float


@dataclass(frozen=True)
class _NaviImage:
    filename: str
    image_size: tuple[int, int]
    camera: _Camera


_NAVI_IMAGES = TypeAdapter(list[_NaviImage])


class NaviViews:
    """Images of NAVI cut to their object as in Probe3D; `points` are the 3D points of their pixels.

    Args:
        folders: Folder of each image's wild set.
        known: Entry of each in `annotations.json`.
    """

    def __init__(self, folders: list[Path], known: list[_NaviImage]) -> None:
        self.folders, self.known = folders, known
        self.view = lru_cache(maxsize=4)(self._view)

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, index: int) -> Tensor:
        return self.view(index)[0]

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of an image."""
        return (NAVI_PX, NAVI_PX)

    def __reduce__(self) -> tuple[type[NaviViews], tuple[list[Path], list[_NaviImage]]]:
        return NaviViews, (self.folders, self.known)  # a cache cannot be sent to worker processes

    def _view(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, uint8 `(3, 512, 512)`, and its points in meters, `(3, 512, 512)`."""
        folder, known = self.folders[index], self.known[index]
        original = load_image_file(folder / "images" / known.filename)
        depth_map = load_image_file(folder / "depth" / f"{Path(known.filename).stem}.png", as_stored=True)
        scale = NAVI_STORED_PX / min(original.size)
        stored = (int(original.width * scale), int(original.height * scale))
        image = to_tensor(original.resize(stored, Image.Resampling.BICUBIC))
        depth = meters_of(np.asarray(depth_map.resize(stored, Image.Resampling.NEAREST)))
        focal_length = known.camera.focal_length * NAVI_PX / min(known.image_size)
        middle_image, middle_depth = (
            center_crop(resize(each, [NAVI_PX], InterpolationMode.NEAREST), [NAVI_PX, NAVI_PX])
            for each in (image, depth[None])
        )
        if not (middle_depth > 0).any():
            raise ValueError(
                f"`data` must show objects in the middle of images, {folder / known.filename} has no depth."
            )
        points = points_of(middle_depth[0], focal_length)
        box = square_around(middle_depth[0] > 0)
        cut = [each[(slice(None), *box)][None].float() for each in (middle_image, points)]
        image, points = (F.interpolate(each, (NAVI_PX, NAVI_PX), mode="nearest")[0] for each in cut)
        return image.to(torch.uint8), points


class NaviPoints:
    """The 3D points of the pixels of the images of `NaviViews`."""

    def __init__(self, views: NaviViews) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Tensor:
        return self.views.view(index)[1]


def meters_of(stored: np.ndarray) -> Tensor:
    """Return the depth in meters of a depth map of NAVI, which stores 655,350 divided by the millimeters.

    Args:
        stored: Disparities, 16 bits, `(height, width)`; 0 where there is no object.
    """
    disparity = torch.from_numpy(stored.astype(np.float32)) / (65535 * 10.0)
    return torch.where(disparity > 0, 1 / disparity / 1000, torch.zeros(()))


def points_of(depth: Tensor, focal_length: float) -> Tensor:
    """Return the 3D points of the pixels of a depth map whose camera looks at its middle, `(3, height, width)`.

    Args:
        depth: Meters, `(height, width)`.
        focal_length: In pixels.
    """
    height, width = depth.shape
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([(xs - width / 2) / focal_length * depth, (ys - height / 2) / focal_length * depth, depth])


def square_around(mask: Tensor) -> tuple[slice, slice]:
    """Return rows and columns of the square around a mask, moved where it would leave the image; as in Probe3D."""
    positions = mask.nonzero()
    first, last = positions.amin(0), positions.amax(0)
    side = (last - first).max()
    spare = side - (last - first)
    start = first - spare // 2
    if (start < 0).any() or (start + side > torch.tensor(mask.shape)).any():
        start = (first - spare).clamp(min=0)
    (top, left), length = start.tolist(), max(1, int(side))
    return slice(top, top + length), slice(left, left + length)


def pose_of(camera: _Camera) -> Tensor:
    """Return the pose of an object before a camera in meters, `(4, 4)`, from a quaternion (w, x, y, z)."""
    w, x, y, z = (torch.tensor(camera.q) / torch.tensor(camera.q).norm()).tolist()
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose[:3, 3] = torch.tensor(camera.t) / 1000
    return pose


def open_navi(folder: Path) -> PublicPart:
    """Open pairs of the wild sets of a folder of NAVI: every fourth image, and a seeded partner.

    Args:
        folder: Has `OBJECT/wild_set/` with `annotations.json`, `images/` and `depth/`.

    Raises:
        ValueError: If images are missing, or a file is damaged.
    """
    folders, known, pairs = list[Path](), list[_NaviImage](), list[ImagePair]()
    for file in sorted(folder.glob("*/wild_set/annotations.json")):
        entries = sorted(read_json(_NAVI_IMAGES, file), key=lambda entry: plain(entry.filename, file))
        pairs += _navi_pairs(entries, len(known))
        folders += [file.parent] * len(entries)
        known += entries
    paths = [root / "images" / entry.filename for root, entry in zip(folders, known, strict=True)]
    depths = [root / "depth" / f"{Path(entry.filename).stem}.png" for root, entry in zip(folders, known, strict=True)]
    is_there = [path.is_file() and depth.is_file() for path, depth in zip(paths, depths, strict=True)]
    check_count(NAVI.title, "images with depth in wild sets", sum(is_there), NAVI_IMAGES, NAVI.address)
    views, objects = NaviViews(folders, known), groups_of([str(root) for root in folders])
    pairs = pairs[::NAVI_STEP]
    state = f"{files_state(folder, [*paths, *depths])} {hash_of({'pairs': repr(pairs)})[:16]}"
    examples = Examples(views, state, pairs=pairs, points=NaviPoints(views), groups=objects)
    return PublicPart(NAVI.title, ("pairs",), examples, NAVI.address)


def _navi_pairs(entries: list[_NaviImage], start: int) -> list[ImagePair]:
    """Return a pair of each image of a wild set with one seen from another side, drawn with equal chances."""
    if not entries:
        return []
    poses = torch.stack([pose_of(entry.camera) for entry in entries])
    turns = poses[:, None, :3, :3] @ poses[None, :, :3, :3].mT
    angles = ((turns.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1).acos().rad2deg()
    is_partner = (angles > 0) & (angles <= LARGEST_ANGLE) & ~torch.eye(len(entries), dtype=torch.bool)
    generator = make_generator(NAVI_SEED, "pairs", start)
    pairs = []
    for index, row in enumerate(is_partner):
        if row.any():
            partner = int(torch.multinomial(row.float(), 1, generator=generator))
            move = poses[partner] @ poses[index].inverse()
            pairs.append(ImagePair(start + index, start + partner, move=move))
    return pairs
