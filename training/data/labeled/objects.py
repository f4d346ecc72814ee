"""Objects of images as some file says them, on the way to `datasets` tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import first_few
from training.data.folder_kinds import MAX_NAMED
from training.data.labeled.layouts import Tables


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""


@dataclass
class ImageObjects:
    """What a file of labels says of one image.

    Attributes:
        image: The file.
        boxes: Of its objects.
        classes: Name of each, or its number.
        outlines: Polygon of each, x, y, x, y, ... in pixels; empty where the format has none.
        num_empty: How many objects were left out since their box has no area.
    """

    image: Path
    boxes: list[Box] = field(default_factory=list)
    classes: list[str | int] = field(default_factory=list)
    outlines: list[list[float]] = field(default_factory=list)
    num_empty: int = 0

    def add(self, box: Box, name: str | int, outline: list[float] | None = None) -> None:
        """Add an object, or count it if its box has no area."""
        if 0 in box[2:]:
            self.num_empty += 1
            return
        self.boxes.append(box)
        self.classes.append(name)
        if outline is not None:
            self.outlines.append(outline)


def object_tables(
    splits: Mapping[str, Sequence[ImageObjects]], names: tuple[str, ...] | None, *, with_masks: bool = False
) -> tuple[Tables, tuple[str, ...]]:
    """Return the images as tables; see `training.data.labeled.boxes.read_boxes`.

    Args:
        splits: The images of each.
        names: Of the classes in the order of their ids, whether labels have numbers or names; `None` where they have
            names: all that occur, sorted.
        with_masks: Whether every object has an outline.

    Raises:
        ValueError: If a split has no image, or a number or a name is none of a class.
    """
    if names is None:
        names = tuple(sorted({str(name) for images in splits.values() for image in images for name in image.classes}))
    numbers: dict[str | int, int] = {key: number for number, name in enumerate(names) for key in (number, name)}
    return {split: _table(images, split, numbers, with_masks) for split, images in splits.items()}, names


def _table(images: Sequence[ImageObjects], split: str, numbers: Mapping[str | int, int], with_masks: bool) -> Dataset:
    from datasets import Dataset, Features, Image, List, Value

    if not images:
        raise ValueError(f"The split {split!r} has no images.")
    num_empty = sum(image.num_empty for image in images)
    if num_empty:
        logger.warning("the split %r: left out %d boxes without an area", split, num_empty)
    features: dict[str, Any] = {"bbox": List(List(Value("float32"))), "category": List(Value("int64"))}
    if with_masks:
        features["segmentation"] = List(Value("string"))
    rows = [_row(image, numbers, with_masks) for image in images]
    columns = {"image": [str(image.image) for image in images], "objects": rows}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "objects": features}))


def _row(image: ImageObjects, numbers: Mapping[str | int, int], with_masks: bool) -> dict[str, list[Any]]:
    unknown = [name for name in image.classes if name not in numbers]
    if unknown:
        names = [name for name in numbers if isinstance(name, str)]
        if isinstance(unknown[0], str):
            known = f"which is not in `classes` ({first_few(names, MAX_NAMED)})"
        else:
            known = f"but there are {len(names)} classes, numbered from 0 to {len(names) - 1}"
        raise ValueError(
            f"An object of {image.image} has the class {unknown[0]!r:.60}, {known}: correct it, or name all classes."
        )
    row: dict[str, list[Any]] = {
        "bbox": [list(box) for box in image.boxes],
        "category": [numbers[name] for name in image.classes],
    }
    if with_masks:
        if len(image.outlines) < len(image.boxes):
            raise ValueError(f"An object of {image.image} has a box without an outline: choose object-detection.")
        row["segmentation"] = [json.dumps([outline]) for outline in image.outlines]
    return row


def read_number(text: Any, where: str) -> float:
    """Return a finite number.

    Raises:
        ValueError: If it is none; the message begins with `where`.
    """
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ValueError(f"{where} must be a number, got {text!r:.60}.")
    return number


def require_files(paths: Iterable[Path], where: str) -> None:
    """Raise a `ValueError` that names some of those that are no files."""
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{where} names {len(missing)} images that are not there: {first_few(missing, 3)}.")
