"""Labels of images: classes or a number for each image, objects, masks of class ids, depth maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from modeling_radio.core.errors import first_few
from modeling_radio.data.labeled.folders import TRAIN, Tables
from modeling_radio.heads_radio import ProblemType
from modeling_radio.image_processing_radio import UNREADABLE, load_upright, open_image_file


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

OBJECT_KEYS = {
    "bbox": ("bbox", "boxes", "bboxes"),
    "category": ("category", "category_id", "label", "labels"),
    "segmentation": ("segmentation", "segmentations"),
}
"""Usual names of the parts of objects; the first that exists is taken."""

Label = str | int


def find_problem_type(table: Dataset | IterableDataset, column: str = "target") -> ProblemType:
    """Return the problem that the type of a column of labels stands for: lists, floats, or one class for each image."""
    from datasets import LargeList, List, Value

    assert table.features is not None  # only a stream may have none, and that is refused where it is opened
    feature = table.features[column]
    if isinstance(feature, (List, LargeList)):
        return "multi_label_classification"
    if isinstance(feature, Value) and feature.dtype.startswith("float"):
        return "regression"
    return "single_label_classification"


def check_numbers(tables: Tables, column: str) -> None:
    """Raise a `ValueError` unless every label is a finite number.

    Args:
        tables: Tables by split, with the labels in the column `target`.
        column: The source's name of that column.
    """
    for split, table in tables.items():
        for index, label in enumerate(table["target"][:]):
            _check_number(label, _name(split, index, column))


def _check_number(label: Any, image: str) -> None:
    if not isinstance(label, (int, float)) or not math.isfinite(label):
        raise ValueError(f"The label of {image} is {label!r}, not a finite number: label the image, or leave it out.")


def number_classes(tables: Tables, column: str, names: tuple[str, ...] | None) -> tuple[Tables, tuple[str, ...]]:
    """Return tables whose labels are ids of classes, and the names of the classes.

    Args:
        tables: Tables by split; the column `target` has a name or an id for each image, or a list of them.
        column: The source's name of that column.
        names: Names in the order of their ids; None takes those of the labels.

    Raises:
        ValueError: If a label is missing or no known class, or the training images have too few classes to learn:
            fewer than two, or than one where an image may have none.
    """
    labels = {split: _read_labels(table, split, column) for split, table in tables.items()}
    names = names or stated_names(tables[TRAIN]) or name_classes(label for image in labels[TRAIN] for label in image)
    ids = {name: number for number, name in enumerate(names)}
    numbers = {
        split: [_number(image, ids, _name(split, index, column)) for index, image in enumerate(images)]
        for split, images in labels.items()
    }
    present = sorted({number for image in numbers[TRAIN] for number in image})
    needed = 1 if find_problem_type(tables[TRAIN]) == "multi_label_classification" else 2
    if len(present) < needed:
        found = f"one class, {names[present[0]]!r}" if present else "no class"
        is_folder = tables[TRAIN].builder_name == "imagefolder"
        hint = " In a folder of images each class has its own sub-folder: cat/1.png, dog/2.png." if is_folder else ""
        raise ValueError(
            f"The training images have {found} (column {column!r}), and the classifier needs at least {needed}.{hint}"
        )
    return {split: _with_numbers(table, numbers[split]) for split, table in tables.items()}, names


def _read_labels(table: Dataset, split: str, column: str) -> list[list[Label]]:
    """Return the stored labels of each image, one or several."""
    has_lists = find_problem_type(table) == "multi_label_classification"
    return [
        _read_label(label, _name(split, index, column), has_lists=has_lists)
        for index, label in enumerate(table["target"][:])
    ]


def _read_label(label: Any, image: str, *, has_lists: bool) -> list[Label]:
    several = label if has_lists else [label]
    if several is None or not all(isinstance(one, (str, int)) for one in several):
        empty = " (an empty list stands for no class)" if has_lists else ""
        raise ValueError(
            f"The label of {image} is {label!r}, but classes are names or whole numbers: label the image{empty}, or "
            "leave it out."
        )
    return several


def stated_names(table: Dataset | IterableDataset, column: str = "target") -> tuple[str, ...] | None:
    """Return the names of classes in the type of a column of labels, or None if it has none."""
    from datasets import ClassLabel, LargeList, List

    assert table.features is not None
    feature: Any = table.features[column]
    if isinstance(feature, (List, LargeList)):
        feature = feature.feature
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def stated_categories(table: Dataset) -> tuple[str, ...] | None:
    """Return the names of classes in the type of a column of objects, or None if it has none."""
    from datasets import ClassLabel, List

    feature: Any = table.features["target"]
    while isinstance(feature, List):
        feature = feature.feature
    category = next((feature[key] for key in OBJECT_KEYS["category"] if key in feature), None)
    while isinstance(category, List):
        category = category.feature
    return tuple(category.names) if isinstance(category, ClassLabel) else None


def number_known_classes(table: Dataset, column: str, known: Sequence[str]) -> Dataset:
    """Return a table whose labels are ids of the classes that a model knows, found by name where labels have names.

    Args:
        table: The column `target` has a name or an id for each image, or a list of them.
        column: The source's name of that column.
        known: Names of the model's classes.

    Raises:
        ValueError: If a label is missing, or a class that the model does not know.
    """
    names = stated_names(table, "target")
    labels = [[named(label, names) for label in image] for image in _read_labels(table, "test", column)]
    ids = {name: number for number, name in enumerate(known)}
    numbers = [_number(image, ids, _name("test", index, column)) for index, image in enumerate(labels)]
    return _with_numbers(table, numbers)


def named(label: Label, names: Sequence[str] | None) -> Label:
    """Return the name of a class that is given by its id in the source, if the source names its ids."""
    return names[label] if names and isinstance(label, int) and 0 <= label < len(names) else label


def name_classes(labels: Iterable[Label]) -> tuple[str, ...]:
    """Return the names among labels, sorted; for ids, a name for each up to the largest."""
    distinct = set(labels)
    names = sorted(label for label in distinct if isinstance(label, str))
    largest = max((label for label in distinct if isinstance(label, int)), default=-1)
    return tuple(names) or tuple(f"class {number}" for number in range(largest + 1))


def class_ids(labels: Sequence[Label], ids: Mapping[str, int], where: str) -> list[int]:
    """Return the ids of classes that are given by name or number.

    Raises:
        ValueError: If a class is unknown; the message names `where`.
    """
    numbers = [int(label) if isinstance(label, int) else ids.get(label, -1) for label in labels]
    for label, number in zip(labels, numbers, strict=True):
        if not 0 <= number < len(ids):
            raise ValueError(
                f"The label {label!r} of {where} is not one of the {len(ids)} classes ({first_few(list(ids), 10)}): "
                "correct it, leave the image out, or give all `classes` where a model is tuned."
            )
    return numbers


@dataclass(frozen=True)
class LabelReader:
    """Reads the labels of a stream one by one.

    Attributes:
        problem_type: The problem that they are for.
        names: Names of the classes in the order of their ids; empty for regression.
        column: Their column.
        source_names: Names of the ids in the source, if it has any, where `names` are those of a model to measure;
            None where ids are those of `names`.
    """

    problem_type: ProblemType
    names: tuple[str, ...]
    column: str
    source_names: tuple[str, ...] | None = None

    def read(self, row: Mapping[str, Any], image: str) -> float | int | list[int]:
        """Return the label of a row for a task: a number, the id of a class, or several.

        Raises:
            ValueError: If it is missing, no finite number, or no known class; the message names `image`.
        """
        label, image = row[self.column], f"{image} (column {self.column!r})"
        if self.problem_type == "regression":
            _check_number(label, image)
            return label
        has_lists = self.problem_type == "multi_label_classification"
        labels = _read_label(label, image, has_lists=has_lists)
        numbers = _number([named(each, self.source_names) for each in labels], self._ids, image)
        return numbers if has_lists else numbers[0]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}


def _number(labels: Sequence[Label], ids: Mapping[str, int], image: str) -> list[int]:
    """Return the ids of an image's classes; refuse one that occurs twice."""
    numbers = class_ids(labels, ids, image)
    for label, number in zip(labels, numbers, strict=True):
        if isinstance(label, int) and numbers.count(number) > 1:
            raise ValueError(
                f"The labels of {image} have {label} more than once: {labels}. A list has the ids of the image's "
                "classes, such as [0, 3], not a 0 or 1 for each class."
            )
    return numbers


