"""Memory of a GPU in a run, counted before it starts, and the number of parts of a step that fits into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modeling_radio.training.planning.costs import HALF_BYTES, MEMORY_SHARE, Card, Networks, PassBytes, pass_bytes
from modeling_radio.training.planning.simulation import deal_steps, patches_of_passes
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.recipes.sections import AUTO
from modeling_radio.training.views.dealing import divide_ranks, parts_of_rank, teachers_of_rank
from modeling_radio.training.views.plan import Operations
from modeling_radio.training.views.shapes import images_per_step, size_shares


GIB = 2**30

STUDENT_BYTES = 20
"""Per parameter: weight, gradient, two moments of the optimizer and the moving average, all float32. Muon has only one
moment of its matrices, so for Muon this is too much."""
AVERAGE_BYTES = 4
"""Bytes of `STUDENT_BYTES` that the moving average takes; auxiliary heads have no average."""
CAST_BYTES = HALF_BYTES
"""Per parameter: the copy that autocast makes in the forward pass and keeps for the backward pass; with FSDP also of
the whole model."""

UPDATE_BYTES = {"adamw": 0, "lamb": 8, "muon": 12}
"""Per parameter, what optimizers have in memory during an update only: none with PyTorch's fused AdamW, both parts of
LAMB's quotient, and 10.9 bytes measured of Muon."""


class Memory(NamedTuple):
    """Bytes on each GPU at the most of a run, with a copy of the student on each (DDP).

    Attributes:
        student: Weights, gradients, optimizer and average, also of auxiliary heads.
        casts: Weights in bfloat16, from the forward to the backward pass.
        teachers: Weights.
        targets: Teachers' features of a pass.
        activations: Tensors that the student keeps for the backward pass.
        checkpointed: The same with gradient checkpointing.
        update: Memory that the optimizer needs during an update, when casts, targets and activations are gone.
    """

    student: float
    casts: float
    teachers: float
    targets: float
    activations: float
    checkpointed: float
    update: float

    def with_pass(self, sizes: PassBytes) -> Memory:
        """Return the same with the memory of a pass."""
        return self._replace(targets=sizes.targets, activations=sizes.activations, checkpointed=sizes.checkpointed)

    def total(self, *, is_checkpointed: bool) -> float:
        """Return the sum in a pass or in an update, whichever is larger."""
        kept = self.checkpointed if is_checkpointed else self.activations
        return self.student + self.teachers + max(self.casts + self.targets + kept, self.update)

    def fits(self, card: Card) -> str:
        """Return "yes", "checkpointed" (only with gradient checkpointing) or "no" for a card."""
        room = MEMORY_SHARE * card.memory_gib * GIB
        if self.total(is_checkpointed=False) <= room:
            return "yes"
        return "checkpointed" if self.total(is_checkpointed=True) <= room else "no"


def head_parameters(networks: Networks, stages: Sequence[Recipe]) -> int:
    """Return the parameters of the auxiliary heads, of the stage with most of them."""
    learner = networks.learner(max((networks.heads_of(stage) for stage in stages), key=len))
    return sum(parameter.numel() for parameter in learner.parameters()) - networks.num_parameters


def memory_between_passes(networks: Networks, stages: Sequence[Recipe], num_gpus: int, num_sharing: int = 1) -> Memory:
    """Return the largest memory of a GPU in some stages without that of a pass.

    Args:
        networks: Student and teachers.
        stages: The stages.
        num_gpus: Number of ranks.
        num_sharing: Ranks that share one copy of the student (FSDP); 1 where each has its own.
    """
    heads = head_parameters(networks, stages)
    learned = networks.num_parameters + heads
    of_ranks = [teachers_of_rank(stage, rank, num_gpus) for stage in stages for rank in range(num_gpus)]
    of_teachers = {name: teacher.weight_bytes for name, teacher in networks.teachers.items()}
    return Memory(
        (STUDENT_BYTES * learned - AVERAGE_BYTES * heads) / num_sharing,
        CAST_BYTES * learned,
        max(sum(of_teachers.get(name, 0) for name in names) for names in of_ranks),
        *(0.0, 0.0, 0.0),
        update=UPDATE_BYTES[stages[0].optimizer.name] * learned / num_sharing,
    )


