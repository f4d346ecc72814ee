"""Boxes from whatever files say where they are: COCO json, VOC xml, YOLO txt or CSV, found by what lies there."""

from __future__ import annotations

from pathlib import Path

from training.data.labeled.coco import holds_coco, read_coco
from training.data.labeled.csv_labels import find_csv, read_csv_boxes
from training.data.labeled.layouts import Tables
from training.data.labeled.voc import holds_voc, read_voc
from training.data.labeled.yolo import find_yolo, read_yolo


LAYOUTS = (
    "COCO json (annotations/instances_train*.json, train/_annotations.coco.json or annotations.json), VOC xml "
    "(Annotations/ with JPEGImages/, or beside the images), YOLO txt (data.yaml, or labels/ with images/), or CSV "
    "(train.csv, or _annotations.csv beside the images)"
)


def read_boxes(
    source: Path, *, with_masks: bool, classes: tuple[str, ...] | None = None
) -> tuple[Tables, tuple[str, ...]]:
    """Read images with objects; columns `image` and `objects` with `bbox` (left, top, width, height) and `category`.

    Args:
        source: A folder, or one file of labels.
        with_masks: Whether objects also have a `segmentation`, as `read_coco` gives it; YOLO's polygons have one, too.
        classes: The classes' names in the order of their ids, where labels are names (VOC and CSV); `None` for all that
            occur, sorted.

    Returns:
        The tables by split, and the names of the classes in the order of their ids.

    Raises:
        ValueError: If no labels are found, or one of them cannot be right; the message names it.
    """
    if source.suffix == ".json" or (source.is_dir() and holds_coco(source)):
        return read_coco(source, with_masks=with_masks)
    if yolo := find_yolo(source):
        return read_yolo(yolo, with_masks=with_masks)
    if with_masks and (find_csv(source) or holds_voc(source)):
        raise ValueError(
            f"{source} has boxes without outlines: choose the task object-detection, or give COCO json or YOLO's "
            "polygons."
        )
    if files := find_csv(source):
        return read_csv_boxes(files, classes)
    if holds_voc(source):
        return read_voc(source, classes)
    if source.is_dir() and any(source.rglob("*.json")):
        return read_coco(source, with_masks=with_masks)  # which says what is wrong with it
    raise ValueError(f"{source} has no labels of objects: give {LAYOUTS}.")
