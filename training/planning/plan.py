"""What all stages of a run cost on so many cards: operations and hours, memory, disk, network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tqdm.auto import tqdm

from training.planning.cards import MEMORY_SHARE, Card
from training.planning.networks import FULL_BYTES, HALF_BYTES, Networks
from training.planning.steps import PartitionCost, plan_stage
from training.recipe import Recipe, RecipeError, stage_recipes
from training.student.build import check_student_views
from training.views.batches import BatchPlan, teachers_of_rank


SECONDS_PER_HOUR = 3600
GIB = 2**30

STUDENT_BYTES = 20
"""Per parameter: weight, gradient, two moments of the optimizer and the moving average, all float32. Muon has only one
moment of its matrices: for it this is too much."""
AVERAGE_BYTES = 4
"""Of these the moving average, in which taps have no part."""
CAST_BYTES = HALF_BYTES
"""Per parameter: what autocast makes of it in a pass forward, kept for the way back; with FSDP too, and whole."""
CHECKPOINT_BYTES = 16
"""Per parameter in a checkpoint: all of the above but the gradient."""


class Memory(NamedTuple):
    """Bytes on each GPU at the largest pass of a run, the student a copy on each (DDP).

    Attributes:
        student: Weights, gradients, optimizer and average, of the heads of taps too.
        casts: Weights in bfloat16, from the pass forward to its way back.
        teachers: Weights.
        targets: Teachers' features of a pass.
        activations: What the student keeps for the backward pass.
        checkpointed: The same with gradient checkpointing.
    """

    student: float
    casts: float
    teachers: float
    targets: float
    activations: float
    checkpointed: float

    def total(self, *, is_checkpointed: bool) -> float:
        """Return the sum."""
        kept = self.checkpointed if is_checkpointed else self.activations
        return self.student + self.casts + self.teachers + self.targets + kept

    def fits(self, card: Card) -> str:
        """Return in a word or two whether a card holds it."""
        room = MEMORY_SHARE * card.memory_gib * GIB
        if self.total(is_checkpointed=False) <= room:
            return "yes"
        if self.total(is_checkpointed=True) <= room:
            return "checkpointed"
        return "no"


class Plan:
    """What all stages of a run cost.

    Args:
        recipe: What is trained.
        num_gpus: Number of ranks.

    Attributes:
        stages: Recipe of each stage; of a run without stages the recipe.
        networks: Student and teachers on the meta device.
        costs: By stage, what a step of each partition costs.

    Raises:
        ValueError: If a network cannot be built, or the recipe does not fit this number of GPUs.
    """

    def __init__(self, recipe: Recipe, num_gpus: int) -> None:
        self.recipe, self.num_gpus = recipe, num_gpus
        self.stages = stage_recipes(recipe) or [recipe]
        for stage in self.stages:
            check_student_views(stage)
        self.networks = Networks(recipe)
        with tqdm(self.stages, desc="count", unit="stage") as progress:
            self.costs = {stage.name: plan_stage(self.networks, stage, num_gpus) for stage in progress}

    # Operations

    def flops(self, stages: Sequence[Recipe] | None = None, *, with_teachers: bool = True) -> float:
        """Return the operations of some stages, by default those of the recipe.

        Cached teachers answer each image once, before the first step; a data set whose length the recipe does not say
        counts for nothing there.
        """
        total = 0.0
        for stage in self.stages if stages is None else stages:
            is_online = stage.views.teachers == "online"
            costs = plan_stage(self.networks, stage, self.num_gpus)
            total += stage.schedule.num_steps * sum(
                cost.flops if with_teachers and is_online else cost.student_flops for cost in costs
            )
            if with_teachers and not is_online:
                total += self._cache_flops(stage)
        return total

    def _cache_flops(self, stage: Recipe) -> float:
        flops = self.networks.teacher_flops(list(self.networks.teachers), stage.data.image_size_px, 1)
        return (stage.data.num_images or 0) * sum(flops.values())

    def gpu_hours(
        self, card: Card, mfu: float, stages: Sequence[Recipe] | None = None, *, with_teachers: bool = True
    ) -> float:
        """Return the hours that one card would take for the stages, at a share `mfu` of its peak."""
        return self.flops(stages, with_teachers=with_teachers) / (card.peak_flops * mfu) / SECONDS_PER_HOUR

    def steps(self) -> list[tuple[Recipe, PartitionCost]]:
        """Return what a step of each partition of each stage costs."""
        return [(stage, cost) for stage in self.stages for cost in self.costs[stage.name]]

    # Memory

    def memory(self) -> Memory:
        """Return what each GPU holds at most."""
        return Memory(
            STUDENT_BYTES * self.networks.num_parameters + self.tap_bytes(),
            CAST_BYTES * (self.networks.num_parameters + self.tap_parameters()),
            max(
                sum(self.networks.teachers[name].weight_bytes for name in teachers_of_rank(stage, rank, self.num_gpus))
                for stage in self.stages
                for rank in range(self.num_gpus)
            ),
            *(
                max(sizes)
                for sizes in zip(*((cost.targets, *cost.activations) for _, cost in self.steps()), strict=True)
            ),
        )

    def tap_parameters(self) -> int:
        """Return the numbers of the taps' heads, of the stage with most of them."""
        heads = self.networks.tap_heads(max((self.networks.taps_of(stage) for stage in self.stages), key=len))
        return 0 if heads is None else sum(parameter.numel() for parameter in heads.parameters())

    def tap_bytes(self) -> int:
        """Return what they take on a GPU while they are learned."""
        return (STUDENT_BYTES - AVERAGE_BYTES) * self.tap_parameters()

    # Disk and network

    def download_bytes(self) -> int:
        """Return what is fetched of the teachers, at least: a repository may hold a text tower or a decoder too."""
        return sum(teacher.download_bytes for teacher in self.networks.teachers.values())

    def checkpoint_bytes(self) -> float:
        """Return the size of all checkpoints that stay, one that is written beside them, and the exported folders."""
        keep, stages = self.recipe.checkpoints.keep, len(self.stages)
        exports = stages + (len(self.recipe.stages) > 0)
        return self.networks.num_parameters * (CHECKPOINT_BYTES * (stages * keep + 1) + FULL_BYTES * exports)

    def cache_bytes_per_image(self, side_px: int) -> float:
        """Return the size of a cached image and of the teachers' answers, in the recipe's format.

        Pixels take a byte, summaries two each.
        """
        teachers = self.networks.teachers.values()
        cells = (side_px // self.networks.student.patch_size) ** 2
        total = 3 * side_px**2 + HALF_BYTES * sum(teacher.summary_dim or 0 for teacher in teachers)
        for teacher in teachers:
            is_small = self.recipe.views.cache_format == "int8"
            total += teacher.feature_dim * (cells + 2 * FULL_BYTES if is_small else HALF_BYTES * cells)
        return total

    def images_seen(self) -> float:
        """Return how many images all steps see together."""
        return sum(stage.schedule.num_steps * cost.images for stage, cost in self.steps())

    def files_read(self) -> float:
        """Return how many files of images are read: one for each that a step sees; for a feature cache each once."""
        if self.recipe.views.teachers == "cached":
            return self.recipe.data.num_images or 0
        return self.images_seen()

    def gradient_bytes(self) -> float:
        """Return what each GPU sends, and receives, in a step: a ring's all-reduce of float32 gradients."""
        learned = self.networks.num_parameters + self.tap_parameters()
        return 2 * (self.num_gpus - 1) / self.num_gpus * FULL_BYTES * learned

    # What cannot be

    def refusals(self) -> list[tuple[str, RecipeError]]:
        """Return the stages whose batches have not an image for each part of each rank, and why a run would refuse."""
        found = [
            (stage.name, _refusal(stage, self.num_gpus, self.networks.student.patch_size)) for stage in self.stages
        ]
        return [(name, error) for name, error in found if error is not None]


def _refusal(stage: Recipe, num_gpus: int, patch_size: int) -> RecipeError | None:
    try:
        BatchPlan(stage, None, num_ranks=num_gpus, patch_size=patch_size)
    except RecipeError as error:
        return error
    return None
