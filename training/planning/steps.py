"""What a step of each partition costs, and the same recipe with one thing changed."""

import math
from collections.abc import Callable
from typing import NamedTuple

from training.planning.networks import FULL_BYTES, Networks
from training.recipe import PartitionRecipe, Recipe
from training.student.build import student_patch_size
from training.student.taps import Tap
from training.views.batches import divide_ranks


class PartitionCost(NamedTuple):
    """What a step of a partition costs on all ranks together, averaged over its resolutions.

    Attributes:
        partition: Which partition.
        images: Of a step; with a token budget their mean number.
        images_per_pass: Images that a rank has on its GPU at once, rounded up.
        student_flops: Of forward and backward passes.
        teacher_flops: Of forward passes, by teacher.
        activations: Bytes that a rank keeps at the largest resolution, without and with gradient checkpointing.
        targets: Bytes of the teachers' features of a pass at that resolution, with online teachers of all passes that
            are answered at once.
    """

    partition: PartitionRecipe
    images: float
    images_per_pass: int
    student_flops: float
    teacher_flops: dict[str, float]
    activations: tuple[float, float]
    targets: float

    @property
    def flops(self) -> float:
        """FLOPs of student and teachers together."""
        return self.student_flops + sum(self.teacher_flops.values())


def plan_stage(networks: Networks, stage: Recipe, num_gpus: int) -> list[PartitionCost]:
    """Return what a step of each partition costs.

    Raises:
        RecipeError: If the recipe does not fit this number of ranks.
    """
    ranks, taps = divide_ranks(stage.partitions, num_gpus), networks.taps_of(stage)
    return [_partition_cost(networks, stage, each, taps, len(ranks[each.name])) for each in stage.partitions]


def _partition_cost(
    networks: Networks, stage: Recipe, partition: PartitionRecipe, taps: tuple[Tap, ...], num_ranks: int
) -> PartitionCost:
    num_passes, patch_size = num_ranks * partition.accumulation_steps, networks.student.patch_size
    shares = shares_of(partition)
    num_images = images_per_step(partition, patch_size)
    images_per_pass = math.ceil(num_images / num_passes)
    names = list(networks.teachers) if partition.teachers is None else partition.teachers
    of_sizes = {size: networks.teacher_flops(names, size, images_per_pass) for size in shares}
    per_image = {
        name: sum(share * of_sizes[size][name] for size, share in shares.items()) / images_per_pass for name in names
    }
    largest, cells = networks.student_cost(max(shares), taps), (max(shares) // patch_size) ** 2
    most: float = images_per_pass  # images of the largest size that a pass has as many patches as
    if partition.token_budget is not None:
        most = max(1, partition.token_budget / num_passes / cells)
    parts = min(stage.views.parts_at_once, partition.accumulation_steps) if stage.views.teachers == "online" else 1
    width = sum(networks.teachers[name].feature_dim for name in names)
    return PartitionCost(
        partition,
        num_images,
        images_per_pass,
        num_images * sum(share * networks.student_cost(size, taps).flops for size, share in shares.items()),
        {name: num_images * flops for name, flops in per_image.items()},
        (most * largest.kept, most * largest.kept_checkpointed),
        FULL_BYTES * parts * most * cells * width,
    )


def shares_of(partition: PartitionRecipe) -> dict[int, float]:
    """Return the probability of each resolution."""
    chances = partition.probabilities or [1.0] * len(partition.sizes_px)
    return {size: chance / sum(chances) for size, chance in zip(partition.sizes_px, chances, strict=True)}


def images_per_step(partition: PartitionRecipe, patch_size: int) -> float:
    """Return the number of images of a step, with a token budget their mean."""
    if partition.batch_size is not None:
        return partition.batch_size
    assert partition.token_budget is not None
    mean_tokens = sum(share * (size // patch_size) ** 2 for size, share in shares_of(partition).items())
    return partition.token_budget / mean_tokens


def at_size(stage: Recipe, choose: Callable[[list[int]], int]) -> Recipe:
    """Return a stage with as many images as before, all at one resolution of each partition."""
    patch_size = student_patch_size(stage)
    partitions = [
        p.replace(
            sizes_px=[choose(p.sizes_px)],
            probabilities=None,
            batch_size=round(images_per_step(p, patch_size)),
            token_budget=None,
        )
        for p in stage.partitions
    ]
    return stage.replace(partitions=partitions)


def with_split_teachers(stage: Recipe) -> Recipe:
    """Return a stage whose images are split evenly: each teacher sees its own, as in stage 1 of PHI-S, table 10.

    Its partitions run on every rank.
    """
    names = [teacher.name for teacher in stage.teachers]
    partitions = [
        p.replace(
            name=f"{p.name}-{name}",
            batch_size=p.batch_size and max(p.batch_size // len(names), 1),
            token_budget=p.token_budget and max(p.token_budget // len(names), 1),
            teachers=[name],
            rank_share=None,
        )
        for p in stage.partitions
        for name in names
    ]
    return stage.replace(partitions=partitions)
