"""What a data set offers to evaluations: images by number, what is known of each, and its two splits."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from foundation.checkpoints import plain_parts
from foundation.settings import hash_of
from model_cards.results import Source
from modeling_radio.checks_radio import check_choice


Item = TypeVar("Item", covariant=True)

Kind = Literal["images", "photographs", "labels", "masks", "depth", "captions"]
"""What a task needs to know of images: nothing ("images" are like those of the training, "photographs" large enough to
be looked at in several sizes), their class, the class of each pixel, their depth, or texts that describe them."""

KINDS: tuple[Kind, ...] = ("images", "photographs", "labels", "masks", "depth", "captions")


class ByNumber(Protocol[Item]):
    """Things by number, made or decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class Pictures(ByNumber[Tensor], Protocol):
    """Images by number, uint8 `(3, height, width)`, whose sizes are known without decoding them."""

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of an image."""
        ...


@dataclass(frozen=True)
class Examples:
    """Images of one split, and what is known of each.

    Attributes:
        images: Decoded, upright RGB, uint8 `(3, height, width)`, of any size.
        fingerprint: Changes when the images, their order or their targets do.
        labels: Class indices, int64 `(num_images,)`.
        masks: Class of each pixel, int64 `(height, width)` as the image; 255 does not count.
        depth: Meters, float32 `(height, width)` as the image; 0 where it is not known.
        captions: One or more texts for each image.
        groups: Which images are of one source, such as frames of one video or objects of one scene: int64
            `(num_images,)`. Intervals resample whole groups, and images that are compared with each other are not with
            those of their own. None: each image is a source of its own.
        pictures: Changes when the images or their order do, whatever is known of them, so that labels and captions of
            the same images share their features; None where `fingerprint` says all.
    """

    images: Pictures
    fingerprint: str
    labels: Tensor | None = None
    masks: ByNumber[Tensor] | None = None
    depth: ByNumber[Tensor] | None = None
    captions: Sequence[Sequence[str]] | None = None
    groups: Tensor | None = None
    pictures: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def picture_fingerprint(self) -> str:
        """Of the images alone."""
        return self.pictures or self.fingerprint

    def known(self) -> frozenset[Kind]:
        """Return the kinds of tasks that can be measured on these images."""
        targets = {"labels": self.labels, "masks": self.masks, "depth": self.depth, "captions": self.captions}
        return frozenset(["images", "photographs", *(kind for kind, values in targets.items() if values is not None)])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Part:
    """The images that tasks of one kind are measured on.

    Attributes:
        name: As measurements call it.
        test: What is measured.
        train: What a probe learns from, or what queries are compared with; None: the test images themselves, each
            measured without those of its source (leave-one-out) or by folds.
        class_names: In the order of their indices; empty without classes.
    """

    name: str
    test: Examples
    train: Examples | None = None
    class_names: tuple[str, ...] = ()

    @property
    def gallery(self) -> Examples:
        """What queries are compared with."""
        return self.test if self.train is None else self.train

    @property
    def fingerprint(self) -> str:
        """A hash of both splits and the classes' names."""
        train = None if self.train is None else self.train.fingerprint
        return hash_of({"test": self.test.fingerprint, "train": train, "classes": list(self.class_names)})[:16]


@runtime_checkable
class EvaluationData(Protocol):
    """A data set that can be measured on; tasks ask for the part that they need."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    def kinds(self) -> frozenset[Kind]:
        """Return which parts there are."""
        ...

    def part(self, kind: Kind) -> Part:
        """Return the images for tasks of one kind.

        Raises:
            ValueError: If there are none; the message says what there is.
        """
        ...

    def sources(self) -> list[Source]:
        """Return where the images come from, for cards."""
        ...

    def remarks(self, neighbors: int) -> list[str]:
        """Return sentences that belong beside the numbers.

        Args:
            neighbors: That vote in kNN, as the settings of the tasks say.
        """
        ...


def check_kind(data: str, kind: Kind, kinds: frozenset[Kind]) -> None:
    """Refuse a kind that a data set does not have."""
    check_choice("kind", kind, KINDS)
    if kind not in kinds:
        has = ", ".join(known for known in KINDS if known in kinds)
        raise ValueError(f"`data` {data!r} must have {kind} for these tasks, got {has} only. Choose other `tasks`.")


class Stacked:
    """Images that are one tensor, uint8 `(num_images, 3, height, width)`, or masks `(num_images, height, width)`."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> Tensor:
        return self.tensor[index]

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of an image."""
        height, width = self.tensor.shape[-2:]
        return height, width


def tensor_fingerprint(*tensors: Tensor) -> str:
    """Return a hash of the shapes, types and bytes of tensors."""
    content = hashlib.blake2b(digest_size=8)
    for tensor in itertools.chain.from_iterable(map(plain_parts, tensors)):
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def groups_of(names: Sequence[str]) -> Tensor:
    """Return a number for each name, the same for equal ones, int64 `(num_names,)`."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])
