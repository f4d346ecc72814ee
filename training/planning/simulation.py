"""Steps on a number of GPUs, simulated: what each rank has of them, counted, and the time at stated speeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from modeling_radio.training.planning.costs import FULL_BYTES, Card, Networks
from modeling_radio.training.recipe import Recipe
from modeling_radio.training.views.plan import BatchPlan, Grid


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
IMAGES_PER_WORKER = 15
"""Photographs of 5 to 16 megapixels a second that a worker reads, decodes and crops: two on a folder, with drafts, in
docs/explanation/benchmarks.md."""


class SimulatedStep(NamedTuple):
    """A step of a stage, in the mean over the simulated ones.

    Attributes:
        flops: Operations of a rank in the mean, by the parts that `Networks.operations_by_part` names.
        imbalance: Operations of the rank that has most over those of a rank in the mean.
        worst: The same in the most uneven step.
        idle_passes: Share of the passes that have no image.
        patches: By partition, the patches of the fullest pass.
        images: Images of all ranks.
    """

    flops: dict[str, float]
    imbalance: float
    worst: float
    idle_passes: float
    patches: dict[str, int]
    images: int


def simulate_step(networks: Networks, stage: Recipe, num_gpus: int) -> SimulatedStep:
    """Divide the images of some steps among ranks as a run does, and count what each rank computes.

    Raises:
        RecipeError: If the recipe does not fit this number of ranks.
    """
    by_part, patch_size = networks.operations_by_part(stage), networks.student.patch_size
    plan = BatchPlan(stage, None, num_ranks=num_gpus, patch_size=patch_size, operations=networks.operations(stage))
    parts = list(dict.fromkeys(part for own in by_part.values() for part in own))
    steps = [plan.shapes_of_ranks(step) for step in range(NUM_STEPS)]
    flops = np.array(
        [[[_flops_of(networks, stage, by_part, part, own) for part in parts] for own in ranks] for ranks in steps]
    )
    of_ranks = flops.sum(2)
    ratios = of_ranks.max(1) / of_ranks.mean(1)
    patches: dict[str, list[int]] = {name: [] for name in by_part}
    for own in (own for ranks in steps for own in ranks):
        for name, passes in own.items():
            patches[name] += [sum(grid.num_tokens for grid in grids) for grids in passes]
    filled = [count for counts in patches.values() for count in counts]
    return SimulatedStep(
        dict(zip(parts, flops.mean((0, 1)).tolist(), strict=True)),
        ratios.mean().item(),
        ratios.max().item(),
        filled.count(0) / len(filled),
        {name: max(counts) for name, counts in patches.items()},
        plan.images_per_step,
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
        if part in networks.teachers and networks.teachers[part].is_mosaic:
            calls = [passes[first : first + at_once] for first in range(0, len(passes), at_once)]
            images = [[grid for grids in call for grid in grids] for call in calls]
            total += sum(networks.teachers[part].mosaic_flops(grids) for grids in images if grids)
        else:
            known = sorted(by_part[name][part].items())
            tokens = [grid.num_tokens for grids in passes for grid in grids]
            total += np.interp(tokens, [count for count, _ in known], [flops for _, flops in known]).sum().item()
    return total


class StepTime(NamedTuple):
    """Seconds of a step.

    Attributes:
        parts: By part of `SimulatedStep.flops`.
        waiting: For the rank that has most.
        exchange: Of gradients, as if nothing of it were hidden behind the backward pass.
        data: That workers take to prepare the images, beside all else.
    """

    parts: dict[str, float]
    waiting: float
    exchange: float
    data: float

    @property
    def total(self) -> float:
        """The whole step."""
        return max(sum(self.parts.values()) + self.waiting + self.exchange, self.data)


def time_of(step: SimulatedStep, stage: Recipe, num_gpus: int, num_parameters: int, card: Card, mfu: float) -> StepTime:
    """Return the time of a simulated step.

    Args:
        step: The step.
        stage: Its stage.
        num_gpus: Number of ranks.
        num_parameters: Learned numbers, whose float32 gradients are exchanged.
        card: The GPU.
        mfu: Share of its peak that the run is assumed to reach.
    """
    parts = {part: flops / (card.peak_flops * mfu) for part, flops in step.flops.items()}
    workers = max(1, stage.data.num_workers)
    return StepTime(
        parts,
        (step.imbalance - 1) * sum(parts.values()),
        exchange_seconds(FULL_BYTES * num_parameters, num_gpus),
        step.images / num_gpus / (workers * IMAGES_PER_WORKER),
    )


def exchange_seconds(num_bytes: int, num_gpus: int) -> float:
    """Return how long ranks take to average gradients.

    A ring within each machine and, for each GPU's share of them, a ring over the machines: each GPU sends 2 (n - 1) / n
    of the bytes in a ring of n.
    """
    within, machines = min(num_gpus, GPUS_PER_MACHINE), math.ceil(num_gpus / GPUS_PER_MACHINE)
    over_links = 2 * (within - 1) / within * num_bytes
    over_network = 2 * (machines - 1) / machines * num_bytes / within
    return over_links / LINK_SPEED + over_network / NETWORK_SPEED