def _with_numbers(table: Dataset, numbers: list[list[int]]) -> Dataset:
    from datasets import List, Value

    table_without: Any = table.remove_columns("target")  # declared as a union
    if find_problem_type(table) == "multi_label_classification":
        return table_without.add_column("target", numbers, feature=List(Value("int64")))
    single = [number for (number,) in numbers]
    return table_without.add_column("target", single, feature=Value("int64"))


def _name(split: str, index: int, column: str) -> str:
    return f"{split} image {index} (column {column!r})"


INTEGER_UNITS_PER_METER = 1000.0  # 16-bit depth is in millimeters, as in NYU Depth v2; KITTI has 256

_UNREADABLE = (*UNREADABLE, TokenError)  # NumPy's, of broken files and ragged lists


def read_mask(mask: Any, where: str) -> Tensor:
    """Return the class of each pixel, int64 `(height, width)`.

    Args:
        mask: A PIL image with a palette or gray levels, or an array.
        where: Name of the image in errors.

    Raises:
        ValueError: If there is no mask, or it has colors.
    """
    if mask is None:
        raise ValueError(f"The mask of {where} is missing: give it one, or leave the image out.")
    ids = np.asarray(mask)
    if ids.ndim != 2:
        raise ValueError(
            f"The mask of {where} has colors, shape {ids.shape}: masks are PNGs with a palette or gray levels "
            "whose values are class ids."
        )
    return torch.from_numpy(ids.astype(np.int64))


