"""The rows of one split of anybody's images, and what is decoded of them when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from foundation.seeds import make_generator
from foundation.settings import hash_of
from training.data.decoding import EncodedImage, UnusableImageError, decode_rgb, image_size, to_tensor
from training.data.image_folder import files_fingerprint
from training.data.labeled.opening import encoded, image_paths, read_row
from training.data.labeled.targets import read_depth, read_mask
from training.data.named_files import check_named_file
from training.data.sources import ImageColumn
from training.evaluation.data.base import Examples, Kind, groups_of
from training.evaluation.metrics.confusion import IGNORE_INDEX


if TYPE_CHECKING:
    from datasets import Dataset

    from training.evaluation.data.tables import TableData


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
