"""Steps on a number of GPUs, simulated: what each rank has of them, counted, and the time at stated speeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from modeling_radio.training.planning.costs import FULL_BYTES, Card, Networks
from modeling_radio.training.planning.starts import starts_of_rank
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.teachers.base import HasNetwork, by_network
from modeling_radio.training.views.plan import BatchPlan, Operations
from modeling_radio.training.views.shapes import Grid, images_per_step, size_shares


NUM_STEPS = 8
"""Steps that are simulated. Our choice: steps differ little, since each has all sizes by their shares."""

GPUS_PER_MACHINE = 8
"""As NVIDIA's DGX and HGX H100 have."""
LINK_SPEED = 450e9
"""Bytes per second that a GPU sends within a machine: NVLink of an H100 SXM, 900 GB/s both ways together, by NVIDIA's
data sheet of 2023."""
NETWORK_SPEED = 50e9
"""Bytes per second that a GPU sends to other machines: a port of 400 Gb/s for each GPU, as NVIDIA's DGX H100 has by its
data sheet of 2023."""
SECONDS_PER_KB = 1e-4
"""Seconds that a worker takes for each 1,000 bytes of a JPEG to decode it and cut one view. Our choice: we measured
0.6e-4 to 1.45e-4 for files of 33 to 136 kB with the views of radio_s and c_radio_v4_h, on one thread of an AMD EPYC and
of a second machine (2026-12-01)."""
MOST_SECONDS_PER_VIEW = 0.04
"""Limit of these seconds for large files, which drafts decode at a part of their size: measured at 12 megapixels."""


class SimulatedStep(NamedTuple):
    """A step of a stage, in the mean over the simulated ones.

    Attributes:
        flops: Mean operations of a rank by the parts that `Networks.operations_by_part` names: over all draws of sizes,
            or for mosaics, whose canvases are filled at random, over the simulated steps.
        imbalance: Operations of the rank that has most over those of a rank in the mean.
        worst: The same in the most uneven step.
        idle_passes: Share of the passes that have no image.
        patches: By partition, the patches of the fullest pass.
        starts: Starts of kernels on the rank that has most.
        views: Views that the workers of all ranks cut: for each image one for the student and one for each network of a
            teacher; 0 with cached teachers, whose images are decoded already.
    """

    flops: dict[str, float]
    imbalance: float
    worst: float
    idle_passes: float
    patches: dict[str, int]
    starts: float
    views: int


def simulate_step(networks: Networks, stage: Recipe, num_gpus: int) -> SimulatedStep:
    """Divide the images of some steps among ranks as a run does, and count what each rank computes.

    Raises:
        RecipeError: If the recipe does not fit this number of ranks.
    """
    by_part, patch_size = networks.operations_by_part(stage), networks.student.patch_size
    parts = list(dict.fromkeys(part for own in by_part.values() for part in own))
    steps = deal_steps(stage, num_gpus, patch_size, networks.operations(stage))
    flops = np.array(
        [[[_flops_of(networks, stage, by_part, part, own) for part in parts] for own in ranks] for ranks in steps]
    )
    of_ranks = flops.sum(2)
    ratios = of_ranks.max(1) / of_ranks.mean(1)
    patches = patches_of_passes(steps)
    filled = [count for counts in patches.values() for count in counts]
    return SimulatedStep(
        {
            part: simulated
            if _is_mosaic(networks, part)
            else _expected_flops(stage, by_part, part, patch_size) / num_gpus
            for part, simulated in zip(parts, flops.mean((0, 1)).tolist(), strict=True)
        },
        ratios.mean().item(),
        ratios.max().item(),
        filled.count(0) / len(filled),
        {name: max(counts) for name, counts in patches.items()},
        np.mean([max(starts_of_rank(networks, stage, own) for own in ranks) for ranks in steps]).item(),
        num_views(stage, networks.teachers, patch_size),
    )


def deal_steps(
    stage: Recipe, num_gpus: int, patch_size: int, operations: Operations | None
) -> list[list[dict[str, list[list[Grid]]]]]:
    """Return for some steps what each rank has of them, as `BatchPlan.shapes_of_ranks` does.

    Args:
        stage: The stage.
        num_gpus: Number of ranks.
        patch_size: The student's patch in pixels.
        operations: See `BatchPlan`.
    """
    plan = BatchPlan(stage, None, num_ranks=num_gpus, patch_size=patch_size, operations=operations)
    return [plan.shapes_of_ranks(step) for step in range(NUM_STEPS)]


def patches_of_passes(steps: Sequence[Sequence[Mapping[str, Sequence[Sequence[Grid]]]]]) -> dict[str, list[int]]:
    """Return by partition the student's patches of each pass of some steps, on all ranks."""
    patches: dict[str, list[int]] = {}
    for own in (own for ranks in steps for own in ranks):
        for name, passes in own.items():
            patches.setdefault(name, []).extend(sum(grid.num_tokens for grid in grids) for grids in passes)
    return patches


def _is_mosaic(networks: Networks, part: str) -> bool:
    return part in networks.teachers and networks.teachers[part].is_mosaic


