"""Folders of images, each with a mask or depth map of the same name, as `datasets` tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_radio.core.errors import first_few
from modeling_radio.data.image_folder import MAX_NAMED, pillow_suffixes


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

SplitNames = Mapping[str, Sequence[str]]
"""Possible names of each of our splits in a source; the first that exists counts."""

TRAIN, VALIDATION = "train", "validation"
SPLIT_NAMES: SplitNames = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "val", "dev", "test"),
}

IMAGE_FOLDERS = ("images", "JPEGImages", "image")
MASK_FOLDERS = ("masks", "SegmentationClass", "annotations", "labels")
DEPTH_FOLDERS = ("depth", "depths", "depth_maps")
MASK_SUFFIXES = frozenset({".png"})
ARRAY_SUFFIX = ".npy"
DEPTH_SUFFIXES = frozenset({".png", ARRAY_SUFFIX})
CLASSES_FILE = "classes.txt"
VOC_LISTS = Path("ImageSets") / "Segmentation"
Tables = dict[str, "Dataset"]
"""Tables by split, at least "train"."""


def holds(folder: Path, names: Sequence[str], splits: SplitNames = SPLIT_NAMES) -> bool:
    """Return whether a folder, or its folder for training, has a sub-folder of one of these names."""
    root = _first_folder(folder, splits[TRAIN]) or folder
    return _first_folder(root, names) is not None


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Return the names of classes in the order of their ids, the lines of `classes.txt`; None without that file.

    Raises:
        ValueError: If it is no text.
    """
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    return tuple(line.strip() for line in _read_text(path).splitlines() if line.strip())


def read_names(path: Path) -> list[str]:
    """Return the first words of the lines of a list of images, such as those of VOC.

    Raises:
        ValueError: If it is no text, or a name leads out of a folder.
    """
    names = [line.split()[0] for line in _read_text(path).splitlines() if line.strip()]
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{path} must list plain names of files.")
    return names


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{path} must be a text in UTF-8: {error}.") from error


def read_mask_folder(folder: Path, names: SplitNames = SPLIT_NAMES) -> Tables:
    """Read images and masks with equal names, as in VOC; columns `image` and `mask`.

    Raises:
        ValueError: If the folders or some files are missing.
    """
    pairs = _pairs_by_split(folder, MASK_FOLDERS, MASK_SUFFIXES, names)
    return {split: table_of_pairs(rows, "mask") for split, rows in pairs.items()}


def read_depth_folder(folder: Path, names: SplitNames = SPLIT_NAMES) -> Tables:
    """Read images and depth maps with equal names, 16-bit PNG or `.npy`; columns `image` and `depth` (a path).

    Raises:
        ValueError: If the folders or some files are missing.
    """
    pairs = _pairs_by_split(folder, DEPTH_FOLDERS, DEPTH_SUFFIXES, names)
    return {split: table_of_pairs(rows, "depth") for split, rows in pairs.items()}


def _pairs_by_split(
    folder: Path, target_folders: Sequence[str], suffixes: frozenset[str], split_names: SplitNames
) -> dict[str, list[tuple[Path, Path]]]:
    roots = {split: _first_folder(folder, names) for split, names in split_names.items()}
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
    by_name = {path.stem: path for path in _files(images, pillow_suffixes() | {ARRAY_SUFFIX})}
    files = _files(targets, suffixes)
    pairs = [(by_name[path.stem], path) for path in files if path.stem in by_name]
    if not pairs:
        raise ValueError(f"No file of {targets} ({', '.join(sorted(suffixes))}) has the name of an image in {images}.")
    paired = {image.stem for image, _ in pairs}
    _say_left_out(images, targets, [name for name in by_name if name not in paired])
    _say_left_out(targets, images, [path.name for path in files if path.stem not in paired])
    return pairs


def _files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Return the files of a folder, without pipes and devices, whose reading may never end."""
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes and path.is_file()]


def _say_left_out(folder: Path, other: Path, names: list[str]) -> None:
    """Log how many files of a folder have no partner in another one."""
    if names:
        shown = first_few(names, MAX_NAMED)
        logger.warning("%s: left out %d files without one of that name in %s: %s", folder, len(names), other, shown)


def _split_by_voc_lists(folder: Path, pairs: list[tuple[Path, Path]]) -> dict[str, list[tuple[Path, Path]]] | None:
    lists = {split: folder / VOC_LISTS / name for split, name in ((TRAIN, "train.txt"), (VALIDATION, "val.txt"))}
    if not all(path.is_file() for path in lists.values()):
        return None
    return {split: _listed(path, pairs) for split, path in lists.items()}


def _listed(path: Path, pairs: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Return the pairs that a file lists by name."""
    names = set(read_names(path))
    chosen = [pair for pair in pairs if pair[0].stem in names]
    if not chosen:
        raise ValueError(f"{path} lists no image that has a mask.")
    if len(chosen) < len(names):
        logger.warning(
            "%s: left out %d of %d names, which have no image with a mask", path, len(names) - len(chosen), len(names)
        )
    return chosen


def table_of_pairs(pairs: Sequence[tuple[Path, Path]], target: str) -> Dataset:
    """Return a table of files: the column `image`, and the column `target`, images if it is "mask" or else paths."""
    from datasets import Dataset, Features, Image, Value

    target_feature = Image() if target == "mask" else Value("string")
    columns = {"image": [str(image) for image, _ in pairs], target: [str(path) for _, path in pairs]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), target: target_feature}))
