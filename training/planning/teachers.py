"""What a pass of a teacher costs: counted on the meta device, or known beforehand of those in packages."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.demo_kit.packages import PACKAGES
from training.recipe import TeacherRecipe
from training.teachers.base import Teacher
from training.teachers.registry import PACKAGE_OF_KIND, share_network, teacher_of_recipe


class PackagedCost(NamedTuple):
    """A teacher whose weights, and perhaps architecture, come in a package.

    Attributes:
        summary_dim: Width of its summary.
        feature_dim: Width of its features.
        cell_px: Pixels along a side that make one of its cells.
        num_parameters: All of its numbers.
        flops_per_cell: Operations of a pass for each cell of its input.
        flops_per_pair: Operations of attention for each pair of cells; 0 without attention.
    """

    summary_dim: int
    feature_dim: int
    cell_px: int
    num_parameters: int
    flops_per_cell: float
    flops_per_pair: float


PACKAGED = {
    "efficientnet-lite0": PackagedCost(1280, 112, 16, 4_694_079, 3.917e6, 0),
    "dinov2-s-saliency": PackagedCost(384, 384, 14, 20_281_350, 39.99e6, 11 * 4 * 384),
    "nanodet-g": PackagedCost(384, 128, 16, 3_295_823, 4.469e6, 0),
}
"""By kind. Counted with `FlopCounterMode` on the real networks, to which a test compares them; of DINOv2-S the 11
blocks that its answer needs, with attention as 4 operations for each pair of cells and channel."""


class TeacherCost:
    """A teacher of a recipe without its weights: its widths, its size, and what it takes to answer.

    Args:
        entry: The teacher, of a kind with the option `weights` or one of `PACKAGED`.
        stride: Pixels that make one cell to whoever asks: the student's patch size.
        others: Whose networks it may share.

    Attributes:
        summary_dim: Width of its summary; None without one.
        feature_dim: Width of its features.
        network_of: Name of the teacher whose network it runs, by default its own.
        num_parameters: Numbers of the network that runs, of a shared one those that no other has.
        weight_bytes: Memory that they take.
        download_bytes: What is fetched: of a package its size, else these numbers in float32.

    Raises:
        ValueError: If it cannot be built without its weights.
    """

    def __init__(self, entry: TeacherRecipe, stride: int, others: Iterable[TeacherCost] = ()) -> None:
        self.entry, self.stride, self.network_of = entry, stride, entry.name
        packaged = PACKAGED.get(entry.kind)
        self._packaged = packaged
        self._teacher: Teacher | None = None
        if packaged is not None:
            self.summary_dim: int | None = packaged.summary_dim
            self.feature_dim = packaged.feature_dim
            self.num_parameters = packaged.num_parameters
            self.weight_bytes = 4 * packaged.num_parameters
            self.download_bytes = PACKAGES[PACKAGE_OF_KIND[entry.kind]].archive_bytes
        else:
            self._teacher = teacher = _build(entry, stride)
            self.summary_dim, self.feature_dim = teacher.summary_dim, teacher.feature_dim
            built = [(other._teacher, other.entry) for other in others if other._teacher is not None]
            share_network(teacher, entry, built)
            self.network_of = teacher.network_of
            shared = {weight for other, _ in built for weight in other.parameters()}
            self.num_parameters = sum(weight.numel() for weight in set(teacher.parameters()) - shared)
            is_half = entry.options.get("weights_dtype") == "bfloat16"
            self.weight_bytes = (2 if is_half else 4) * self.num_parameters
            self.download_bytes = 4 * self.num_parameters
        self.flops = cache(self._flops)

    def _flops(self, size_px: int, num_images: int, num_readers: int = 1) -> float:
        """Return the operations of a forward pass of images of `size_px` squared.

        As if so many teachers read it: two cost as much more than one as what is read from a pass of another teacher.
        """
        if self._packaged is not None:
            cells = (size_px // self.stride) ** 2  # it answers one cell for each, run at as many of its own
            return num_images * cells * (self._packaged.flops_per_cell + cells * self._packaged.flops_per_pair)
        assert self._teacher is not None
        with FlopCounterMode(display=False) as counter:
            images = torch.empty(num_images, 3, size_px, size_px, device="meta")
            self._teacher.answers(images, [self._teacher] * num_readers)
        return counter.get_total_flops()


def _build(entry: TeacherRecipe, stride: int) -> Teacher:
    options = {key: value for key, value in entry.options.items() if key != "weights_dtype"}
    bare = entry.replace(precision="float32", options={**options, "weights": "random"})
    try:
        with torch.device("meta"):
            return teacher_of_recipe(bare, stride)
    except ValueError as error:
        raise ValueError(f"Without its weights a teacher cannot be planned with: {error}") from error