def memory_of_passes(
    networks: Networks, stage: Recipe, num_gpus: int, fullest: Mapping[str, int]
) -> dict[str, PassBytes]:
    """Return by partition the memory of its fullest pass.

    Args:
        networks: Student and teachers.
        stage: The stage.
        num_gpus: Number of ranks.
        fullest: By partition, the most patches of a simulated pass; images of one size may be larger in other steps.
    """
    ranks, patch_size, sizes = divide_ranks(stage.partitions, num_gpus), networks.student.patch_size, {}
    for each in stage.partitions:
        num_ranks, patches = len(ranks[each.name]), fullest[each.name]
        num_parts = parts_of_rank(each, num_ranks, patch_size)
        if each.batch_size is not None:
            images = -(-each.batch_size // (num_ranks * num_parts))
            patches = max(patches, images * (max(size_shares(each)) // patch_size) ** 2)
        sizes[each.name] = pass_bytes(networks, stage, each, num_parts, patches)
    return sizes


def has_auto(recipe: Recipe) -> bool:
    """Return whether a partition has as many parts of a step as fit into the memory."""
    return any(each.accumulation_steps == AUTO for each in recipe.partitions)


def with_parts(recipe: Recipe, parts: Mapping[str, int]) -> Recipe:
    """Return a recipe whose partitions with `accumulation_steps: auto` have these numbers, by name."""
    return recipe.replace(
        partitions=[
            each.replace(accumulation_steps=parts[each.name])
            if each.accumulation_steps == AUTO and each.name in parts
            else each
            for each in recipe.partitions
        ]
    )


def fitting_parts(
    networks: Networks,
    stage: Recipe,
    num_gpus: int,
    memory_gib: float,
    operations: Operations | None,
    num_sharing: int = 1,
) -> dict[str, int]:
    """Return by partition with `accumulation_steps: auto` the fewest parts of a step that fit into a GPU's memory.

    Where not even single images fit, each is a part of its own.

    Args:
        networks: Student and teachers.
        stage: The stage.
        num_gpus: Number of ranks.
        memory_gib: Memory of a GPU, of which `MEMORY_SHARE` may be filled.
        operations: See `BatchPlan`.
        num_sharing: See `memory_between_passes`.
    """
    ranks, patch_size = divide_ranks(stage.partitions, num_gpus), networks.student.patch_size
    auto = [each for each in stage.partitions if each.accumulation_steps == AUTO]
    limits = {each.name: max(1, images_per_step(each, patch_size) // len(ranks[each.name])) for each in auto}
    fixed, parts = memory_between_passes(networks, [stage], num_gpus, num_sharing), dict.fromkeys(limits, 1)
    room = MEMORY_SHARE * memory_gib * GIB - fixed.student - fixed.teachers - fixed.casts
    while True:
        fitted = with_parts(stage, parts)
        passes = patches_of_passes(deal_steps(fitted, num_gpus, patch_size, operations))
        sizes = memory_of_passes(networks, fitted, num_gpus, {name: max(each) for name, each in passes.items()})
        needed = {name: sizes[name].total(is_checkpointed=stage.student.gradient_checkpointing) for name in parts}
        larger = [name for name, size in needed.items() if size > room and parts[name] < limits[name]]
        if not larger:
            return parts
        for name in larger:  # a pass of half as many images needs at least half the memory
            least = int(parts[name] * needed[name] / room) if room > 0 else limits[name]
            parts[name] = min(limits[name], max(parts[name] + 1, least))


def fit_accumulation(
    networks: Networks, stage: Recipe, num_gpus: int, memory_gib: float, operations: Operations | None
) -> Recipe:
    """Return a stage with `fitting_parts` in place of `accumulation_steps: auto`."""
    return with_parts(stage, fitting_parts(networks, stage, num_gpus, memory_gib, operations))
