"""Images to evaluate on: the interface of data sets, and crops and windows of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar, get_args, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from modeling_radio.checks_radio import check_choice
from modeling_radio.core.seeds import make_generator
from modeling_radio.core.settings import hash_of
from modeling_radio.metrics.results import Source
from modeling_radio.views_radio import Tiles


Item = TypeVar("Item", covariant=True)

Kind = Literal[
    "images",
    "photographs",
    "labels",
    "masks",
    "depth",
    "captions",
    "pairs",
    "normals",
    "phrases",
]
"""Knowledge about images that a task needs: none ("images" resemble those of the training, "photographs" are large
enough for several sizes), their class, the class of each pixel, their depth, texts that describe them, points that
correspond in pairs of them, the normals of the surfaces that they show, or phrases with the masks of what they name."""

KINDS: tuple[Kind, ...] = get_args(Kind)


class ByNumber(Protocol[Item]):
    """Items by index, made or decoded on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


class SizedImages(ByNumber[Tensor], Protocol):
    """Images by index, uint8 `(3, height, width)`, whose sizes are known without decoding them."""

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of an image."""
        ...


@dataclass(frozen=True)
class ImagePair:
    """Two images of one split that show the same points.

    Attributes:
        source: Index of the first image.
        target: Index of the second.
        source_points: x and y of the keypoints that both show, as shares of the side of a square, `(num_points, 2)`.
        target_points: The same keypoints in the second image.
        unit: Size of the object in the second image, as a share of its side.
        category: Class index of the object.
        move: Takes 3D points before the first camera to those before the second, `(4, 4)`.
    """

    source: int
    target: int
    source_points: Tensor | None = None
    target_points: Tensor | None = None
    unit: float = 1.0
    category: int = 0
    move: Tensor | None = None


@dataclass(frozen=True)
class Phrase:
    """Words, and all objects that they name in an image.

    Attributes:
        image: Index of the image.
        text: The words.
        subset: Part of the data set.
        size: Height and width of the masks.
        masks: COCO's compressed run lengths of the objects' masks, by each annotator.
    """

    image: int
    text: str
    subset: str
    size: tuple[int, int]
    masks: list[list[str]]


@dataclass(frozen=True)
class Examples:
    """Images of one split and their targets.

    Attributes:
        images: Upright RGB images, uint8 `(3, height, width)`, of any size.
        fingerprint: Changes when the images, their order or their targets do.
        labels: Class indices, int64 `(num_images,)`.
        answers: All classes that are right for each image, if there are several; none for images that do not count.
        masks: Class of each pixel, int64 `(height, width)` as the image; 255 does not count.
        depth: Meters, float32 `(height, width)` as the image; 0 where the depth is not known.
        captions: One or more texts for each image.
        normals: Unit normals of surfaces, float32 `(3, height, width)` as the image.
        pairs: Pairs of images that show the same points.
        points: 3D points of the pixels before the camera in meters, float32 `(3, height, width)`; 0 if not known.
        phrases: Phrases of the images.
        groups: Source of each image, such as a video or a scene: int64 `(num_images,)`. Intervals resample whole
            groups, and images of one group are not compared with each other. None: each image is a source of its own.
        own_fingerprint: Changes when the images or their order do, so that labels and captions of the same images share
            features; None if it equals `fingerprint`.
    """

    images: SizedImages
    fingerprint: str
    labels: Tensor | None = None
    answers: Sequence[Sequence[int]] | None = None
    masks: ByNumber[Tensor] | None = None
    depth: ByNumber[Tensor] | None = None
    captions: Sequence[Sequence[str]] | None = None
    normals: ByNumber[Tensor] | None = None
    pairs: Sequence[ImagePair] | None = None
    points: ByNumber[Tensor] | None = None
    phrases: Sequence[Phrase] | None = None
    groups: Tensor | None = None
    own_fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_fingerprint(self) -> str:
        """Fingerprint of the images alone."""
        return self.own_fingerprint or self.fingerprint


@dataclass(frozen=True)
class Part:
    """The images that tasks of one kind are measured on.

    Attributes:
        name: Name of the data set in measurements.
        test: Test images.
        train: Images that probes are trained on and queries are compared with; None takes the test images, by folds or
            by leaving out each image's source.
        class_names: Names in the order of the class indices; empty without classes.
        has_protocol: Whether it is a public set, whose protocol learns from the set's own train split and from nothing
            else.
    """

    name: str
    test: Examples
    train: Examples | None = None
    class_names: tuple[str, ...] = ()
    has_protocol: bool = False

    @property
    def gallery(self) -> Examples:
        """Images that queries are compared with."""
        return self.test if self.train is None else self.train

    @property
    def fingerprint(self) -> str:
        """A hash of both splits and the classes' names."""
        train = None if self.train is None else self.train.fingerprint
        return hash_of({"test": self.test.fingerprint, "train": train, "classes": list(self.class_names)})[:16]


