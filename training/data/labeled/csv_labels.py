"""Tables of labels in CSV: boxes, one line each, or what a whole image shows."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.labeled.layouts import SPLIT_NAMES, TRAIN, Tables
from training.data.labeled.objects import Box, ImageObjects, object_tables, read_number, require_files


if TYPE_CHECKING:
    from datasets import Dataset

FILE_COLUMNS = ("filename", "file_name", "image", "path", "image_path", "img", "image_id")
CLASS_COLUMNS = ("class", "label", "category", "class_name", "name")
CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
)
SIDES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))
"""What columns may be called; letters' case does not count, and the first names that are all there do.

Names that are a box's alone come first: `width` and `height` beside them are the image's.
"""


def find_csv(source: Path) -> dict[str, Path] | None:
    """Return the CSV of each split: the file itself, `train.csv`, `train/_annotations.csv` or `annotations.csv`."""
    if source.suffix == ".csv":
        return {TRAIN: source}
    found = {}
    for split, names in SPLIT_NAMES.items():
        places = [place for name in names for place in (source / f"{name}.csv", source / name / "_annotations.csv")]
        found[split] = next((place for place in places if place.is_file()), None)
    if found[TRAIN] is None:
        places = [source / name for name in ("annotations.csv", "_annotations.csv", "labels.csv")]
        found[TRAIN] = next((place for place in places if place.is_file()), None)
    return {split: path for split, path in found.items() if path} if found[TRAIN] else None


def read_csv_boxes(files: Mapping[str, Path], classes: tuple[str, ...] | None = None) -> tuple[Tables, tuple[str, ...]]:
    """Read boxes in pixels, one a line: columns of the file, the class, and corners or corner and sides.

    A line with a file alone is an image without objects. Files are named from the CSV's folder or its `images/`.

    Args:
        files: The CSV of each split.
        classes: The classes' names in the order of their ids; `None` for all that occur, sorted.

    Raises:
        ValueError: If columns are missing, a number is none, an image is not there, or `classes` lacks one.
    """
    return object_tables({split: list(_read_objects(path).values()) for split, path in files.items()}, classes)


def _read_objects(path: Path) -> dict[str, ImageObjects]:
    images: dict[str, ImageObjects] = {}
    rows, columns = _rows(path)
    file, name = _column(columns, FILE_COLUMNS, path), _column(columns, CLASS_COLUMNS, path)
    corners = next((names for names in CORNERS if set(names) <= columns.keys()), None)
    sides = next((names for names in SIDES if set(names) <= columns.keys()), None)
    chosen = corners or sides
    if chosen is None:
        raise ValueError(
            f"{path} must have columns of boxes, such as {', '.join(CORNERS[0])} or {', '.join(SIDES[0])}; it has "
            f"{', '.join(columns)}."
        )
    for line, row in rows:
        image = images.setdefault(row[file], ImageObjects(_image(path, row[file])))
        texts = [row[columns[each]] for each in chosen]
        if not any(texts) and not row[name]:
            continue
        if not row[name]:
            raise ValueError(f"{path}, line {line} has no class.")
        numbers = [
            read_number(text, f"{path}, line {line}: `{each}`") for text, each in zip(texts, chosen, strict=True)
        ]
        image.add(_box(numbers, is_corners=corners is not None), row[name])
    require_files((image.image for image in images.values()), str(path))
    return images


def read_csv_labels(files: Mapping[str, Path]) -> Tables:
    """Read a class or a number for each image; columns `image` and `label`.

    Labels are whole numbers where all of them are written so, then floats, else names.

    Raises:
        ValueError: If columns are missing, or an image is not there or has several lines.
    """
    read = {split: _read_labels(path) for split, path in files.items()}
    labels = [label for _, own in read.values() for label in own]
    kind = next((kind for kind in (int, float) if _are_all(labels, kind)), str)
    return {split: _label_table(images, [kind(label) for label in own]) for split, (images, own) in read.items()}


def _read_labels(path: Path) -> tuple[list[Path], list[str]]:
    rows, columns = _rows(path)
    file, name = _column(columns, FILE_COLUMNS, path), _column(columns, CLASS_COLUMNS, path)
    images: list[Path] = []
    labels: list[str] = []
    lines: dict[Path, int] = {}
    for line, row in rows:
        if not row[name]:
            raise ValueError(f"{path}, line {line} has no label.")
        image = _image(path, row[file])
        if image in lines:
            raise ValueError(
                f"{path}, lines {lines[image]} and {line} both name {row[file]!r:.100}, but an image has one line: "
                "write several labels as lists into `metadata.jsonl` beside the images, or choose `--task "
                "object-detection` if the lines are boxes."
            )
        lines[image] = line
        images.append(image)
        labels.append(row[name])
    require_files(images, str(path))
    return images, labels


def _label_table(images: Sequence[Path], labels: list[Any]) -> Dataset:
    from datasets import Dataset, Image

    return Dataset.from_dict({"image": list(map(str, images)), "label": labels}).cast_column("image", Image())


def _are_all(labels: Sequence[str], kind: type) -> bool:
    try:
        return bool(labels) and all(kind(label) is not None for label in labels)
    except ValueError:
        return False


def _rows(path: Path) -> tuple[Iterator[tuple[int, dict[str, str]]], dict[str, str]]:
    """Return the lines with their numbers, and the columns by their names in small letters."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", restkey="")
            rows = [{name: (value or "").strip() for name, value in row.items() if name} for row in reader]
            columns = {name.strip().lower(): name for name in reader.fieldnames or [] if name}
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}.") from error
    if not rows:
        raise ValueError(f"{path} has no lines below its columns.")
    return enumerate(rows, start=2), columns


def _column(columns: Mapping[str, str], names: Sequence[str], path: Path) -> str:
    found = next((columns[name] for name in names if name in columns), None)
    if found is None:
        raise ValueError(f"{path} must have one of the columns {', '.join(names)}; it has {', '.join(columns)}.")
    return found


def _image(path: Path, name: str) -> Path:
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{path} must name images within its folder, got {name!r:.100}.")
    places = [path.parent / name, path.parent / "images" / name, path.parent / path.stem / name]
    return next((place for place in places if place.is_file()), places[0])


def _box(numbers: list[float], *, is_corners: bool) -> Box:
    left, top, third, fourth = numbers
    return (left, top, third - left, fourth - top) if is_corners else (left, top, third, fourth)
