"""Files about a skipped step, to find its cause: its images, crops and losses, and its tensors if they are small."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from modeling_radio.core.files import WriteError, write_file, write_text
from modeling_radio.core.ranks import of_all_ranks
from modeling_radio.training.distillation.monitoring import SkippedSteps
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.views.crops import STUDENT, plan_crops
from modeling_radio.training.views.plan import PlannedBatch


MAX_STEPS = 3
"""Skipped steps of a run that are written. Our choice: the first ones tell, and a run may skip thousands."""
MAX_BYTES = 2**26
"""Tensors of a step that a rank keeps until it has ended, 64 MiB. Our choice: little beside a student; a batch that is
larger is known by the numbers of its images, from which it can be made again."""


class Seen(NamedTuple):
    """A part of a step.

    Attributes:
        batch: Its images.
        losses: By name, scalars.
        tensors: Images and targets by name; empty if they are too large to keep.
    """

    batch: PlannedBatch
    losses: dict[str, Tensor]
    tensors: dict[str, Tensor]


class BadSteps(StepHook):
    """Keeps the parts of the present step; counts, reports and writes it if it is skipped.

    Args:
        folder: Gets `step_STEP-rank_RANK.json` and, with small tensors, `.safetensors`.
        recipe: The recipe.
        accelerator: Accelerator of this rank.
        skipped: The count of skipped steps.
    """

    def __init__(self, folder: Path, recipe: Recipe, accelerator: Accelerator, skipped: SkippedSteps) -> None:
        self.folder, self.recipe, self.accelerator, self.skipped = folder, recipe, accelerator, skipped
        self.rank = accelerator.process_index
        self._step = 0
        self._parts: list[Seen] = []

    def begin_step(self, step: int, examples: Sequence[tuple[PlannedBatch, Example]]) -> None:
        """Forget the step before."""
        self._step, self._parts = step, []

    def see(self, batch: PlannedBatch, example: Example, losses: Mapping[str, Tensor]) -> None:
        """Keep a part of the step: nothing is copied."""
        tensors = dict(_tensors(example))
        kept = [tensor for part in self._parts for tensor in part.tensors.values()]
        is_small = sum(tensor.nbytes for tensor in [*kept, *tensors.values()]) <= MAX_BYTES
        own = {name: loss.detach() for name, loss in losses.items()}
        self._parts.append(Seen(batch, own, tensors if is_small else {}))

    def end_step(self, values: Mapping[str, Tensor], *, is_skipped: bool) -> None:
        """Count and report a step that all ranks skip; give up after too many in a row.

        Raises:
            TrainingDivergedError: After one too many, on all ranks.
        """
        if not is_skipped:
            self.skipped.reset_streak()
            return
        step, num_ranks = self._step, self.accelerator.num_processes
        bad = [name for name, value in values.items() if not torch.isfinite(value)]
        reports = [each for each in of_all_ranks((self.rank, ", ".join(bad))) if each[1]]
        if self.skipped.total < MAX_STEPS:
            if bad or not reports:  # of a gradient alone no rank knows whose it was
                self._try_to_write(step, bad or ["gradient"], has_tensors=bool(bad) or num_ranks == 1)
            path = self.path(step, reports[0][0] if reports else 0)
            self.accelerator.print(f"Step {step}: what it saw is in {str(path)!r}.", flush=True)
        causes = [f"{names} on rank {rank}" for rank, names in reports] or ["gradient"]
        self.accelerator.print(self.skipped.add(step, causes), flush=True)

    def _try_to_write(self, step: int, causes: Sequence[str], *, has_tensors: bool) -> None:
        try:
            self.write(step, causes, has_tensors=has_tensors)
        except WriteError as error:  # other ranks go on
            print(f"Step {step}: what it saw cannot be written. {error}", flush=True)

    def write(self, step: int, causes: Sequence[str], *, has_tensors: bool) -> None:
        """Write the step's parts; both files whole, the JSON last.

        Args:
            step: Its number, from 0.
            causes: Names of the values that were not finite.
            has_tensors: Write the tensors that were kept.

        Raises:
            WriteError: If they cannot be written.
        """
        path = self.path(step, self.rank)
        parts = enumerate(self._parts if has_tensors else [])
        tensors = {f"{part}/{name}": each for part, seen in parts for name, each in seen.tensors.items()}
        if tensors:
            own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
            write_file(path.with_suffix(".safetensors"), partial(save_file, own))
        record = {
            "step": step,
            "rank": self.rank,
            "not_finite": list(causes),
            "tensors_not_finite": [name for name, tensor in tensors.items() if not tensor.isfinite().all()],
            "parts": [self._describe(seen) for seen in self._parts],
        }
        write_text(path, json.dumps(record, indent=1) + "\n")

    def path(self, step: int, rank: int) -> Path:
        """Return the JSON file of a step on a rank."""
        return self.folder / f"step_{step:08d}-rank_{rank}.json"

    def _describe(self, seen: Seen) -> dict[str, Any]:
        batch = seen.batch
        images: list[dict[str, Any]] = [
            {"index": index, "row": row, "patches": list(shape.grid)}
            for index, row, shape in zip(batch.indices, batch.rows, batch.shapes, strict=True)
        ]
        if self.recipe.views.teachers == "online":
            crops = plan_crops(batch, self.recipe, {STUDENT: lambda grid: ()})
            for image, crop in zip(images, crops, strict=True):
                image |= {"region": crop.numbers, "is_flipped": crop.is_flipped, "shift": crop.shifts[STUDENT]}
        return {
            "partition": batch.partition,
            "teachers": list(batch.teachers),
            "window": batch.vitdet_window,
            "losses": {name: _number(loss.item()) for name, loss in seen.losses.items()},
            "images": images,
        }


def _tensors(example: Example) -> Iterator[tuple[str, Tensor]]:
    for group, images in enumerate(example.pixel_values):
        yield f"images/{group}", images
    for name, target in example.targets.items():
        if target.summary is not None:
            yield f"summary/{name}", target.summary
        for group, features in enumerate(target.features):
            yield f"features/{name}/{group}", features


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no such numbers