@runtime_checkable
class EvaluationData(Protocol):
    """A data set of an evaluation; tasks use the part of their kind."""

    @property
    def name(self) -> str:
        """The user's name of the data set."""
        ...

    def kinds(self) -> frozenset[Kind]:
        """Return the kinds of parts that the data set has."""
        ...

    def part(self, kind: Kind) -> Part:
        """Return the images for tasks of one kind.

        Raises:
            ValueError: If there are no images of this kind; the message names the kinds that there are.
        """
        ...

    def sources(self) -> list[Source]:
        """Return the origin of the images, for cards."""
        ...

    def remarks(self, neighbors: int) -> list[str]:
        """Return remarks that are printed beside the numbers.

        Args:
            neighbors: Number of neighbors that vote in kNN.
        """
        ...


def check_kind(data: str, kind: Kind, kinds: frozenset[Kind]) -> None:
    """Raise ValueError if a data set does not have a kind."""
    check_choice("kind", kind, KINDS)
    if kind not in kinds:
        has = ", ".join(known for known in KINDS if known in kinds)
        raise ValueError(f"`data` {data!r} must have {kind} for these tasks, got {has} only. Choose other `tasks`.")


class Stacked:
    """Images that are one tensor, uint8 `(num_images, 3, height, width)`, or masks `(num_images, height, width)`."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> Tensor:
        return self.tensor[index]

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of an image."""
        height, width = self.tensor.shape[-2:]
        return height, width


def groups_of(names: Sequence[str]) -> Tensor:
    """Return a number for each name, the same for equal ones, int64 `(num_names,)`."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])


SMALLEST = 0.5
"""Smallest side of a crop as a share of the square's; our choice: a zoom by two."""


class CropSquare(NamedTuple):
    """A square in shares of the image's middle square: upper left corner and side."""

    top: float
    left: float
    side: float


