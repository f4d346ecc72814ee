"""Folders of labeled images as `datasets` tables: pairs of files, and COCO annotations."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.image_folder import IMAGE_SUFFIXES


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

TRAIN, VALIDATION = "train", "validation"
SPLIT_NAMES = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "val", "dev", "test"),
}
"""What a split's folder or file may be called; the first that exists counts."""

IMAGE_FOLDERS = ("images", "JPEGImages", "image")
MASK_FOLDERS = ("masks", "SegmentationClass", "annotations", "labels")
DEPTH_FOLDERS = ("depth", "depths", "depth_maps")
MASK_SUFFIXES = frozenset({".png"})
DEPTH_SUFFIXES = frozenset({".png", ".npy"})
CLASSES_FILE = "classes.txt"
VOC_LISTS = Path("ImageSets") / "Segmentation"

COCO_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": (str,)},
    "categories": {"id": (int,), "name": (str,)},
    "annotations": {"image_id": (int, str), "category_id": (int,), "bbox": (list,)},
}
"""What the entries of a COCO json must have, and of which type."""

Tables = dict[str, "Dataset"]
"""Tables by split, at least "train"."""


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Return the lines of `classes.txt`, the names in the order of their ids, or None without that file."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())


def read_mask_folder(folder: Path) -> Tables:
    """Read images and masks with equal names, as in VOC; columns `image` and `mask`.

    Raises:
        ValueError: If the folders or some files are missing.
    """
    pairs = _pairs_by_split(folder, MASK_FOLDERS, MASK_SUFFIXES)
    return {split: _table_of_pairs(rows, "mask") for split, rows in pairs.items()}


def read_depth_folder(folder: Path) -> Tables:
    """Read images and depth maps with equal names, 16-bit PNG or `.npy`; columns `image` and `depth` (a path).

    Raises:
        ValueError: If the folders or some files are missing.
    """
    pairs = _pairs_by_split(folder, DEPTH_FOLDERS, DEPTH_SUFFIXES)
    return {split: _table_of_pairs(rows, "depth") for split, rows in pairs.items()}


def read_coco(source: Path, *, with_masks: bool) -> tuple[Tables, tuple[str, ...]]:
    """Read COCO detection annotations; columns `image` and `objects` with `bbox` (x, y, width, height) and `category`.

    Crowds are left out, and boxes without an area, of which COCO has a few; the latter are counted in the log.

    Args:
        source: A json file, its images beside it or in `images/`; or a folder: `annotations/instances_train2017.json`
            with `train2017/`, `train/_annotations.coco.json` with the images beside it, or `annotations.json` with
            `images/`.
        with_masks: Whether objects also have a `segmentation`, COCO's polygons or run lengths as JSON, which takes
            far less room than pixels and fits both.

    Returns:
        The tables, and the categories' names in the order of their ids, from which classes are numbered.

    Raises:
        ValueError: If no annotations are found, they are no COCO json, an entry lacks something or has something else
            in its place, or an image is missing.
    """
    files = {TRAIN: source} if source.is_file() else _find_coco_files(source)
    if TRAIN not in files:
        raise ValueError(
            f"{source} has no COCO annotations: give a json file, or a folder with annotations/instances_train*.json, "
            "train/_annotations.coco.json or annotations.json."
        )
    parsed = {split: _parse_coco(path) for split, path in files.items()}
    categories = sorted(parsed[TRAIN]["categories"], key=lambda category: category["id"])
    numbers = {category["id"]: number for number, category in enumerate(categories)}
    tables = {split: _coco_table(files[split], content, numbers, with_masks) for split, content in parsed.items()}
    return tables, tuple(category["name"] for category in categories)


def _pairs_by_split(
    folder: Path, target_folders: Sequence[str], suffixes: frozenset[str]
) -> dict[str, list[tuple[Path, Path]]]:
    roots = {split: _first_folder(folder, names) for split, names in SPLIT_NAMES.items()}
    train = roots[TRAIN]
    if train is None:
        pairs = _pairs(folder, target_folders, suffixes)
        return _split_by_voc_lists(folder, pairs) or {TRAIN: pairs}
    return {split: _pairs(root, target_folders, suffixes) for split, root in roots.items() if root is not None}


def _first_folder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _pairs(folder: Path, target_folders: Sequence[str], suffixes: frozenset[str]) -> list[tuple[Path, Path]]:
    images, targets = _first_folder(folder, IMAGE_FOLDERS), _first_folder(folder, target_folders)
    if images is None or targets is None:
        raise ValueError(
            f"{folder} must have a folder of images ({', '.join(IMAGE_FOLDERS)}) and one of targets "
            f"({', '.join(target_folders)})."
        )
    by_name = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    pairs = [
        (by_name[path.stem], path)
        for path in sorted(targets.iterdir())
        if path.suffix.lower() in suffixes and path.stem in by_name
    ]
    if not pairs:
        raise ValueError(f"No file of {targets} ({', '.join(sorted(suffixes))}) has the name of an image in {images}.")
    return pairs


