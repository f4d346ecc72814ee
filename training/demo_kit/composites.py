"""Scenes for object detection: real cut-outs pasted on photographs, so that boxes and masks are exact."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from training.data.decoding import to_tensor
from training.data.image_table import Split
from training.demo_kit.assets import DemoAssets
from training.demo_kit.drawing import MASK_THRESHOLD, PixelBank, evaluation_bank, random_crop, scale_cut_out


# Our choices: objects of a fifth to a half of the side, so that several fit and still show what they are.
NUM_TRAIN_SCENES = 400
NUM_TEST_SCENES = 100
MAX_OBJECTS = 4
OBJECT_MIN_SHARE, OBJECT_MAX_SHARE = 0.2, 0.5
MIN_VISIBLE_SHARE = 0.6  # our choice: an object that would hide more of another is left out
DETECTION_SEEDS: dict[Split, int] = {"train": 7, "held_out": 8}


@dataclass(frozen=True)
class Composite:
    """One scene; some have no object.

    Attributes:
        image: uint8 `(3, size, size)`, RGB.
        boxes: float32 `(num_objects, 4)`: left, top, right, bottom in pixels, tight around what is visible.
        labels: int64 `(num_objects,)`, indices into the set's class names.
        masks: bool `(num_objects, size, size)`, what is visible of each object.
        shares: float32 `(num_objects,)`, the longer side of each object, hidden parts included, over the scene's.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor
    shares: Tensor


@dataclass(frozen=True)
class DetectionSet:
    """Scenes for training and testing; the test's objects and photographs are held out.

    Attributes:
        train: Training scenes.
        test: Test scenes.
        class_names: Names of the classes, in label order.
    """

    train: tuple[Composite, ...]
    test: tuple[Composite, ...]
    class_names: tuple[str, ...]


def detection_set(
    assets: DemoAssets,
    size: int,
    num_train: int = NUM_TRAIN_SCENES,
    num_test: int = NUM_TEST_SCENES,
    draw: int = 0,
    every: int = 1,
) -> DetectionSet:
    """Return scenes with the assets' segmentation classes as objects; always the same ones.

    Args:
        assets: What the scenes are made of.
        size: Side of the square scenes, pixels.
        num_train: Number of training scenes.
        num_test: Number of test scenes.
        draw: Each number gives other scenes of the same objects and photographs.
        every: Training scenes show every object (1), every second one (2), and so on.

    Raises:
        ValueError: If the size or a number is not positive.
    """
    if min(size, num_train, num_test, every) < 1:
        numbers = f"{size}, {num_train}, {num_test} and {every}"
        raise ValueError(f"`size`, `num_train`, `num_test` and `every` must be positive, got {numbers}.")
    return DetectionSet(
        train=_scenes(assets, "train", size, num_train, draw, every),
        test=_scenes(assets, "held_out", size, num_test, draw),
        class_names=assets.segmentation_classes,
    )


def compose_objects(bank: PixelBank, size: int, max_objects: int, random: np.random.Generator) -> Composite:
    """Paste up to `max_objects` cut-outs on a crop of a photograph."""
    scene = random_crop(bank.photographs[random.integers(len(bank.photographs))], size, random)
    owners = np.full((size, size), -1)  # which object each pixel shows
    areas: list[int] = []  # of each object before others hide parts of it
    labels: list[int] = []
    shares: list[float] = []
    for _ in range(random.integers(0, max_objects + 1)):
        index = random.integers(len(bank.objects))
        cut_out, corner = _place(bank.objects[index], size, random)
        opaque = _opaque_pixels(cut_out, corner, size)
        if not opaque.any() or _hides_too_much(opaque, owners, areas):
            continue
        scene.paste(cut_out, corner, cut_out)
        owners[opaque] = len(labels)
        areas.append(int(opaque.sum()))
        labels.append(bank.labels[index])
        shares.append(max(cut_out.size) / size)
    masks = torch.from_numpy(owners) == torch.arange(len(labels)).view(-1, 1, 1)
    boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])  # from the last pixel to its far edge
    numbers = torch.tensor(labels, dtype=torch.long)
    return Composite(to_tensor(scene), boxes, numbers, masks, torch.tensor(shares, dtype=torch.float32))


def _place(cut_out: Image.Image, size: int, random: np.random.Generator) -> tuple[Image.Image, tuple[int, int]]:
    """Return the cut-out at a random scale, half of them mirrored, and its left top corner."""
    share, x, y, mirror = random.random(4)
    scaled = scale_cut_out(cut_out, size * (OBJECT_MIN_SHARE + (OBJECT_MAX_SHARE - OBJECT_MIN_SHARE) * share))
    scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else scaled
    return scaled, (round(x * (size - scaled.width)), round(y * (size - scaled.height)))


def _opaque_pixels(cut_out: Image.Image, corner: tuple[int, int], size: int) -> np.ndarray:
    left, top = corner
    opaque = np.zeros((size, size), bool)
    alpha = np.asarray(cut_out.getchannel("A"))
    opaque[top : top + cut_out.height, left : left + cut_out.width] = alpha > MASK_THRESHOLD
    return opaque


def _hides_too_much(opaque: np.ndarray, owners: np.ndarray, areas: list[int]) -> bool:
    visible = [np.sum((owners == number) & ~opaque) for number in range(len(areas))]
    return any(left < MIN_VISIBLE_SHARE * area for left, area in zip(visible, areas, strict=True))


def _scenes(
    assets: DemoAssets, split: Split, size: int, num_scenes: int, draw: int, every: int = 1
) -> tuple[Composite, ...]:
    bank = evaluation_bank(assets, split, assets.segmentation_classes)
    bank = replace(bank, objects=bank.objects[::every], labels=bank.labels[::every])
    seeds = ([DETECTION_SEEDS[split], index, draw] for index in range(num_scenes))
    return tuple(compose_objects(bank, size, MAX_OBJECTS, np.random.default_rng(seed)) for seed in seeds)
