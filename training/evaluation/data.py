"""Images to evaluate on: tables and folders as rows of a task, their crops and windows."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from core.checkpoints import plain_parts
from core.seeds import make_generator
from core.settings import hash_of
from model_cards.results import Source
from modeling_radio.checks_radio import check_choice
from training.data.decoding import EncodedImage, UnusableImageError, decode_rgb, image_size, to_tensor
from training.data.image_folder import files_fingerprint
from training.data.labeled.labels import read_depth, read_mask
from training.data.labeled.tables import encoded, image_paths, read_row
from training.data.sources import ImageColumn, check_named_file
from training.evaluation.metrics.dense import IGNORE_INDEX


if TYPE_CHECKING:
    from datasets import Dataset

    from training.evaluation.data_tables import TableData


SMALLEST = 0.5
"""Share of the square's side that a crop keeps at least; our choice: a zoom by two."""


class Box(NamedTuple):
    """A square in shares of the image's middle square: upper left corner and side."""

    top: float
    left: float
    side: float


class CroppedViews:
    """The middle square of each image, followed by random square crops of it.

    Args:
        pictures: The images.
        num_crops: Of each.
        seed: Decides the crops.
    """

    def __init__(self, pictures: Pictures, num_crops: int, seed: int) -> None:
        self.pictures, self.num_views, self.seed = pictures, num_crops + 1, seed

    def __len__(self) -> int:
        return len(self.pictures) * self.num_views

    def __getitem__(self, index: int) -> Tensor:
        image, _ = divmod(index, self.num_views)
        picture = self.pictures[image]
        side = min(picture.shape[1:])
        top, left = ((length - side) // 2 for length in picture.shape[1:])
        box = self.box(index)
        length = max(1, round(box.side * side))
        first, second = (min(round(share * side), side - length) for share in (box.top, box.left))
        return picture[:, top + first :, left + second :][:, :length, :length]

    def box(self, index: int) -> Box:
        """Return what a view shows of the middle square of its image."""
        image, view = divmod(index, self.num_views)
        if view == 0:
            return Box(0.0, 0.0, 1.0)
        scale, top, left = torch.rand(3, generator=make_generator(self.seed, "crop", image, view)).tolist()
        side = SMALLEST + (1 - SMALLEST) * scale
        return Box(top * (1 - side), left * (1 - side), side)

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of a view."""
        side = min(self.pictures.size(index // self.num_views))
        length = max(1, round(self.box(index).side * side))
        return (length, length)

    def views_of(self, image: int) -> range:
        """Return the numbers of an image's views, the whole square first."""
        return range(image * self.num_views, (image + 1) * self.num_views)


def square(image: Tensor, side_px: int) -> Tensor:
    """Return the middle square of an image at another size, uint8 `(3, side_px, side_px)`."""
    side = min(image.shape[1:])
    middle = center_crop(image, [side, side])
    return middle if side == side_px else resize(middle, [side_px, side_px], InterpolationMode.BICUBIC)


STRIDE = 2 / 3
"""Of a window, as ADE20k is measured in AM-RADIO. https://arxiv.org/abs/2312.06709"""


class Place(NamedTuple):
    """Where a window lies: the image, and the corner in pixels of the image as it was resized."""

    image: int
    top: int
    left: int


class Windows:
    """Windows over images whose shorter side is resized to that of a window; a square image is one window.

    Args:
        pictures: The images.
        window_px: Side of a window.
        stride: Share of a window from one to the next.
    """

    def __init__(self, pictures: Pictures, window_px: int, stride: float = STRIDE) -> None:
        self.pictures, self.window_px = pictures, window_px
        self.frames = [_frame(pictures.size(index), window_px) for index in range(len(pictures))]
        step = max(1, round(window_px * stride))
        self.places = [
            Place(image, top, left)
            for image, (height, width) in enumerate(self.frames)
            for top in _starts(height, window_px, step)
            for left in _starts(width, window_px, step)
        ]
        self._by_image: list[list[int]] = [[] for _ in self.frames]
        for index, place in enumerate(self.places):
            self._by_image[place.image].append(index)
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        """Return a window, uint8 `(3, window_px, window_px)`."""
        image = self.places[index].image
        if self._last is None or self._last[0] != image:  # windows of an image follow each other
            picture, frame = self.pictures[image], self.frames[image]
            is_same = tuple(picture.shape[1:]) == frame
            self._last = image, picture if is_same else resize(picture, list(frame), InterpolationMode.BICUBIC)
        return self.cut(self._last[1], index)

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of a window."""
        return (self.window_px, self.window_px)

    def of_image(self, image: int) -> list[int]:
        """Return the numbers of an image's windows."""
        return self._by_image[image]

    def cut(self, frame: Tensor, index: int) -> Tensor:
        """Return what a window shows of anything as large as the resized image, `(..., height, width)`."""
        _, top, left = self.places[index]
        return frame[..., top : top + self.window_px, left : left + self.window_px]

    def target(self, targets: ByNumber[Tensor], index: int) -> Tensor:
        """Return what a window shows of the mask or depth map of its image, `(window_px, window_px)`."""
        image = self.places[index].image
        target, frame = targets[image], self.frames[image]
        if tuple(target.shape) != tuple(self.pictures.size(image)):
            raise ValueError(
                f"Masks and depth maps must be as large as their images, got {tuple(target.shape)} pixels beside "
                f"{self.pictures.size(image)} of image {image}."
            )
        if tuple(target.shape) != frame:
            target = F.interpolate(target[None, None].float(), frame, mode="nearest-exact")[0, 0].to(target.dtype)
        return self.cut(target, index)

    def merged(self, image: int, maps: Sequence[Tensor]) -> Tensor:
        """Return the mean of the maps of an image's windows where these overlap, `(channels, height, width)`.

        Args:
            image: Number of the image.
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


def _frame(size: tuple[int, int], window_px: int) -> tuple[int, int]:
    scale = window_px / min(size)
    return (max(window_px, round(size[0] * scale)), max(window_px, round(size[1] * scale)))


def _starts(length: int, window: int, step: int) -> list[int]:
    """Return where windows begin that cover a length; the last one ends where it does."""
    return [*range(0, length - window, step), length - window]


Item = TypeVar("Item", covariant=True)

Kind = Literal["images", "photographs", "labels", "masks", "depth", "captions"]
"""What a task needs to know of images: nothing ("images" are like those of the training, "photographs" large enough to
be looked at in several sizes), their class, the class of each pixel, their depth, or texts that describe them."""

KINDS: tuple[Kind, ...] = ("images", "photographs", "labels", "masks", "depth", "captions")


class ByNumber(Protocol[Item]):
    """Things by number, made or decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class Pictures(ByNumber[Tensor], Protocol):
    """Images by number, uint8 `(3, height, width)`, whose sizes are known without decoding them."""

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of an image."""
        ...


@dataclass(frozen=True)
class Examples:
    """Images of one split, and what is known of each.

    Attributes:
        images: Decoded, upright RGB, uint8 `(3, height, width)`, of any size.
        fingerprint: Changes when the images, their order or their targets do.
        labels: Class indices, int64 `(num_images,)`.
        masks: Class of each pixel, int64 `(height, width)` as the image; 255 does not count.
        depth: Meters, float32 `(height, width)` as the image; 0 where it is not known.
        captions: One or more texts for each image.
        groups: Which images are of one source, such as frames of one video or objects of one scene: int64
            `(num_images,)`. Intervals resample whole groups, and images that are compared with each other are not with
            those of their own. None: each image is a source of its own.
        pictures: Changes when the images or their order do, whatever is known of them, so that labels and captions of
            the same images share their features; None where `fingerprint` says all.
    """

    images: Pictures
    fingerprint: str
    labels: Tensor | None = None
    masks: ByNumber[Tensor] | None = None
    depth: ByNumber[Tensor] | None = None
    captions: Sequence[Sequence[str]] | None = None
    groups: Tensor | None = None
    pictures: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def picture_fingerprint(self) -> str:
        """Of the images alone."""
        return self.pictures or self.fingerprint

    def known(self) -> frozenset[Kind]:
        """Return the kinds of tasks that can be measured on these images."""
        targets = {"labels": self.labels, "masks": self.masks, "depth": self.depth, "captions": self.captions}
        return frozenset(["images", "photographs", *(kind for kind, values in targets.items() if values is not None)])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Part:
    """The images that tasks of one kind are measured on.

    Attributes:
        name: As measurements call it.
        test: What is measured.
        train: What a probe learns from, or what queries are compared with; None: the test images themselves, each
            measured without those of its source (leave-one-out) or by folds.
        class_names: In the order of their indices; empty without classes.
    """

    name: str
    test: Examples
    train: Examples | None = None
    class_names: tuple[str, ...] = ()

    @property
    def gallery(self) -> Examples:
        """What queries are compared with."""
        return self.test if self.train is None else self.train

    @property
    def fingerprint(self) -> str:
        """A hash of both splits and the classes' names."""
        train = None if self.train is None else self.train.fingerprint
        return hash_of({"test": self.test.fingerprint, "train": train, "classes": list(self.class_names)})[:16]


@runtime_checkable
class EvaluationData(Protocol):
    """A data set that can be measured on; tasks ask for the part that they need."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    def kinds(self) -> frozenset[Kind]:
        """Return which parts there are."""
        ...

    def part(self, kind: Kind) -> Part:
        """Return the images for tasks of one kind.

        Raises:
            ValueError: If there are none; the message says what there is.
        """
        ...

    def sources(self) -> list[Source]:
        """Return where the images come from, for cards."""
        ...

    def remarks(self, neighbors: int) -> list[str]:
        """Return sentences that belong beside the numbers.

        Args:
            neighbors: That vote in kNN, as the settings of the tasks say.
        """
        ...


def check_kind(data: str, kind: Kind, kinds: frozenset[Kind]) -> None:
    """Refuse a kind that a data set does not have."""
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


def tensor_fingerprint(*tensors: Tensor) -> str:
    """Return a hash of the shapes, types and bytes of tensors."""
    content = hashlib.blake2b(digest_size=8)
    for tensor in itertools.chain.from_iterable(map(plain_parts, tensors)):
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def groups_of(names: Sequence[str]) -> Tensor:
    """Return a number for each name, the same for equal ones, int64 `(num_names,)`."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])


class Rows:
    """The rows of one split.

    Args:
        data: Whose they are.
        table: Columns by role.
        split: "train" or "test".
    """

    def __init__(self, data: TableData, table: Dataset, split: str) -> None:
        self.data, self.table, self.split = data, table, split
        if data.options.max_images is not None:
            self.table = self.chosen(data.options.max_images).table

    def __len__(self) -> int:
        return len(self.table)

    def chosen(self, most: int) -> Rows:
        """Return a seeded choice of at most so many rows, in their order."""
        if len(self.table) <= most:
            return self
        chosen = Rows.__new__(Rows)
        chosen.data, chosen.split = self.data, self.split
        chosen.table = choose_rows(self.table, most, self.data.seed, self.split)
        return chosen

    def examples(self, kind: Kind = "images") -> Examples:
        """Return the images with what a kind of tasks needs of them."""
        data = self.data
        groups = groups_of([str(value) for value in self._column("group")]) if "group" in data.roles else None
        known: dict[str, Any] = {}
        if kind == "labels":
            known["labels"] = torch.tensor(list(self._column("target")))
        elif kind == "masks":
            known["masks"] = Masks(self, len(data.mask_names))
        elif kind == "depth":
            known["depth"] = DepthMaps(self)
        elif kind == "captions":
            known["captions"] = [
                _texts(value, self.where(index)) for index, value in enumerate(self._column("caption"))
            ]
        state = self._state(["image"])
        fingerprint = self.fingerprint(kind, known)
        images = DecodedImages(self.table, data.source, self.where)
        return Examples(images, fingerprint, groups=groups, pictures=hash_of({"images": state})[:16], **known)

    def fingerprint(self, kind: Kind, known: Mapping[str, Any]) -> str:
        """Return a hash of files' names, sizes and times, or of the table, of targets, and of how they are read."""
        state = self._state([column for column in ("image", "mask", "depth") if column in self.table.column_names])
        targets = {key: value.tolist() for key, value in known.items() if isinstance(value, Tensor)}
        content = {
            "kind": kind if kind != "photographs" else "images",
            "state": state,
            "targets": targets,
            "texts": known.get("captions", []),
        }
        reading = {"masks": self.data.options.reduce_labels, "depth": self.data.options.depth_scale}.get(kind)
        return hash_of(content | ({"reading": reading} if reading else {}))[:16]

    def _state(self, columns: Sequence[str]) -> str:
        return table_state(self.table, columns, self.data.source)

    @property
    def name(self) -> str:
        """What an image of the split is called in errors, before its number."""
        return f"{self.split} image"

    def where(self, index: int) -> str:
        """Return the name of an image, for errors."""
        return f"{self.name} {index}"

    def _column(self, role: str) -> list[Any]:
        return self.table.select_columns([role])[:][role]


class DecodedImages:
    """The images of a split, decoded when asked for.

    Args:
        table: Has them in the column `image`; opened by `open_tables`, which knows which files it may name.
        source: What the user called the data.
        where: Returns the name of an image, for errors.
    """

    def __init__(self, table: Dataset, source: str, where: Callable[[int], str]) -> None:
        self.table, self.where = encoded(cast("Dataset", table.select_columns(["image"]))), where
        self.column = ImageColumn(source, "image", is_listed=True)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Tensor:
        image = self._read(index)
        try:
            return to_tensor(decode_rgb(image, smallest_px=1))
        except UnusableImageError as error:
            raise ValueError(
                f"`data` must have images that can be decoded, got {image.name}: {error}. Correct it, or leave it out."
            ) from error

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels, upright."""
        return image_size(self._read(index))

    def _read(self, index: int) -> EncodedImage:
        return self.column.read(cast("dict[str, Any]", self.table[index]), self.where(index))


class Masks:
    """The masks of a split; ids that are no class are refused where the number of classes is known."""

    def __init__(self, rows: Rows, num_classes: int | None) -> None:
        self.rows, self.num_classes = rows, num_classes
        self.table = encoded(cast("Dataset", rows.table.select_columns(["mask"])))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Tensor:
        where = self.rows.where(index)
        ids = read_mask(read_row(self.table, index, self.rows.name)["mask"], where)
        if self.rows.data.options.reduce_labels:
            ids = torch.where((ids == 0) | (ids == IGNORE_INDEX), IGNORE_INDEX, ids - 1)
        wrong = ids[((ids < 0) | (ids >= (self.num_classes or IGNORE_INDEX))) & (ids != IGNORE_INDEX)]
        if len(wrong):
            raise ValueError(
                f"The mask of {where} must have ids below {self.num_classes or IGNORE_INDEX} ({IGNORE_INDEX} is "
                f"ignored), got {int(wrong.max())}. Correct it, or name all classes in classes.txt."
            )
        return ids


class DepthMaps:
    """The depth maps of a split, in meters."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.table = rows, encoded(cast("Dataset", rows.table.select_columns(["depth"])))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Tensor:
        depth = read_row(self.table, index, self.rows.name)["depth"]
        if isinstance(depth, str):
            check_named_file(depth, self.rows.data.source)
        return read_depth(depth, self.rows.where(index), self.rows.data.options.depth_scale)


def choose_rows(table: Dataset, most: int, seed: int, split: str) -> Dataset:
    """Return a seeded choice of at most so many rows of a split, in their order."""
    if len(table) <= most:
        return table
    rows = torch.randperm(len(table), generator=make_generator(seed, "images", split))
    return cast("Dataset", table.select(rows[:most].sort().values.tolist()))


def table_state(table: Dataset, columns: Sequence[str], source: str) -> str:
    """Return what changes with the files of some columns and their order, or with the table where it holds them.

    Features are kept by number, so that the same files in another order are other images.
    """
    paths = [path for column in columns for path in _paths(table, column)]
    if any(path is None for path in paths):
        return str(table._fingerprint)
    folder = Path(source).expanduser()
    files = [Path(str(path)) for path in paths]
    places = [place_of(file, folder) for file in files]
    state = files_fingerprint(dict(zip(places, files, strict=True)))
    return f"{state}, order {hash_of({'places': places})[:16]}"


def _paths(table: Dataset, column: str) -> list[str | None]:
    """Return the files of a column: of images, or of texts that name them, as those of depth maps do."""
    is_text = getattr(table.features[column], "dtype", None) == "string"
    return list(table.select_columns([column])[:][column]) if is_text else image_paths(table, column)


def _texts(value: Any, where: str) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value or [])
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"The caption of {where} must be a text or a list of texts, got {value!r:.60}.")
    return texts


def place_of(path: Path, folder: Path) -> str:
    """Return a file's place in a folder, through links or not; of one elsewhere its name with that of its folder."""
    for file, root in ((path.absolute(), folder.absolute()), (path.resolve(), folder.resolve())):
        if file.is_relative_to(root):
            return str(file.relative_to(root))
    return str(Path(*path.parts[-2:]))
