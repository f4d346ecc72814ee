"""Labeled images for evaluation: classes of objects, scenes with exact masks, photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.data.decoding import to_tensor
from training.data.image_table import Split
from training.demo_kit.assets import CutOut, DemoAssets, Photograph
from training.demo_kit.drawing import PixelBank, compose_scene, evaluation_bank, load_object_pictures


# Our choices, as in the study that the project's first numbers come from.
EVALUATION_GROUND = (124, 116, 104)  # ImageNet's mean color
EVALUATION_MARGIN = 0.08
NUM_SEGMENTATION_TRAIN = 200
NUM_SEGMENTATION_TEST = 150
MAX_OBJECTS_IN_EVALUATION_SCENE = 3
SEGMENTATION_SEEDS: dict[Split, int] = {"train": 5, "held_out": 6}


@dataclass(frozen=True)
class ClassificationSet:
    """Objects alone on a plain ground; the queries are held-out objects.

    Attributes:
        gallery_images: uint8 `(num_gallery, 3, size, size)`, RGB.
        gallery_labels: int64 `(num_gallery,)`, indices into `class_names`.
        query_images: uint8 `(num_queries, 3, size, size)`, RGB.
        query_labels: int64 `(num_queries,)`.
        class_names: Names of the classes.
    """

    gallery_images: Tensor
    gallery_labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class SegmentationSet:
    """Objects pasted on photographs, with exact masks; what the test scenes are made of is held out.

    Attributes:
        train_images: uint8 `(num_train, 3, size, size)`, RGB.
        train_masks: int64 `(num_train, size, size)`, indices into `class_names`.
        test_images: uint8 `(num_test, 3, size, size)`, RGB.
        test_masks: int64 `(num_test, size, size)`.
        class_names: "background" first.
    """

    train_images: Tensor
    train_masks: Tensor
    test_images: Tensor
    test_masks: Tensor
    class_names: tuple[str, ...]


def classification_set(assets: DemoAssets, size: int) -> ClassificationSet:
    """Return the gallery (training objects) and the queries (held-out objects) of the kNN evaluation."""
    gallery, queries = assets.evaluation_objects("train"), assets.evaluation_objects("held_out")
    return ClassificationSet(
        gallery_images=load_object_pictures(gallery, size, EVALUATION_MARGIN, EVALUATION_GROUND),
        gallery_labels=_labels(gallery, assets.classes),
        query_images=load_object_pictures(queries, size, EVALUATION_MARGIN, EVALUATION_GROUND),
        query_labels=_labels(queries, assets.classes),
        class_names=assets.classes,
    )


def segmentation_set(
    assets: DemoAssets,
    size: int,
    num_train: int = NUM_SEGMENTATION_TRAIN,
    num_test: int = NUM_SEGMENTATION_TEST,
) -> SegmentationSet:
    """Return scenes for a segmentation probe; always the same ones, at any size the same scenes.

    Args:
        assets: What the scenes are made of.
        size: Side of the square scenes, pixels.
        num_train: Number of training scenes.
        num_test: Number of test scenes.
    """
    classes = assets.segmentation_classes
    train_images, train_masks = _scenes(assets, "train", num_train, size)
    test_images, test_masks = _scenes(assets, "held_out", num_test, size)
    return SegmentationSet(train_images, train_masks, test_images, test_masks, ("background", *classes))


def photographs(assets: DemoAssets, split: Split = "held_out", license: str | None = None) -> list[Photograph]:
    """Return the photographs of one split, by name.

    Args:
        assets: The demo's assets.
        split: "train" or "held_out".
        license: Exact license to keep, e.g. "CC0-1.0" for pictures that we publish; None keeps all.
    """
    chosen = [photo for photo in assets.photographs if photo.split == split and license in (None, photo.license)]
    return sorted(chosen, key=lambda photo: photo.name)


def _labels(objects: Sequence[CutOut], classes: Sequence[str]) -> Tensor:
    return torch.tensor([classes.index(str(cut_out.label)) for cut_out in objects])


def _scenes(assets: DemoAssets, split: Split, num_scenes: int, size: int) -> tuple[Tensor, Tensor]:
    bank: PixelBank = evaluation_bank(assets, split, assets.segmentation_classes)
    images, masks = [], []
    for index in range(num_scenes):
        random = np.random.default_rng([SEGMENTATION_SEEDS[split], index, 0])
        scene, mask = compose_scene(bank, size, MAX_OBJECTS_IN_EVALUATION_SCENE, random)
        images.append(to_tensor(scene))
        masks.append(torch.from_numpy(mask).long())
    return torch.stack(images), torch.stack(masks)
