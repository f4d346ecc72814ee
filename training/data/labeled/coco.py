"""COCO's annotations as `datasets` tables, each entry checked before it is used."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modeling_radio.training.data.labeled.folders import SPLIT_NAMES, TRAIN, SplitNames, Tables


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": (str,)},
    "categories": {"id": (int,), "name": (str,)},
    "annotations": {"image_id": (int, str), "category_id": (int,), "bbox": (list,)},
}
"""Fields of the entries of a COCO json, and their types."""

LARGEST_NUMBER = float(np.finfo(np.float32).max)
"""Largest number of a box: they are stored in float32."""


def read_coco(source: Path, splits: SplitNames = SPLIT_NAMES, *, with_masks: bool) -> tuple[Tables, tuple[str, ...]]:
    """Read COCO detection annotations; columns `image` and `objects` with `bbox` (x, y, width, height) and `category`.

    Crowds are left out, and so are boxes without an area, of which COCO has a few; the log counts the latter. Symbolic
    links are followed, wherever they lead.

    Args:
        source: A json file, its images beside it or in `images/`; or a folder: `annotations/instances_train2017.json`
            with `train2017/`, `train/_annotations.coco.json` with the images beside it; or one split alone,
            `annotations.json` with `images/`, or `_annotations.coco.json` with the images beside it.
        splits: Possible names of each split.
        with_masks: Whether objects also have a `segmentation`: COCO's polygons or run lengths as JSON, which fits both
            and takes far less room than pixels.

    Returns:
        The tables, and the categories' names in the order of their ids, which number the classes.

    Raises:
        ValueError: If no annotations are found, they are no COCO json, an entry lacks a field or has another type in
            its place, two images or two categories share an id, an image is missing or named out of its folder, or a
            split has several files.
    """
    files = {TRAIN: source} if source.suffix == ".json" and source.is_file() else _only_files(source, splits)
    if TRAIN not in files:
        raise ValueError(
            f"{source} has no COCO annotations: give a json file, or a folder with annotations/instances_train*.json, "
            "train/_annotations.coco.json or annotations.json. The package supervision makes COCO of "
            "Pascal VOC and of YOLO."
        )
    parsed = {split: _parse(path) for split, path in files.items()}
    names = {category["id"]: category["name"] for category in parsed[TRAIN]["categories"]}
    for split, content in parsed.items():
        for number, name in ((category["id"], category["name"]) for category in content["categories"]):
            if names.get(number, name) != name:
                raise ValueError(
                    f"{files[split]} calls the category {number} {name!r}, the training set {names[number]!r}: number "
                    "both alike."
                )
    numbers = {category: number for number, category in enumerate(sorted(names))}
    tables = {split: _table(files[split], content, numbers, with_masks) for split, content in parsed.items()}
    return tables, tuple(names[category] for category in numbers)


def holds_coco(folder: Path) -> bool:
    """Return whether a folder has COCO annotations for training."""
    paths = _find_files(folder).get(TRAIN)
    if paths is None:
        return False
    try:
        _parse(paths[0])
    except ValueError:
        return False
    return True


def _only_files(folder: Path, splits: SplitNames) -> dict[str, Path]:
    found = _find_files(folder, splits)
    for split, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in paths)
            raise ValueError(
                f"`data` must have one file of annotations for {split}, got {names} in {folder}. Name one file as "
                "`data`, or move the others."
            )
    return {split: paths[0] for split, paths in found.items()}


def _find_files(folder: Path, splits: SplitNames = SPLIT_NAMES) -> dict[str, list[Path]]:
    """Return the files of each split, those of its first name that has any."""
    found = {}
    for split, names in splits.items():
        candidates = [
            [
                *sorted((folder / "annotations").glob(f"instances_{name}*.json")),
                *(folder / name).glob("_annotations.coco.json"),
            ]
            for name in names
        ]
        found[split] = next(filter(None, candidates), [])
    if not found[TRAIN]:
        alone = ("annotations.json", "_annotations.coco.json")
        found[TRAIN] = next(filter(None, (list(folder.glob(name)) for name in alone)), [])
    return {split: paths for split, paths in found.items() if paths}


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as json: {error}") from error
    parts = content if isinstance(content, dict) else {}
    missing = [part for part in FIELDS if not isinstance(parts.get(part), list)]
    if missing:
        raise ValueError(f"{path} is no COCO json for detection: it lacks lists of {', '.join(missing)}.")
    for part, fields in FIELDS.items():
        for index, entry in enumerate(parts[part]):
            _check_fields(entry, fields, f"{path}: {part}[{index}]")
    for part in ("images", "categories"):
        first: dict[Any, int] = {}
        for index, entry in enumerate(parts[part]):
            number = entry["id"]
            earlier = first.setdefault(number, index)
            if earlier != index:
                where = f"{path}: {part}[{index}]"
                raise ValueError(f"{where} has the `id` {number!r:.60} of entry {earlier}: give each an id of its own.")
    return parts


def _check_fields(entry: Any, fields: Mapping[str, tuple[type, ...]], where: str) -> None:
    values = entry if isinstance(entry, dict) else {}
    for name, types in fields.items():
        value = values.get(name)
        if not isinstance(value, types) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in types)
            raise ValueError(f"{where} must have `{name}` of type {wanted}, got {value!r:.60}.")
        # json takes halves of characters (lone surrogates), which cannot be written.
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{where} must have a `{name}` that is valid Unicode, got {value!r:.60}.")


def _table(path: Path, content: Mapping[str, Any], numbers: Mapping[int, int], with_masks: bool) -> Dataset:
    from datasets import Dataset, Features, Image, List, Value

    find_image = _image_finder(path)
    features = {"bbox": List(List(Value("float32"))), "category": List(Value("int64"))}
    if with_masks:
        features["segmentation"] = List(Value("string"))
    objects: dict[Any, dict[str, list]] = {image["id"]: {key: [] for key in features} for image in content["images"]}
    annotations = []
    for index, annotation in enumerate(content["annotations"]):
        if not annotation.get("iscrowd", 0):
            _check_object(annotation, objects, numbers, f"{path}: annotations[{index}]", with_masks)
            annotations.append(annotation)
    whole = [annotation for annotation in annotations if 0 not in annotation["bbox"][2:]]
    if len(whole) < len(annotations):
        logger.warning("%s: left out %d boxes without an area", path, len(annotations) - len(whole))
    for annotation in whole:
        own = objects[annotation["image_id"]]
        own["bbox"].append([float(number) for number in annotation["bbox"]])  # arrow casts no integer above 2**24
        own["category"].append(numbers[annotation["category_id"]])
        if with_masks:
            own["segmentation"].append(json.dumps(annotation["segmentation"]))
    rows = {
        "image": [str(find_image(image["file_name"])) for image in content["images"]],
        "objects": [objects[image["id"]] for image in content["images"]],
    }
    return Dataset.from_dict(rows, features=Features({"image": Image(), "objects": features}))


def _check_object(
    annotation: Mapping[str, Any], images: Mapping[Any, Any], numbers: Mapping[int, int], where: str, with_masks: bool
) -> None:
    image, category = annotation["image_id"], annotation["category_id"]
    if image not in images:
        raise ValueError(f"{where} names image {image!r:.60}, which is not in `images`.")
    if category not in numbers:
        raise ValueError(
            f"{where} has the category {category!r:.60}; the training set's `categories` have the ids "
            f"{', '.join(map(str, numbers)) or '(none)'}."
        )
    if not _is_box(annotation["bbox"]):
        raise ValueError(
            f"{where} must have a `bbox` of x, y, width and height, the sides not negative, got "
            f"{annotation['bbox']!r:.100}."
        )
    if with_masks and not annotation.get("segmentation"):
        raise ValueError(f"{where} has no `segmentation`: without outlines choose the task object-detection.")


def _is_box(box: Sequence[Any]) -> bool:
    are_numbers = all(type(number) in (int, float) and abs(number) <= LARGEST_NUMBER for number in box)
    return len(box) == 4 and are_numbers and min(box[2:]) >= 0


def _image_finder(path: Path) -> Callable[[str], Path]:
    split = path.stem.removeprefix("instances_")
    folders = (path.parent, path.parent / "images", path.parent.parent / split, path.parent.parent / "images" / split)

    def find(name: str) -> Path:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(
                f"{path} must name images within their folder, got `file_name` {name!r:.100}: write a "
                "relative path without `..`."
            )
        for folder in folders:
            if os.path.isfile(folder / name):  # unlike `Path.is_file` it takes names that no file can have
                return folder / name
        raise ValueError(f"{path} names the image {name!r:.100}, which is in none of {', '.join(map(str, folders))}.")

    return find
