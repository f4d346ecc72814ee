"""Rows of a table: images that are decoded on access, a seeded choice, and a text that changes with the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from modeling_radio.core.seeds import make_generator
from modeling_radio.core.settings import hash_of
from modeling_radio.data.decoding import EncodedImage, UnusableImageError, decode_rgb, image_size, to_tensor
from modeling_radio.data.image_folder import files_fingerprint
from modeling_radio.data.labeled.tables import encoded, image_paths
from modeling_radio.data.sources import ImageColumn


if TYPE_CHECKING:
    from datasets import Dataset


class DecodedImages:
    """The images of a split, decoded on access.

    Args:
        table: Table with the column `image`; opened by `open_tables`, which checks the files that it may name.
        source: The user's name of the data.
        where: Returns the name of an image in errors.
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


def choose_rows(table: Dataset, most: int, seed: int, split: str) -> Dataset:
    """Return a seeded choice of at most so many rows of a split, in their order."""
    if len(table) <= most:
        return table
    rows = torch.randperm(len(table), generator=make_generator(seed, "images", split))
    return cast("Dataset", table.select(rows[:most].sort().values.tolist()))


def table_state(table: Dataset, columns: Sequence[str], source: str) -> str:
    """Return a text that changes with the files of some columns and their order, or with the table that holds them.

    Features are stored by index, so that the same files in another order count as other images.
    """
    paths = [path for column in columns for path in _paths(table, column)]
    if any(path is None for path in paths):
        return str(table._fingerprint)
    folder = Path(source).expanduser()
    files = [Path(str(path)) for path in paths]
    paths_within = [path_within(file, folder) for file in files]
    state = files_fingerprint(dict(zip(paths_within, files, strict=True)))
    return f"{state}, order {hash_of({'places': paths_within})[:16]}"


def _paths(table: Dataset, column: str) -> list[str | None]:
    """Return the files of a column of images, or of texts that name files, as for depth maps."""
    from datasets import Value

    feature = table.features[column]
    if isinstance(feature, Value) and feature.dtype == "string":
        return list(table.select_columns([column])[:][column])
    return image_paths(table, column)


def path_within(path: Path, folder: Path) -> str:
    """Return a file's path in a folder, through links or not; for a file elsewhere its name with that of its folder."""
    for file, root in ((path.absolute(), folder.absolute()), (path.resolve(), folder.resolve())):
        if file.is_relative_to(root):
            return str(file.relative_to(root))
    return str(Path(*path.parts[-2:]))
