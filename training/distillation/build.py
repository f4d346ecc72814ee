"""The parts of a run, built once from its recipe: student, optimizer, moving average, statistics, plan and targets."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from modeling_radio import RadioModel
from modeling_radio.core.files import write_text
from modeling_radio.core.interruption import StopRequest
from modeling_radio.core.ranks import on_first_rank, wait_for_ranks
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.training.distillation import inputs
from modeling_radio.training.distillation.cpu import ParallelPasses, parallel_passes
from modeling_radio.training.distillation.hooks import build_hooks, build_options, extended
from modeling_radio.training.distillation.monitoring import Monitors, SkippedSteps
from modeling_radio.training.distillation.optimizers import build_optimizer
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.student.build import build_student, checkpoint_blocks, compile_blocks, regularize
from modeling_radio.training.student.ema import MovingAverage
from modeling_radio.training.student.export import check_export_settings
from modeling_radio.training.student.provenance import lineage_of
from modeling_radio.training.student.refits import standardize_heads
from modeling_radio.training.student.sharding import (
    blueprint,
    is_sharded,
    shard_average,
    shard_by_own_parts,
    shard_within,
)
from modeling_radio.training.student.varlen import check_varlen
from modeling_radio.training.student.warm_start.projections import PrincipalProjections
from modeling_radio.training.student.warm_start.radio import WarmStart
from modeling_radio.training.student.warm_start.start import start_student
from modeling_radio.training.targets.examples import TargetSource
from modeling_radio.training.targets.statistics import TeacherStatistics
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.views.plan import BatchPlan


@dataclass(frozen=True)
class RunParts:
    """Everything that the steps of a run work with.

    Attributes:
        recipe: The recipe, with the numbers that follow from the device.
        accelerator: This rank's accelerator.
        model: The student's network.
        student: `model` with the further heads of hooks, wrapped by Accelerate for DDP or FSDP: forward passes call it.
        optimizer: Optimizer over the parameters of `student`.
        ema: The moving average of `model`.
        statistics: Running statistics of the teachers: they standardize targets and balance summary losses.
        hooks: All that acts on each step, by name, in the order of calls.
        skipped: The count of skipped steps.
        plan: Images of each step on this rank.
        source: Images and the teachers' outputs of each batch, in the order of the plan.
        parallel_passes: Runs several passes of a step at the same time; None for one after the other.
        blueprint: Copy on the meta device into which FSDP's shards are gathered for the export; None if not sharded.
        fingerprint: Hash of the data's files, on the first rank.
        lineage: Teachers, weights and data that the student learns from, for its card.
        monitors: Measurements beside the losses.
    """

    recipe: Recipe
    accelerator: Accelerator
    model: RadioModel
    student: nn.Module
    optimizer: Optimizer
    ema: MovingAverage
    statistics: TeacherStatistics
    hooks: Mapping[str, StepHook]
    skipped: SkippedSteps
    plan: BatchPlan
    source: TargetSource
    parallel_passes: ParallelPasses | None
    blueprint: nn.Module | None
    fingerprint: str
    lineage: Lineage
    monitors: Monitors

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.accelerator.device

    @property
    def average(self) -> RadioModel:
        """The network whose weights are the moving average."""
        return cast(RadioModel, self.ema.module)


def build_run(
    recipe: Recipe,
    accelerator: Accelerator,
    output: Path,
    stop_request: StopRequest,
    *,
    init_from: str | None,
    is_new: bool,
) -> RunParts:
    """Build the parts of a run; all ranks must take part.

    Args:
        recipe: Everything that decides the run.
        accelerator: This rank's accelerator.
        output: Folder of the run.
        stop_request: Its deadline ends the writing of a feature cache.
        init_from: Where the student's weights start from; None for random ones.
        is_new: Whether no checkpoint will be loaded: weights are then initialized, and statistics calibrated.

    Raises:
        RecipeError: If the recipe does not fit its images, teachers or ranks.
        OutOfTime: If the deadline passes while a cache is written; the part written is kept.
    """
    check_varlen(recipe, accelerator.device)
    teachers = inputs.load_teachers(recipe, accelerator.device)
    widths = inputs.widths_of_teachers(teachers)
    images = inputs.open_images(recipe)
    model = build_student(recipe, widths)
    check_export_settings(recipe.export, model.config)
    # Read now: the folder may be deleted during the run.
    lineage = on_first_rank(lambda: _write_lineage(recipe, model, output, init_from, is_new=is_new))
    warm_start = _warm_start(recipe, accelerator, model, teachers, output, init_from) if is_new else None
    regularize(model.to(accelerator.device), recipe)
    muon_dtype = torch.bfloat16 if recipe.mixed_precision == "bf16" else torch.float32
    options = build_options(recipe, widths, model, accelerator)
    learner = extended(model, options).to(accelerator.device)
    optimizer = build_optimizer(learner, recipe.optimizer, muon_dtype)
    estimation_steps = recipe.schedule.in_steps(recipe.standardization.estimation_steps)
    standardization = recipe.standardization.replace(estimation_steps=estimation_steps)
    statistics = TeacherStatistics(standardization, widths, recipe.inner_depths()).to(accelerator.device)
    plan = inputs.plan_batches(recipe, accelerator, images, widths, output)
    recipe = plan.recipe  # with numbers for `accumulation_steps: auto`
    if is_sharded(accelerator):
        plan.check_equal_passes()
    fingerprint = inputs.fingerprint_of(images, recipe, accelerator)
    source = inputs.open_targets(recipe, accelerator, images, teachers, stop_request)
    monitors = Monitors.of_run(recipe, model.config, teachers, accelerator, output / "pictures")
    wait_for_ranks()  # the first one has run all teachers alone for the held-out images
    inputs.shard_teachers(recipe, teachers)
    for line in recipe.settings_without_effect():
        accelerator.print(line, flush=True)
    if is_new:
        needs_projections = warm_start is not None and warm_start.needs_projections
        _calibrate(recipe, statistics, plan, source, PrincipalProjections(model) if needs_projections else None)
        standardize_heads(model, warm_start.kept if warm_start else [], statistics.standardizers())
    ema = MovingAverage(model, recipe.ema.decay)
    shapes = blueprint(accelerator, model)

    student, optimizer = _prepare(recipe, accelerator, model, learner, optimizer)
    shard_average(accelerator, ema.module)
    skipped = SkippedSteps(recipe.optimizer.max_bad_steps)
    hooks = build_hooks(
        recipe,
        options,
        model=model,
        average=cast(RadioModel, ema.module),
        optimizer=optimizer,
        statistics=statistics,
        accelerator=accelerator,
        throughput=monitors.throughput,
        skipped=skipped,
        folder=output / "skipped",
    )
    return RunParts(
        recipe=recipe,
        accelerator=accelerator,
        model=model,
        student=student,
        optimizer=optimizer,
        ema=ema,
        statistics=statistics,
        hooks=hooks,
        skipped=skipped,
        plan=plan,
        source=source,
        parallel_passes=parallel_passes(recipe, accelerator),
        blueprint=shapes,
        fingerprint=fingerprint,
        lineage=lineage,
        monitors=monitors,
    )


def _write_lineage(recipe: Recipe, model: RadioModel, output: Path, init_from: str | None, *, is_new: bool) -> Lineage:
    """Return what the student learns from, with what earlier sessions and stages knew; keep it in the run's folder."""
    known = Lineage() if is_new else Lineage.find(output)
    if init_from is not None and init_from != recipe.student.init_from:
        known = known.joined(Lineage.find(Path(init_from)))
    lineage = known.joined(lineage_of(model.config, recipe))
    lineage.save(output)
    return lineage


