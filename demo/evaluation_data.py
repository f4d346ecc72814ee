"""The demo's own images as evaluation data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from modeling_radio.core.opening import tensor_fingerprint
from modeling_radio.core.settings import hash_of
from modeling_radio.data.decoding import to_tensor
from modeling_radio.data.training_images import build_images, render
from modeling_radio.demo.assets import DemoAssets, Photograph, data_sources, load_demo_assets
from modeling_radio.demo.images import (
    ClassificationSet,
    SegmentationSet,
    classification_set,
    photographs,
    segmentation_set,
)
from modeling_radio.evaluation.data import Examples, Kind, Part, Stacked, check_kind
from modeling_radio.metrics.results import Source


NUM_UNLABELED = 256
"""Our choice of held-out images for tasks without labels, such as fidelity to teachers."""


@dataclass(frozen=True)
class DemoData:
    """The held-out images of one data source at one size.

    Attributes:
        source: As in the recipe's `data.source`.
        assets: Cut-outs and photographs of the images.
        classification: Objects of known classes.
        segmentation: Scenes with masks.
        unlabeled: Images like those of the training, uint8 `(num_images, 3, size, size)`.
    """

    source: str
    assets: DemoAssets
    classification: ClassificationSet
    segmentation: SegmentationSet
    unlabeled: Tensor

    @classmethod
    def load(cls, source: str, size: int) -> DemoData:
        """Fetch and render the images of a source at `size` x `size` pixels.

        Raises:
            ValueError: If the source has no labeled images.
            PackageError: If packages cannot be fetched.
        """
        assets = load_demo_assets(source)
        unlabeled = build_images(source, size=size, num_images=NUM_UNLABELED, split="held_out")
        return cls(
            source,
            assets,
            classification_set(assets, size),
            segmentation_set(assets, size),
            render(unlabeled, range(NUM_UNLABELED), num_workers=0, show_progress=False),
        )

    @property
    def name(self) -> str:
        """The source."""
        return self.source

    def kinds(self) -> frozenset[Kind]:
        """Return the kinds of parts; photographs only if some are held out."""
        shown: list[Kind] = ["photographs"] if photographs(self.assets) else []
        return frozenset(["images", "labels", "masks", *shown])

    def part(self, kind: Kind) -> Part:
        """Return the images for tasks of one kind.

        Raises:
            ValueError: If there are no such images.
        """
        check_kind(self.source, kind, self.kinds())
        if kind == "labels":
            objects = self.classification
            return Part(
                f"{self.source} objects",
                _examples(objects.query_images, labels=objects.query_labels),
                _examples(objects.gallery_images, labels=objects.gallery_labels),
                objects.class_names,
            )
        if kind == "masks":
            scenes = self.segmentation
            return Part(
                f"{self.source} scenes",
                _examples(scenes.test_images, masks=scenes.test_masks),
                _examples(scenes.train_images, masks=scenes.train_masks),
                scenes.class_names,
            )
        if kind == "photographs":
            chosen = photographs(self.assets)
            names = [photograph.name for photograph in chosen]
            return Part(f"{self.source} photographs", Examples(Squares(chosen), hash_of({"paths": names})))
        return Part(f"{self.source} images", _examples(self.unlabeled))

    def sources(self, *, is_trained_on: bool = False) -> list[Source]:
        """Return the packages of the images; see `data_sources`."""
        return data_sources(self.assets, "training and evaluation" if is_trained_on else "evaluation")

    def remarks(self, neighbors: int) -> list[str]:
        """Describe the test sets and the precision of their numbers; see `EvaluationData.remarks`."""
        classes, scenes = self.classification, self.segmentation
        num_queries, num_stored = len(classes.query_labels), len(classes.gallery_labels)
        majority = classes.query_labels.bincount().max().item() / num_queries
        error = math.sqrt(0.25 / num_queries)
        return [
            f"kNN, k = {min(neighbors, num_stored)}: {num_queries} held-out objects of {len(classes.class_names)} "
            f"classes, {num_stored} training objects. Always answering the most frequent class scores {majority:.3f}; "
            f"the standard error of an accuracy of one half is {error:.3f}.",
            f"Segmentation probe: {len(scenes.train_images)} training and {len(scenes.test_images)} test "
            f"scenes of {len(scenes.class_names)} classes with the background, composed of objects on "
            "photographs; those of the test scenes are held out.",
            f"Adaptor fidelity: mean cosine with the teacher on {len(self.unlabeled)} held-out images; "
            "centered: about the teacher's mean, where a constant prediction scores zero.",
        ]


def open_demo(size_px: int) -> DemoData:
    """Return the set `demo` of `NAMED_SETS`."""
    return DemoData.load("demo", size_px)


class Squares:
    """The middle squares of photographs, at their full size."""

    def __init__(self, chosen: Sequence[Photograph]) -> None:
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.chosen[index].path) as file:
            side = min(file.size)
            return to_tensor(ImageOps.fit(file.convert("RGB"), (side, side)))

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels."""
        with Image.open(self.chosen[index].path) as file:
            return (min(file.size), min(file.size))


def _examples(images: Tensor, *, labels: Tensor | None = None, masks: Tensor | None = None) -> Examples:
    known = [tensor for tensor in (labels, masks) if tensor is not None]
    return Examples(
        Stacked(images),
        tensor_fingerprint(images, *known),
        labels=labels,
        masks=None if masks is None else Stacked(masks),
    )


def load_photographs(chosen: Sequence[Photograph], size: int) -> Tensor:
    """Return the middle squares of photographs, uint8 RGB, `(num_photographs, 3, size, size)`.

    Raises:
        ValueError: If there are no photographs.
    """
    if not chosen:
        raise ValueError("The data source has no held-out photographs, which `resolution_consistency` needs.")
    squares = []
    for photograph in chosen:
        with Image.open(photograph.path) as file:
            square = ImageOps.fit(file.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
        squares.append(torch.from_numpy(np.array(square)).movedim(-1, 0))
    return torch.stack(squares)