class CroppedViews:
    """The middle square of each image, followed by random square crops of it.

    Args:
        images: The images.
        num_crops: Number of crops of each.
        seed: Seed of the crops.
    """

    def __init__(self, images: SizedImages, num_crops: int, seed: int) -> None:
        self.images, self.num_views, self.seed = images, num_crops + 1, seed

    def __len__(self) -> int:
        return len(self.images) * self.num_views

    def __getitem__(self, index: int) -> Tensor:
        image, _ = divmod(index, self.num_views)
        full = self.images[image]
        side = min(full.shape[1:])
        top, left = ((length - side) // 2 for length in full.shape[1:])
        box = self.box(index)
        length = max(1, round(box.side * side))
        first, second = (min(round(share * side), side - length) for share in (box.top, box.left))
        return full[:, top + first :, left + second :][:, :length, :length]

    def box(self, index: int) -> CropSquare:
        """Return the part of its image's middle square that a view shows."""
        image, view = divmod(index, self.num_views)
        if view == 0:
            return CropSquare(0.0, 0.0, 1.0)
        scale, top, left = torch.rand(3, generator=make_generator(self.seed, "crop", image, view)).tolist()
        side = SMALLEST + (1 - SMALLEST) * scale
        return CropSquare(top * (1 - side), left * (1 - side), side)

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of a view."""
        side = min(self.images.size(index // self.num_views))
        length = max(1, round(self.box(index).side * side))
        return (length, length)

    def views_of(self, image: int) -> range:
        """Return the indices of an image's views, the whole square first."""
        return range(image * self.num_views, (image + 1) * self.num_views)


def square(image: Tensor, side_px: int) -> Tensor:
    """Return the middle square of an image at another size, uint8 `(3, side_px, side_px)`."""
    side = min(image.shape[1:])
    middle = center_crop(image, [side, side])
    return middle if side == side_px else resize(middle, [side_px, side_px], InterpolationMode.BICUBIC)


class WindowPosition(NamedTuple):
    """Position of a window: the image, and the upper left corner in pixels of the resized image."""

    image: int
    top: int
    left: int


class Windows:
    """Windows over images whose shorter side is resized; as large as a window, a square image is one window.

    Args:
        images: The images.
        window_px: Side of a window.
        stride: Step from one window to the next as a share of a window.
        shorter_px: Shorter side of the resized images; None takes that of a window.
    """

    def __init__(
        self, images: SizedImages, window_px: int, stride: float = 2 / 3, shorter_px: int | None = None
    ) -> None:
        self.images, self.window_px = images, window_px
        self.frames = [_frame(images.size(index), shorter_px or window_px) for index in range(len(images))]
        self.description = f"windows {window_px} by {stride:.4f} of {shorter_px or window_px}"
        step = max(1, round(window_px * stride))
        self.positions = [
            WindowPosition(image, top, left)
            for image, frame in enumerate(self.frames)
            for top, left, *_ in Tiles(frame, window_px, step).places()
        ]
        self._by_image: list[list[int]] = [[] for _ in self.frames]
        for index, position in enumerate(self.positions):
            self._by_image[position.image].append(index)
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Tensor:
        """Return a window, uint8 `(3, window_px, window_px)`."""
        image = self.positions[index].image
        if self._last is None or self._last[0] != image:  # windows of an image follow each other
            full, frame = self.images[image], self.frames[image]
            is_same = tuple(full.shape[1:]) == frame
            self._last = image, full if is_same else resize(full, list(frame), InterpolationMode.BICUBIC)
        return self.cut(self._last[1], index)

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of a window."""
        return (self.window_px, self.window_px)

    def of_image(self, image: int) -> list[int]:
        """Return the indices of an image's windows."""
        return self._by_image[image]

    def cut(self, frame: Tensor, index: int) -> Tensor:
        """Cut a window out of a tensor as large as the resized image, `(..., height, width)`."""
        _, top, left = self.positions[index]
        return frame[..., top : top + self.window_px, left : left + self.window_px]

    def target(self, targets: ByNumber[Tensor], index: int) -> Tensor:
        """Return the window of the mask or depth map of its image, `(window_px, window_px)`."""
        image = self.positions[index].image
        target, frame = targets[image], self.frames[image]
        if tuple(target.shape) != tuple(self.images.size(image)):
            raise ValueError(
                f"Masks and depth maps must be as large as their images, got {tuple(target.shape)} pixels beside "
                f"{self.images.size(image)} of image {image}."
            )
        if tuple(target.shape) != frame:
            target = F.interpolate(target[None, None].float(), frame, mode="nearest-exact")[0, 0].to(target.dtype)
        return self.cut(target, index)

    def merged(self, image: int, maps: Sequence[Tensor]) -> Tensor:
        """Return the mean of the maps of an image's windows where these overlap, `(channels, height, width)`.

        Args:
            image: Index of the image.
            maps: One for each of its windows, `(channels, window_px, window_px)`.
        """
        if len(maps) == 1:
            return maps[0]
        total = maps[0].new_zeros(len(maps[0]), *self.frames[image])
        count = maps[0].new_zeros(self.frames[image])
        for index, each in zip(self.of_image(image), maps, strict=True):
            self.cut(total, index).add_(each)
            self.cut(count, index).add_(1)
        return total / count


def _frame(size: tuple[int, int], shorter_px: int) -> tuple[int, int]:
    scale = shorter_px / min(size)
    return (max(shorter_px, round(size[0] * scale)), max(shorter_px, round(size[1] * scale)))
