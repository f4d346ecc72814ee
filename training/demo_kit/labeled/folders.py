"""The labeled images of the fine-tuning demo, written as the folders that `training.finetune` reads.

A draw is a number that decides which images are made: objects and photographs stay those of the demo, and what is in
the validation images never occurs in the training images.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import to_pil_image

from foundation.packages.fetching import fetch_package
from training.demo_kit.assets import load_demo_assets
from training.demo_kit.composites import Composite, detection_set
from training.demo_kit.evaluation_sets import segmentation_set
from training.demo_kit.packages import package_named


# Our choices: an object as large as the scene stands one meter away, so that all stand between 2 and 5 meters.
WHOLE_SCENE_METERS, BACKGROUND_METERS = 1.0, 8.0
NUM_SCENES, NUM_VALIDATION = 4000, 400  # training scenes, and validation images of every kind; our choice


def write_digits(folder: Path, size: int, draw: int) -> None:
    """Write UCI's handwritten digits into `train/DIGIT/` and `validation/DIGIT/`, dark on white and enlarged.

    Args:
        folder: Folder to write into.
        size: Side of the images in pixels; the digits themselves have 8.
        draw: Which block of consecutive digits is held out; those of 0 to 3 have none in common.
    """
    archive = fetch_package(package_named("scikit-learn")) / "sklearn/datasets/data/digits.csv.gz"
    rows = np.loadtxt(archive, delimiter=",", dtype=np.uint8)  # 64 gray levels of 0 to 16, and the digit
    rows = np.roll(rows, draw * NUM_VALIDATION, axis=0)
    for index, row in enumerate(rows):
        levels = 255 - row[:-1].reshape(8, 8) * np.uint8(15)
        split = "train" if index < len(rows) - NUM_VALIDATION else "validation"
        picture = Image.fromarray(levels).resize((size, size), Image.Resampling.BICUBIC)
        _save(picture, folder / split / str(row[-1]) / f"{index}.png")


def write_masks(folder: Path, size: int, draw: int) -> None:
    """Write the scenes of the segmentation probe into `train/` and `validation/`, each with `images/` and `masks/`.

    Args:
        folder: Folder to write into.
        size: Side of the images in pixels.
        draw: See `segmentation_set`.
    """
    scenes = segmentation_set(load_demo_assets(), size, NUM_SCENES, NUM_VALIDATION, draw)
    splits = {
        "train": (scenes.train_images, scenes.train_masks),
        "validation": (scenes.test_images, scenes.test_masks),
    }
    for split, (pictures, masks) in splits.items():
        for index, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            _save(to_pil_image(picture), folder / split / "images" / f"{index}.png")
            _save(Image.fromarray(mask.byte().numpy()), folder / split / "masks" / f"{index}.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in scenes.class_names))


def write_objects(folder: Path, size: int, draw: int, every: int = 1) -> None:
    """Write scenes with boxes and outlines as COCO json: `train/_annotations.coco.json`, the images beside it.

    Args:
        folder: Folder to write into.
        size: Side of the images in pixels.
        draw: See `detection_set`.
        every: See `detection_set`.
    """
    for split, scenes, names in _write_scenes(folder, size, draw, every=every):
        (split / "_annotations.coco.json").write_text(json.dumps(_coco(scenes, names)))


def write_subjects(folder: Path, size: int, draw: int) -> None:
    """Write the scenes with what each shows, none to several classes: `train/metadata.jsonl` beside the images.

    Args:
        folder: Folder to write into.
        size: Side of the images in pixels.
        draw: See `detection_set`.
    """
    for split, scenes, names in _write_scenes(folder, size, draw):
        lines = []
        for index, scene in enumerate(scenes):
            labels = [names[number] for number in sorted(set(scene.labels.tolist()))]
            lines.append(json.dumps({"file_name": f"{index}.png", "labels": labels}))
        (split / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def write_single_subjects(folder: Path, size: int, draw: int) -> None:
    """Write the scenes that show one class alone, once or several times: `train/CLASS/` and `validation/CLASS/`.

    Args:
        folder: Folder to write into.
        size: Side of the images in pixels.
        draw: See `detection_set`.
    """
    for split, scenes, names in _draw_scenes(size, draw):
        for index, scene in enumerate(scenes):
            shown = set(scene.labels.tolist())
            if len(shown) == 1:
                _save(to_pil_image(scene.image), folder / split / names[shown.pop()] / f"{index}.png")


def write_depths(folder: Path, size: int, draw: int) -> None:
    """Write scenes whose depth is made, since no package has a measured one: `train/`, with `images/` and `depth/`.

    An object's distance is told by its size alone, as if all were equally large; the photograph behind them is far.

    Args:
        folder: Folder to write into.
        size: Side of the images in pixels.
        draw: See `detection_set`.
    """
    for split, scenes, _ in _write_scenes(folder, size, draw, below="images"):
        (split / "depth").mkdir()
        for index, scene in enumerate(scenes):
            meters = np.full((size, size), BACKGROUND_METERS, np.float32)
            for mask, share in zip(scene.masks.numpy(), scene.shares.tolist(), strict=True):
                meters[mask] = WHOLE_SCENE_METERS / share
            np.save(split / "depth" / f"{index}.npy", meters)


def _write_scenes(
    folder: Path, size: int, draw: int, below: str = "", every: int = 1
) -> Iterator[tuple[Path, Sequence[Composite], Sequence[str]]]:
    """Write images by number; yield the folder of each split with its scenes and the names of the classes."""
    for split, scenes, names in _draw_scenes(size, draw, every):
        for index, scene in enumerate(scenes):
            _save(to_pil_image(scene.image), folder / split / below / f"{index}.png")
        yield folder / split, scenes, names


def _draw_scenes(size: int, draw: int, every: int = 1) -> Iterator[tuple[str, Sequence[Composite], Sequence[str]]]:
    """Yield each split with its scenes and the names of the classes."""
    drawn = detection_set(load_demo_assets(), size, NUM_SCENES, NUM_VALIDATION, draw, every)
    yield "train", drawn.train, drawn.class_names
    yield "validation", drawn.test, drawn.class_names


def _coco(scenes: Sequence[Composite], names: Sequence[str]) -> dict[str, Any]:
    annotations = [
        {"image_id": index, "category_id": label, "bbox": box, "segmentation": _run_lengths(mask)}
        for index, scene in enumerate(scenes)
        for box, label, mask in zip(
            box_convert(scene.boxes, "xyxy", "xywh").tolist(), scene.labels.tolist(), scene.masks, strict=True
        )
    ]
    return {
        "images": [{"id": index, "file_name": f"{index}.png"} for index in range(len(scenes))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations)],
    }


def _run_lengths(mask: Tensor) -> dict[str, Any]:
    """Return a mask `(height, width)` as COCO's run lengths, down the columns, beginning with the pixels outside."""
    pixels = mask.T.flatten()
    changes = (pixels.diff().nonzero().flatten() + 1).tolist()
    edges = [0, *([0] if pixels[0] else []), *changes, len(pixels)]
    return {"counts": [end - start for start, end in itertools.pairwise(edges)], "size": list(mask.shape)}


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