def read_depth(target: Any, where: str, units_per_meter: float | None = None) -> Tensor:
    """Return a depth map in meters, float32 `(height, width)`, 0 where the depth is not known.

    Args:
        target: A path to `.npy` or PNG, an image or nested lists.
        where: Name of the image in errors.
        units_per_meter: Unit of the stored numbers; None takes 1000 for whole numbers and 1 for others.

    Raises:
        ValueError: If it cannot be read, is no map of numbers or has no known depth.
    """
    where = f"{where} ({target})" if isinstance(target, str) else where
    values = _read_values(target, where)
    if values.ndim != 2:
        raise ValueError(f"The depth map of {where} must have the shape (height, width), got {values.shape}.")
    if values.dtype.kind not in "iuf":
        raise ValueError(f"The depth map of {where} must have whole or floating-point numbers, got {values.dtype}.")
    if units_per_meter is None:
        units_per_meter = INTEGER_UNITS_PER_METER if np.issubdtype(values.dtype, np.integer) else 1.0
    depth = torch.from_numpy(values.astype(np.float32)) / units_per_meter
    is_known = depth.isfinite() & (depth > 0)
    if not is_known.any():
        raise ValueError(
            f"The depth map of {where} has no pixel with a depth, a finite number above 0: correct it, or leave "
            "the image out."
        )
    return depth.where(is_known, 0.0)


def _read_values(target: Any, where: str) -> np.ndarray:
    """Return the stored values of a depth map."""
    try:
        if not isinstance(target, str):
            return np.asarray(target)
        if Path(target).suffix == ".npy":
            return np.load(target, allow_pickle=False)
        with open_image_file(target) as mask:
            return np.asarray(load_upright(mask))
    except _UNREADABLE as error:
        raise ValueError(f"The depth map of {where} cannot be read: {error}") from error


def read_objects(objects: Any, where: str, part: str) -> Sequence[Any]:
    """Return one part of all objects of an image.

    Args:
        objects: Lists by key, or, as in some data sets of the Hub, a list of objects; None for no objects.
        where: Name of the image in messages.
        part: A key of `OBJECT_KEYS`.

    Raises:
        ValueError: If the objects are something else, or lack the part.
    """
    if objects is not None and not isinstance(objects, (Mapping, list)):
        raise ValueError(
            f"The objects of {where} must be lists by key or a list of objects, got {objects!r:.60}. See "
            "`target_column`."
        )
    if not objects:
        return []
    keys = objects if isinstance(objects, Mapping) else objects[0]
    key = next((spelling for spelling in OBJECT_KEYS[part] if spelling in keys), None)
    if key is None:
        raise ValueError(
            f"The objects of {where} have no {part} ({', '.join(OBJECT_KEYS[part])}); they have {', '.join(keys)}."
        )
    return objects[key] or [] if isinstance(objects, Mapping) else [entry[key] for entry in objects]