def _split_by_voc_lists(folder: Path, pairs: list[tuple[Path, Path]]) -> dict[str, list[tuple[Path, Path]]] | None:
    lists = {split: folder / VOC_LISTS / name for split, name in ((TRAIN, "train.txt"), (VALIDATION, "val.txt"))}
    if not all(path.is_file() for path in lists.values()):
        return None
    names = {split: set(path.read_text().split()) for split, path in lists.items()}
    return {split: [pair for pair in pairs if pair[0].stem in chosen] for split, chosen in names.items()}


def _table_of_pairs(pairs: list[tuple[Path, Path]], target: str) -> Dataset:
    from datasets import Dataset, Features, Image, Value

    target_feature = Image() if target == "mask" else Value("string")
    columns = {"image": [str(image) for image, _ in pairs], target: [str(path) for _, path in pairs]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), target: target_feature}))


def _find_coco_files(folder: Path) -> dict[str, Path]:
    found = {}
    for split, names in SPLIT_NAMES.items():
        candidates = [
            path
            for name in names
            for path in (
                *sorted((folder / "annotations").glob(f"instances_{name}*.json")),
                folder / name / "_annotations.coco.json",
            )
            if path.is_file()
        ]
        if candidates:
            found[split] = candidates[0]
    if TRAIN not in found and (folder / "annotations.json").is_file():
        found[TRAIN] = folder / "annotations.json"
    return found


def _parse_coco(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as json: {error}") from error
    parts = content if isinstance(content, dict) else {}
    missing = [part for part in COCO_FIELDS if not isinstance(parts.get(part), list)]
    if missing:
        raise ValueError(f"{path} is no COCO json for detection: it lacks lists of {', '.join(missing)}.")
    for part, fields in COCO_FIELDS.items():
        for index, entry in enumerate(parts[part]):
            _check_coco_fields(entry, fields, f"{path}: {part}[{index}]")
    return parts


def _check_coco_fields(entry: Any, fields: Mapping[str, tuple[type, ...]], where: str) -> None:
    values = entry if isinstance(entry, dict) else {}
    for name, types in fields.items():
        if not isinstance(values.get(name), types):
            wanted = " or ".join(kind.__name__ for kind in types)
            raise ValueError(f"{where} must have `{name}` of type {wanted}, got {values.get(name)!r:.60}.")


def _coco_table(path: Path, content: Mapping[str, Any], numbers: Mapping[int, int], with_masks: bool) -> Dataset:
    from datasets import Dataset, Features, Image, List, Value

    find_image = _coco_image_finder(path)
    features = {"bbox": List(List(Value("float32"))), "category": List(Value("int64"))}
    if with_masks:
        features["segmentation"] = List(Value("string"))
    objects: dict[int, dict[str, list]] = {image["id"]: {key: [] for key in features} for image in content["images"]}
    annotations = []
    for index, annotation in enumerate(content["annotations"]):
        if not annotation.get("iscrowd", 0):
            _check_coco_object(annotation, objects, numbers, f"{path}: annotations[{index}]", with_masks)
            annotations.append(annotation)
    whole = [annotation for annotation in annotations if 0 not in annotation["bbox"][2:]]
    if len(whole) < len(annotations):
        logger.warning("%s: left out %d boxes without an area", path, len(annotations) - len(whole))
    for annotation in whole:
        _add_coco_object(objects[annotation["image_id"]], annotation, numbers)
    rows = {
        "image": [str(find_image(image["file_name"])) for image in content["images"]],
        "objects": [objects[image["id"]] for image in content["images"]],
    }
    return Dataset.from_dict(rows, features=Features({"image": Image(), "objects": features}))


def _check_coco_object(
    annotation: Mapping[str, Any], images: Mapping[int, Any], numbers: Mapping[int, int], where: str, with_masks: bool
) -> None:
    image, category = annotation["image_id"], annotation["category_id"]
    if image not in images:
        raise ValueError(f"{where} names image {image}, which is not in `images`.")
    if category not in numbers:
        raise ValueError(
            f"{where} has the category {category}; the training set's `categories` have the ids "
            f"{', '.join(map(str, numbers))}."
        )
    if not _is_box(annotation["bbox"]):
        raise ValueError(
            f"{where} must have a `bbox` of x, y, width and height, the sides not negative, got {annotation['bbox']}."
        )
    if with_masks and not annotation.get("segmentation"):
        raise ValueError(f"{where} has no `segmentation`: without outlines choose the task object-detection.")


def _is_box(box: Sequence[Any]) -> bool:
    are_numbers = all(isinstance(number, (int, float)) and math.isfinite(number) for number in box)
    return len(box) == 4 and are_numbers and min(box[2:]) >= 0


def _add_coco_object(objects: dict[str, list], annotation: Mapping[str, Any], numbers: Mapping[int, int]) -> None:
    objects["bbox"].append(annotation["bbox"])
    objects["category"].append(numbers[annotation["category_id"]])
    if "segmentation" in objects:
        objects["segmentation"].append(json.dumps(annotation["segmentation"]))


def _coco_image_finder(path: Path) -> Callable[[str], Path]:
    split = path.stem.removeprefix("instances_")
    folders = (path.parent, path.parent / "images", path.parent.parent / split, path.parent.parent / "images" / split)

    def find(name: str) -> Path:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        raise ValueError(f"{path} names the image {name!r}, which is in none of {', '.join(map(str, folders))}.")

    return find
