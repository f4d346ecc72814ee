"""Pascal VOC's boxes: one xml for each image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from foundation.errors import first_few
from training.data.image_folder import pillow_suffixes
from training.data.labeled.layouts import MAX_NAMED, SPLIT_NAMES, TRAIN, VALIDATION, Tables
from training.data.labeled.objects import Box, ImageObjects, object_tables, read_number


logger = logging.getLogger(__name__)

ANNOTATIONS, IMAGES = "Annotations", "JPEGImages"
LISTS = {TRAIN: "train.txt", VALIDATION: "val.txt"}
LARGEST_BYTES = 10_000_000  # our choice: an annotation has kilobytes, and a parser's memory is a multiple of the file


def holds_voc(folder: Path) -> bool:
    """Return whether a folder, or that of its training split, has annotations of VOC."""
    return folder.is_dir() and any(_files(root) for root in _roots(folder).values())


def read_voc(folder: Path, classes: tuple[str, ...] | None = None) -> tuple[Tables, tuple[str, ...]]:
    """Read `Annotations/*.xml` with `JPEGImages/` and the lists of `ImageSets/Main`, or each xml beside its image.

    Folders such as `train/` and `valid/` may stand above. Objects that VOC calls difficult are left out, as its
    metric does, and counted in the log. VOC counts pixels from 1, and a box holds its last pixel.

    Args:
        folder: The data set.
        classes: The classes' names in the order of their ids; `None` for all that occur, sorted.

    Raises:
        ValueError: If an xml cannot be read or has no image, or `classes` lacks a name, or a list has no image.

    References:
        The PASCAL Visual Object Classes Challenge 2012 development kit, sections 4 and 8.
    """
    splits: dict[str, list[ImageObjects]] = {}
    num_difficult = 0
    for split, root in _roots(folder).items():
        splits[split] = []
        for path in _files(root):
            image, skipped = _read(path)
            splits[split].append(image)
            num_difficult += skipped
    if num_difficult:
        logger.warning("%s: left out %d objects that are called difficult", folder, num_difficult)
    return object_tables(_by_lists(folder, splits), classes)


def _roots(folder: Path) -> dict[str, Path]:
    found = {
        split: next((folder / name for name in names if _files(folder / name)), None)
        for split, names in SPLIT_NAMES.items()
    }
    return {split: root for split, root in found.items() if root is not None} if found[TRAIN] else {TRAIN: folder}


def _files(root: Path) -> list[Path]:
    inner = root / ANNOTATIONS
    return sorted((inner if inner.is_dir() else root).glob("*.xml"))


def _by_lists(folder: Path, splits: dict[str, list[ImageObjects]]) -> dict[str, list[ImageObjects]]:
    lists = {split: folder / "ImageSets" / "Main" / name for split, name in LISTS.items()}
    if len(splits) > 1 or not all(path.is_file() for path in lists.values()):
        return splits
    by_name = {image.image.stem: image for image in splits[TRAIN]}
    return {split: _listed(path, by_name) for split, path in lists.items()}


def _listed(path: Path, images: Mapping[str, ImageObjects]) -> list[ImageObjects]:
    """Return the images that a file lists, one a line, with or without the suffix of the file."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = [Path(line).stem if Path(line).suffix.lower() in pillow_suffixes() else line for line in lines]
    missing = [name for name in names if name not in images]
    if missing:
        shown = first_few(missing, MAX_NAMED)
        logger.warning("%s: left out %d of %d names, which have no xml: %s", path, len(missing), len(names), shown)
    if len(missing) == len(names):
        raise ValueError(f"{path} lists no image that has an xml in {ANNOTATIONS}: write a name a line.")
    return [images[name] for name in names if name in images]


def _read(path: Path) -> tuple[ImageObjects, int]:
    """Return the objects of an image, and how many difficult ones were left out."""
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"{path} has more than {LARGEST_BYTES:,} bytes, which no annotation of an image has.")
    text = path.read_bytes()
    if b"<!ENTITY" in text:
        raise ValueError(f"{path} declares entities, which no annotation needs and which can fill the memory.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} cannot be read as xml: {error}.") from error
    image, num_difficult = ImageObjects(_image_of(path, root.findtext("filename") or "")), 0
    for index, entry in enumerate(root.iter("object")):
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{path}: object {index} has no name.")
        if (entry.findtext("difficult") or "0").strip() == "1":
            num_difficult += 1
            continue
        image.add(_box(entry, f"{path}: object {index}"), name)
    return image, num_difficult


def _image_of(path: Path, named: str) -> Path:
    folder = path.parent.parent / IMAGES if path.parent.name == ANNOTATIONS else path.parent
    candidates = [folder / Path(named).name] if named else []
    candidates += [folder / f"{path.stem}{suffix}" for suffix in sorted(pillow_suffixes())]
    found = next((each for each in candidates if each.is_file()), None)
    if found is None:
        raise ValueError(f"{path} is about {named or path.stem!r}, which is not in {folder}.")
    return found


def _box(entry: ElementTree.Element, where: str) -> Box:
    names = ("xmin", "ymin", "xmax", "ymax")
    left, top, right, bottom = (read_number(entry.findtext(f"bndbox/{name}"), f"{where}: `{name}`") for name in names)
    left, top = max(left - 1, 0.0), max(top - 1, 0.0)  # programs that count from 0 write 0
    return left, top, right - left, bottom - top
