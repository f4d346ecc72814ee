"""Monitoring of a run: losses by size, shares of time, activations, skipped steps, held-out measurements."""

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.files import WriteError
from modeling_radio.core.interruption import TrainingDivergedError
from modeling_radio.core.ranks import of_all_ranks, sum_over_ranks
from modeling_radio.figures.progress import EXPORTED_PREFIX
from modeling_radio.metrics.representation import block_norms
from modeling_radio.training.distillation.held_out import (
    HeldOutFigures,
    HeldOutMetrics,
    describe_missing_images,
    steps_between_figures,
)
from modeling_radio.training.distillation.neighbors import HeldOutNeighbors
from modeling_radio.training.distillation.throughput import Throughput
from modeling_radio.training.distillation.tracking import ProgressLog
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.losses.terms import teacher_of
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe
from modeling_radio.training.student.foreign import global_window
from modeling_radio.training.student.sharding import reshard
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.targets.statistics import TeacherStatistics
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.views.plan import PlannedBatch


MAX_SHARE = 0.5
"""Share of skipped steps above which a run is no success. Our choice: "most". Single ones happen in bfloat16, and a
run whose every step fails is given up long before its end."""


class SkippedSteps:
    """Counts skipped steps.

    Args:
        max_in_a_row: After as many without a good one between them the run gives up.

    Attributes:
        total: Number of skipped steps so far.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self._in_a_row = self.total = 0

    def add(self, step: int, causes: Sequence[str]) -> str:
        """Count a skipped step and return a line that says so.

        Args:
            step: Its number.
            causes: Names of the values that were not finite.

        Raises:
            TrainingDivergedError: If it is one too many in a row.
        """
        self._in_a_row += 1
        self.total += 1
        message = f"Step {step} skipped: not finite: {'; '.join(causes)} ({self._in_a_row} in a row)."
        if self._in_a_row >= self.max_in_a_row:
            raise TrainingDivergedError(
                f"{message} Giving up; the last checkpoint is from before. `radio distill --allow-changes "
                "optimizer.learning_rate` goes on from it with another one."
            )
        return message

    def reset_streak(self) -> None:
        """Note a step that was not skipped."""
        self._in_a_row = 0

    def summary(self, num_steps: int) -> str:
        """Return a line for the end of a run of that many steps; empty if none was skipped.

        Raises:
            TrainingDivergedError: If most were.
        """
        if not self.total:
            return ""
        message = f"{self.total} of {num_steps} steps were skipped as not finite"
        if self.total > MAX_SHARE * num_steps:
            raise TrainingDivergedError(
                f"{message}, more than {MAX_SHARE:.0%}: the student is not exported. The checkpoints are kept. Start "
                "anew without the teachers that the skipped steps name, or with a lower `optimizer.learning_rate`."
            )
        return f"{message}."

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, as JSON values."""
        return {"in_a_row": self._in_a_row, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._in_a_row, self.total = state["in_a_row"], state["total"]


class LossesBySize(StepHook):
    """Adds up the losses of the steps of an interval, apart for each size of the student's images.

    Packed steps have images of many sizes each, so that the mean of an interval says enough: they are passed over.

    Args:
        partitions: The recipe's.
        device: The student's.
    """

    def __init__(self, partitions: Sequence[PartitionRecipe], device: torch.device) -> None:
        self.sizes, self.device = sizes_of(partitions), device
        self._sums: dict[str, dict[int, Tensor]] = {}
        self._counts: dict[str, dict[int, float]] = {}
        self._step: list[tuple[str, int, Tensor, float]] = []

    def see(self, batch: PlannedBatch, example: Example, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of a part, without their sum."""
        if batch.size_px is None:
            return
        share = len(batch) / batch.num_images
        for name, loss in losses.items():
            if name == "loss":
                continue
            teacher = teacher_of(name)
            is_learned = not teacher or teacher in batch.teachers  # others have a loss of zero, for their gradients
            self._step.append((name, batch.size_px, loss.detach() * share, share if is_learned else 0.0))

    def end_step(self, values: Mapping[str, Tensor], *, is_skipped: bool) -> None:
        """Take what was added since the last call into the interval, or forget it."""
        for name, size, loss, share in () if is_skipped else self._step:
            sums, counts = self._sums.setdefault(name, {}), self._counts.setdefault(name, {})
            sums[size] = sums.get(size, 0.0) + loss
            counts[size] = counts.get(size, 0.0) + share
        self._step = []

    def scalars(self) -> dict[str, float]:
        """Return the mean losses over all steps and ranks since the last call; all ranks must take part.

        Returns:
            By `KIND@SIZE/TEACHER`, for example "features@128px/sam3"; "mesa@128px" has no teacher. Nothing for sizes
            that were not drawn.
        """
        sums, counts = self._sums, self._counts
        self._sums, self._counts = {}, {}
        # Ranks that are bound to a partition may know others.
        names = list(dict.fromkeys(itertools.chain(*of_all_ranks(list(sums)))))
        if not names:
            return {}
        zero = torch.zeros((), device=self.device)
        totals = torch.stack([sums.get(name, {}).get(size, zero).float() for name in names for size in self.sizes])
        weights = zero.new_tensor([counts.get(name, {}).get(size, 0.0) for name in names for size in self.sizes])
        both = sum_over_ranks(torch.stack([totals, weights]))
        keys = [sized_name(name, size) for name in names for size in self.sizes]
        rows = zip(keys, *both.tolist(), strict=True)
        return {key: total / weight for key, total, weight in rows if weight > 0}


def sizes_of(partitions: Sequence[PartitionRecipe]) -> list[int]:
    """Return the sizes in pixels of images that are not packed."""
    return sorted({size for each in partitions if each.token_budget is None for size in each.sizes_px})


def sized_name(name: str, size: int) -> str:
    """Return the name of a loss at a size, "features@128px/sam3" for "features/sam3"."""
    kind, slash, teacher = name.partition("/")
    return f"{kind}@{size}px{slash}{teacher}"


PARTS = ("data", "teachers", "student")
ALONE = PARTS[:2]
"""Those in which a rank waits for no other."""
BETWEEN_STEPS = "between steps"
NUM_NORM_IMAGES = 8
"""Images whose features are measured, so that it takes little of a step's time. Our choice."""


class StepProfile:
    """Divides the time of single steps among data, teachers and student, and keeps some of their images.

    Kernels run on while Python goes ahead, so a watched step waits for all devices wherever one part follows another.
    Other steps only read the clock.

    Args:
        teachers: By name. They tell when they start and end; the rest of the wait for an example is the data's.
        device: The student's device.

    Attributes:
        phase: The part at work now, in every step, or "between steps".
        images: Images of the last watched step, up to `NUM_NORM_IMAGES`, `(num_images, 3, height, width)` in [0, 1].
    """

    def __init__(self, teachers: Mapping[str, nn.Module], device: torch.device) -> None:
        self.phase = BETWEEN_STEPS
        self.images: Tensor | None = None
        self._part: str | None = None
        self._began = self._since = self._entered = self._data_seconds = 0.0
        self._own_seconds: float | None = None
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._devices = {device}
        for teacher in teachers.values():
            self._devices.update(tensor.device for tensor in teacher.buffers())
            teacher.register_forward_pre_hook(lambda *_: self._enter_within("teachers"))
            teacher.register_forward_hook(lambda *_: self._enter_within("data"))

    def begin_step(self) -> None:
        """Watch the step that begins now."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self.images = self._own_seconds = None
        self._synchronize()
        self._part, self._began = "student", time.perf_counter()
        self._since = self._began

    def enter(self, part: str) -> None:
        """Note that one of `PARTS` begins and the one before ends; of a step that is not watched only `phase`."""
        now = time.perf_counter()
        if self.phase == "data":
            self._data_seconds += now - self._entered
        self.phase, self._entered = part, now
        if self._part is None:
            return
        self._synchronize()
        now = time.perf_counter()
        self._seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def meet(self) -> None:
        """Note that from now on this rank waits for others in the step; nothing if it is not watched."""
        if self._part is not None and self._own_seconds is None:
            self._synchronize()
            self._own_seconds = time.perf_counter() - self._began

    def own_seconds(self) -> float:
        """Return the time of the last watched step before `meet`; without that call of its data and teachers."""
        return sum(self._seconds[part] for part in ALONE) if self._own_seconds is None else self._own_seconds

    def take_data_seconds(self) -> float:
        """Return how long Python waited for data since the last call, in all steps."""
        seconds, self._data_seconds = self._data_seconds, 0.0
        return seconds

    def see(self, pixel_values: Tensor) -> None:
        """Keep the first images of the step; nothing if the step is not watched."""
        if self._part is not None and self.images is None:
            self.images = pixel_values[:NUM_NORM_IMAGES]

    def end_step(self) -> None:
        """End the step, watched or not."""
        self.enter("student")
        self._part, self.phase = None, BETWEEN_STEPS

    def shares(self) -> dict[str, float]:
        """Return `time_share/PART` of the last watched step; they sum to 1.

        "student" is all that is neither data nor teachers: its passes, losses, optimizer, average and statistics.
        """
        total = sum(self._seconds.values())
        return {f"time_share/{part}": seconds / total for part, seconds in self._seconds.items()}

    def _enter_within(self, part: str) -> None:
        """Teachers also run before the first step."""
        if self.phase != BETWEEN_STEPS:
            self.enter(part)

    def _synchronize(self) -> None:
        for device in self._devices:
            if device.type not in ("cpu", "meta"):
                torch.accelerator.synchronize(device)


def measure_block_norms(network: RadioModel, pixel_values: Tensor) -> dict[str, float]:
    """Measure how long the patch tokens are after every block; arguments are those of `block_norms`.

    Returns:
        `block_norm_mean/BLOCK` and `block_norm_max/BLOCK`: norms averaged over all patches of all images, and the
        largest. BLOCK counts from 00.
    """
    norms = block_norms(network, pixel_values)
    extremes = torch.stack([torch.stack([norm.mean(), norm.max()]) for norm in norms]).tolist()
    named: dict[str, float] = {}
    for index, (mean, largest) in enumerate(extremes):
        named |= {f"block_norm_mean/{index:02}": mean, f"block_norm_max/{index:02}": largest}
    return named


class Monitors(NamedTuple):
    """Measurements beside the losses of a run; all ranks take part in each.

    Attributes:
        recipe: Says how often.
        accelerator: Accelerator of this rank.
        watch: Shares of time and activations of a step that is logged.
        throughput: Speed and memory of the ranks.
        figures: Figures of held-out images; None without any.
        metrics: Measurements on held-out images; None without any.
        neighbors: kNN on labeled images; None without any.
    """

    recipe: Recipe
    accelerator: Accelerator
    watch: StepProfile
    throughput: Throughput
    figures: HeldOutFigures | None
    metrics: HeldOutMetrics | None
    neighbors: HeldOutNeighbors | None

    @classmethod
    def of_run(
        cls,
        recipe: Recipe,
        config: RadioConfig,
        teachers: Mapping[str, Teacher],
        accelerator: Accelerator,
        folder: Path,
    ) -> "Monitors":
        """Open held-out images and let the teachers see them.

        Args:
            recipe: The recipe.
            config: Configuration of the student.
            teachers: By name.
            accelerator: Accelerator of this rank.
            folder: Folder of the figures.
        """
        if line := describe_missing_images(recipe):
            accelerator.print(line, flush=True)
        figures = HeldOutFigures.of_run(recipe, teachers, accelerator.device, folder)
        metrics = HeldOutMetrics.of_run(recipe, config, teachers, accelerator)
        neighbors = HeldOutNeighbors.of_run(recipe, config, accelerator)
        watch = StepProfile(teachers, accelerator.device)
        throughput = Throughput(recipe, accelerator)
        return cls(recipe, accelerator, watch, throughput, figures, metrics, neighbors)

    def end_interval(self, num_steps: int, seconds: float) -> dict[str, float]:
        """Return the speed of the steps since the last call, as `Throughput.end_interval`."""
        return self.throughput.end_interval(
            num_steps, seconds, self.watch.take_data_seconds(), self.watch.own_seconds()
        )

    def block_norms(self, average: RadioModel) -> dict[str, float]:
        """Return the norms of the moving average's activations on images of the watched step, block by block."""
        if average.config.is_foreign:
            return {}
        assert self.watch.images is not None  # only asked after a watched step
        with self.accelerator.autocast():
            norms = measure_block_norms(average, self.watch.images)
        reshard(average)
        return norms

    @torch.no_grad()
    def draw(self, step: int, average: RadioModel, statistics: TeacherStatistics, log: ProgressLog) -> None:
        """Draw what the moving average has learned by now, if a figure is due."""
        every_steps = steps_between_figures(self.recipe)
        if self.figures is None or every_steps is None or step % every_steps:
            return
        with self.accelerator.autocast():
            pixels, window = self.figures.pixel_values, global_window(average.config)
            output = average(pixels, window_size=window, feature_format="NCHW", return_dict=True)
        reshard(average)
        if self.accelerator.is_main_process:
            standardizers = statistics.standardizers()
            features = {name: standardizers[name].invert(output.adaptors[name].features) for name in standardizers}
            try:
                log.record_image(step, self.figures.draw(step, features))
            except WriteError as error:  # other ranks go on
                self.accelerator.print(f"Step {step}: no figure. {error}", flush=True)

    def measure(
        self,
        step: int,
        average: RadioModel,
        student: RadioModel,
        statistics: TeacherStatistics,
        log: ProgressLog,
    ) -> None:
        """Measure the moving average, and the student if that is exported, on held-out images where that is due."""
        is_last, logging = step == self.recipe.schedule.num_steps, self.recipe.logging
        networks = {"": average}
        if not self.recipe.ema.is_exported:
            networks[EXPORTED_PREFIX] = student
        values: dict[str, float] = {}
        with log.apart():
            every_steps = logging.metrics_every_steps
            if self.metrics is not None and every_steps is not None and (step % every_steps == 0 or is_last):
                values |= self.metrics.measure(networks, statistics.standardizers())
            if self.neighbors is not None and (step % logging.knn_every_steps == 0 or is_last):
                values |= self.neighbors.measure(networks)
            if values:
                log.record_metrics(step, values)