def _expected_flops(
    stage: Recipe, by_part: Mapping[str, Mapping[str, Mapping[int, float]]], part: str, patch_size: int
) -> float:
    """Return the operations of one part of a step of all ranks, in the mean over all draws of sizes."""
    total = 0.0
    for partition in stage.partitions:
        of_image = by_part[partition.name].get(part, {})
        mean = sum(
            share * of_image.get((size // patch_size) ** 2, 0.0) for size, share in size_shares(partition).items()
        )
        total += images_per_step(partition, patch_size) * mean
    return total


def num_views(stage: Recipe, teachers: Mapping[str, HasNetwork], patch_size: int) -> int:
    """Return the number of views of a step on all ranks, see `SimulatedStep.views`."""
    if stage.views.teachers == "cached":
        return 0
    networks = {
        each.name: len(by_network({name: teachers[name] for name in each.teachers or teachers}))
        for each in stage.partitions
    }
    return round(
        sum(
            images_per_step(each, patch_size) * (1 + stage.share_of_images(each) * networks[each.name])
            for each in stage.partitions
        )
    )


def _flops_of(
    networks: Networks,
    stage: Recipe,
    by_part: Mapping[str, Mapping[str, Mapping[int, float]]],
    part: str,
    own: Mapping[str, Sequence[Sequence[Grid]]],
) -> float:
    """Return the operations of one part of a rank's step."""
    total, at_once = 0.0, stage.views.parts_at_once
    for name, passes in own.items():
        if part not in by_part[name]:
            continue
        if _is_mosaic(networks, part):
            calls = [passes[first : first + at_once] for first in range(0, len(passes), at_once)]
            images = [[grid for grids in call for grid in grids] for call in calls]
            (partition,) = [each for each in stage.partitions if each.name == name]
            seen = [grids[: math.ceil(stage.share_of_images(partition) * len(grids))] for grids in images]
            total += sum(networks.teachers[part].mosaic_flops(grids) for grids in seen if grids)
        else:
            known = sorted(by_part[name][part].items())
            tokens = [grid.num_tokens for grids in passes for grid in grids]
            total += np.interp(tokens, [count for count, _ in known], [flops for _, flops in known]).sum().item()
    return total


class StepTime(NamedTuple):
    """Seconds of a step.

    Attributes:
        parts: By part of `SimulatedStep.flops`.
        waiting: Time in which ranks wait for the slowest one.
        exchange: Exchange of gradients, as if no part of it ran during the backward pass.
        starts: Time in which the processor starts the kernels, while the GPU works.
        data: Time in which workers prepare the images, while all else runs.
    """

    parts: dict[str, float]
    waiting: float
    exchange: float
    starts: float
    data: float

    @property
    def computed(self) -> float:
        """The GPU's work, and its exchange of gradients."""
        return sum(self.parts.values()) + self.waiting + self.exchange

    @property
    def total(self) -> float:
        """The whole step: what runs side by side is done when the longest is."""
        return max(self.computed, self.starts, self.data)


class Speed(NamedTuple):
    """Assumptions about a run.

    Attributes:
        card: The GPU.
        mfu: Share of its peak that the run is assumed to reach.
        image_kb: Mean size of an image file, in 1,000 bytes.
        start_us: Microseconds of a start of a kernel.
    """

    card: Card
    mfu: float
    image_kb: float
    start_us: float


def time_of(step: SimulatedStep, stage: Recipe, num_gpus: int, num_parameters: int, speed: Speed) -> StepTime:
    """Return the time of a simulated step.

    Args:
        step: The step.
        stage: Its stage.
        num_gpus: Number of ranks.
        num_parameters: Learned numbers, whose float32 gradients are exchanged.
        speed: Assumed speed of the GPU and the workers.
    """
    parts = {part: flops / (speed.card.peak_flops * speed.mfu) for part, flops in step.flops.items()}
    workers = max(1, stage.data.num_workers)
    return StepTime(
        parts,
        (step.imbalance - 1) * sum(parts.values()),
        exchange_seconds(FULL_BYTES * num_parameters, num_gpus),
        1e-6 * speed.start_us * step.starts,
        step.views / num_gpus * view_seconds(speed.image_kb) / workers,
    )


def view_seconds(image_kb: float) -> float:
    """Return how long a worker takes for one view of an image, if its file has so many thousand bytes."""
    return min(SECONDS_PER_KB * image_kb, MOST_SECONDS_PER_VIEW)


def exchange_seconds(num_bytes: int, num_gpus: int) -> float:
    """Return how long ranks take to average gradients.

    A ring within each machine and, for each GPU's share of them, a ring over the machines: each GPU sends 2 (n - 1) / n
    of the bytes in a ring of n.
    """
    within, machines = min(num_gpus, GPUS_PER_MACHINE), math.ceil(num_gpus / GPUS_PER_MACHINE)
    over_links = 2 * (within - 1) / within * num_bytes
    over_network = 2 * (machines - 1) / machines * num_bytes / within
    return over_links / LINK_SPEED + over_network / NETWORK_SPEED
