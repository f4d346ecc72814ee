"""COCO's annotations as `datasets` tables."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_radio.data.labeled.folders import SPLIT_NAMES, TRAIN, SplitNames, Tables


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

NAMES = {"images": "file_name", "categories": "name"}
"""The lists of a COCO json for detection besides `annotations`, and the field of a name in their entries."""


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
        ValueError: If no annotations are found, they are no COCO json, an object lacks a field or names no image or
            category, two images or two categories share an id, an image is missing or named out of its folder, or a
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
    missing = [part for part in (*NAMES, "annotations") if not isinstance(parts.get(part), list)]
    if missing:
        raise ValueError(f"{path} is no COCO json for detection: it lacks lists of {', '.join(missing)}.")
    for part, name in NAMES.items():
        try:
            counts = Counter(entry["id"] for entry in parts[part] if entry[name] is not None)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: each of `{part}` must have an `id` and a `{name}` ({error}).") from error
        twice = [number for number, count in counts.items() if count > 1]
        if twice:  # the objects of both images would be those of each
            raise ValueError(f"{path} has several {part} with the `id` {twice[0]!r:.60}: give each an id of its own.")
    return parts


def _table(path: Path, content: Mapping[str, Any], numbers: Mapping[int, int], with_masks: bool) -> Dataset:
    from datasets import Dataset, Features, Image, List, Value

    find_image = _image_finder(path)
    features = {"bbox": List(List(Value("float32"))), "category": List(Value("int64"))}
    if with_masks:
        features["segmentation"] = List(Value("string"))
    objects: dict[Any, dict[str, list]] = {image["id"]: {key: [] for key in features} for image in content["images"]}
    without_area = 0
    for index, annotation in enumerate(content["annotations"]):
        if annotation.get("iscrowd", 0):
            continue
        try:
            box = [float(number) for number in annotation["bbox"]]  # arrow casts no integer above 2**24
            own, category = objects[annotation["image_id"]], numbers[annotation["category_id"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: annotations[{index}] must have a `bbox` of numbers, the `image_id` of one of `images` and "
                f"the `category_id` of one of the training set's `categories`, got {annotation!r:.200}."
            ) from error
        if with_masks and not annotation.get("segmentation"):
            raise ValueError(
                f"{path}: annotations[{index}] has no `segmentation`: without outlines choose the task "
                "object-detection."
            )
        if 0 in box[2:]:
            without_area += 1
            continue
        own["bbox"].append(box)
        own["category"].append(category)
        if with_masks:
            own["segmentation"].append(json.dumps(annotation["segmentation"]))
    if without_area:
        logger.warning("%s: left out %d boxes without an area", path, without_area)
    rows = {
        "image": [str(find_image(image["file_name"])) for image in content["images"]],
        "objects": [objects[image["id"]] for image in content["images"]],
    }
    return Dataset.from_dict(rows, features=Features({"image": Image(), "objects": features}))


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
