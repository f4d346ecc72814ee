"""YOLO's labels: a txt for each image, with a line of a class and shares of the image for each object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from training.data.decoding import EncodedImage, image_size
from training.data.image_folder import pillow_suffixes
from training.data.labeled.layouts import SPLIT_NAMES, TRAIN, Tables
from training.data.labeled.objects import ImageObjects, object_tables, read_number


FILES = ("data.yaml", "dataset.yaml", "data.yml")
IMAGES, LABELS = "images", "labels"
BOX_LENGTH = 5
"""Numbers of a line with a box: class, center x, center y, width, height."""


def find_yolo(source: Path) -> Path | None:
    """Return the yaml of a data set, or its folder where it has none; `None` if it is no YOLO's."""
    if source.suffix in (".yaml", ".yml"):
        return source
    named = next((source / name for name in FILES if (source / name).is_file()), None)
    if named is not None:
        return named
    has_labels = source.is_dir() and next(source.glob(f"**/{LABELS}/**/*.txt"), None) is not None
    return source if has_labels else None


def read_yolo(source: Path, *, with_masks: bool) -> tuple[Tables, tuple[str, ...]]:
    """Read what a `data.yaml` names, or `images/` and `labels/` with folders of splits below or above them.

    An image without a txt has no objects. A line of a polygon stands for the box around it.

    Args:
        source: The yaml (`path`, `train`, `val`, `names`), or a folder; there `classes.txt` may name the classes.
        with_masks: Whether each object needs a polygon.

    Raises:
        ValueError: If a line cannot be right, or an image or split is missing.

    References:
        Ultralytics' format of detection data sets.
    """
    folders, names = _named(source) if source.is_file() else _in_folder(source)
    splits = {split: [_read(path) for path in images] for split, images in folders.items()}
    if not names:
        numbers = [int(name) for images in splits.values() for image in images for name in image.classes]
        names = tuple(f"class {number}" for number in range(max(numbers, default=-1) + 1))
    return object_tables(splits, names, with_masks=with_masks)


def _named(path: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as yaml: {' '.join(str(error).split()):.200}") from error
    content = content if isinstance(content, dict) else {}
    root = path.parent / str(content.get("path") or "")
    root = root if root.is_dir() else path.parent  # `path` is that of the machine that wrote it
    places = {
        split: next((content[name] for name in names if content.get(name)), None)
        for split, names in SPLIT_NAMES.items()
    }
    if places[TRAIN] is None:
        raise ValueError(f"{path} must name a folder of images as `train`.")
    found = {split: _images_of(place, root, path) for split, place in places.items() if place is not None}
    return found, _names_of(content.get("names"), path)


def _images_of(place: Any, root: Path, path: Path) -> list[Path]:
    """Return the images that an entry of the yaml stands for: a folder, a list of files in a txt, or several."""
    images: list[Path] = []
    for each in place if isinstance(place, list) else [place]:
        folder = root / str(each)
        # Roboflow writes `../train/images`, as seen from a folder below.
        folder = folder if folder.exists() else root / str(each).removeprefix("../")
        if folder.is_file():
            lines = folder.read_text(encoding="utf-8").split("\n")
            images += [folder.parent / line.strip() for line in lines if line.strip()]
        elif folder.is_dir():
            images += _images_below(folder)
        else:
            raise ValueError(f"{path} names {str(each)!r}, which is neither a folder nor a file in {root}.")
    return images


def _names_of(names: Any, path: Path) -> tuple[str, ...]:
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path} must have `names`, a list or a name for each number from 0, got {names!r:.80}.")
    return tuple(map(str, names))


def _in_folder(folder: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    file = folder / "classes.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = {}
    for split, spellings in SPLIT_NAMES.items():
        places = [place for name in spellings for place in (folder / IMAGES / name, folder / name / IMAGES)]
        images = next((_images_below(place) for place in places if place.is_dir()), [])
        if images:
            found[split] = images
    if not found:
        found[TRAIN] = _images_below(folder / IMAGES)
    return found, tuple(line.strip() for line in lines if line.strip())


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in pillow_suffixes() and path.is_file())


def _read(path: Path) -> ImageObjects:
    image, labels = ImageObjects(path), _labels_of(path)
    lines = [line.split() for line in labels.read_text(encoding="utf-8").splitlines()] if labels.is_file() else []
    if any(lines):
        try:
            height, width = image_size(EncodedImage(str(path), path))  # upright, as images are trained
        except ValueError as error:
            raise ValueError(f"The image {path} cannot be opened: {error}") from error
        for index, line in enumerate(lines, start=1):
            if line:
                _add_line(image, line, (width, height), f"{labels}, line {index}")
    return image


def _labels_of(path: Path) -> Path:
    """Return the txt of an image: that in `labels/` where the image lies in `images/`, else the one beside it."""
    parts = list(path.with_suffix(".txt").parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == IMAGES]
    if places:
        parts[places[-1]] = LABELS
    return Path(*parts)


def _add_line(image: ImageObjects, line: list[str], size: tuple[int, int], where: str) -> None:
    number, *shares = (read_number(text, where) for text in line)
    if number != int(number) or (len(line) != BOX_LENGTH and (len(line) < 7 or len(line) % 2 == 0)):
        raise ValueError(
            f"{where} must be a class and a box (center x, center y, width, height) or a polygon, got "
            f"{' '.join(line):.80}."
        )
    if max(map(abs, shares)) > 1.01:  # our choice: shares may be rounded up
        raise ValueError(f"{where} must have shares of the image in [0, 1], got {' '.join(line):.80}.")
    if len(line) == BOX_LENGTH:
        (x, y, width, height), outline = _scaled(shares, size), None
        box = (x - width / 2, y - height / 2, width, height)
    else:
        outline = list(_scaled(shares, size))
        left, top, right, bottom = min(outline[::2]), min(outline[1::2]), max(outline[::2]), max(outline[1::2])
        box = (left, top, right - left, bottom - top)
    image.add(box, int(number), outline)


def _scaled(shares: list[float], size: tuple[int, int]) -> Iterator[float]:
    return (share * size[index % 2] for index, share in enumerate(shares))