def _warm_start(
    recipe: Recipe,
    accelerator: Accelerator,
    model: RadioModel,
    teachers: Mapping[str, Teacher],
    output: Path,
    init_from: str | None,
) -> WarmStart | None:
    """Copy matching weights from `init_from`."""
    if init_from is None:
        return None
    blocks = recipe.student.init_blocks if init_from == recipe.student.init_from else None
    report = start_student(model, init_from, teachers, blocks)
    accelerator.print(report.describe(), flush=True)
    if accelerator.is_main_process:
        write_text(output / "warm_start.json", json.dumps(asdict(report), indent=2) + "\n")
    return report


def _calibrate(
    recipe: Recipe,
    statistics: TeacherStatistics,
    plan: BatchPlan,
    source: TargetSource,
    projections: PrincipalProjections | None,
) -> None:
    """Gather the teachers' statistics over some batches before the first step, and the student's projections."""
    num_steps = recipe.standardization.calibration_steps
    for _, example in source.examples(lambda: plan.steps(0, num_steps)):
        finite = {name: target for name, target in example.targets.items() if target.is_finite()}
        for name in example.targets.keys() - finite.keys():
            print(f"Calibration leaves out a batch of teacher {name!r}: its output is not finite.", flush=True)
        statistics.update(finite)
        if projections is not None:
            projections.update(example.pixel_values)
    if projections is not None:
        projections.fit()
    statistics.end_step()
    statistics.refit()


def _prepare(
    recipe: Recipe, accelerator: Accelerator, model: RadioModel, learner: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """Prepare the student and its optimizer for the ranks; teachers stay as they are."""
    if recipe.student.gradient_checkpointing:
        checkpoint_blocks(model)
    if recipe.student.compile:
        num_graphs = compile_blocks(model, recipe)
        accelerator.print(f"Blocks are compiled lazily, to at most {num_graphs} graphs.", flush=True)
    shard_by_own_parts(accelerator, model)
    if learner is not model:
        shard_within(accelerator, model)
    return accelerator.prepare(learner, optimizer)
