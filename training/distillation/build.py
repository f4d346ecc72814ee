"""Builds the parts of a run from its recipe, in three steps: the networks, the data, and the run itself."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from modeling_radio import RadioModel
from modeling_radio.core.files import write_text
from modeling_radio.core.interruption import StopRequest
from modeling_radio.core.ranks import on_first_rank, wait_for_ranks
from modeling_radio.data.image_table import Images
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.training.distillation import inputs
from modeling_radio.training.distillation.cpu import parallel_passes
from modeling_radio.training.distillation.hooks import build_hooks, build_options, extended
from modeling_radio.training.distillation.monitoring import Monitors, SkippedSteps
from modeling_radio.training.distillation.optimizers import build_optimizer
from modeling_radio.training.distillation.parts import RunParts
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
from modeling_radio.training.student.warm_start.projections import PrincipalProjections
from modeling_radio.training.student.warm_start.radio import WarmStart
from modeling_radio.training.student.warm_start.start import start_student
from modeling_radio.training.targets.examples import TargetSource
from modeling_radio.training.targets.statistics import TeacherStatistics
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.views.loaders import PartitionStreams
from modeling_radio.training.views.plan import BatchPlan


class _LearnerParts(NamedTuple):
    """The networks of a run, before their first weights are final and before they are prepared for several ranks.

    Attributes:
        model: The student's network.
        learner: `model` with the further heads of hooks.
        optimizer: Optimizer over the parameters of `learner`.
        statistics: Running statistics of the teachers.
        objective: The hooks that change the objective, by name.
        lineage: Teachers, weights and data that the student learns from, for its card.
        warm_start: Where its weights start from; None for random ones, and where a checkpoint will be loaded.
    """

    model: RadioModel
    learner: nn.Module
    optimizer: Optimizer
    statistics: TeacherStatistics
    objective: dict[str, StepHook]
    lineage: Lineage
    warm_start: WarmStart | None


class _DataParts(NamedTuple):
    """The images of a run and the teachers' outputs for them.

    Attributes:
        plan: Images of each step on this rank. Its recipe has numbers in the place of `accumulation_steps: auto`.
        source: Images and the teachers' outputs of each batch, in the order of the plan.
        fingerprint: Hash of the data's files, on the first rank.
        monitors: Measurements beside the losses; the held-out images were shown to the teachers.
    """

    plan: BatchPlan
    source: TargetSource
    fingerprint: str
    monitors: Monitors


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
    teachers = inputs.load_teachers(recipe, accelerator.device)
    images = inputs.open_images(recipe)
    networks = _build_networks(recipe, accelerator, teachers, output, init_from, is_new=is_new)
    data = _build_data(recipe, accelerator, images, teachers, networks.model, output, stop_request)
    recipe = data.plan.recipe
    for line in recipe.settings_without_effect():
        accelerator.print(line, flush=True)
    if is_new:
        _initialize(recipe, networks, data)
    return _build_parts(recipe, accelerator, networks, data, output)


def _build_networks(
    recipe: Recipe,
    accelerator: Accelerator,
    teachers: Mapping[str, Teacher],
    output: Path,
    init_from: str | None,
    *,
    is_new: bool,
) -> _LearnerParts:
    """Build the networks: the student, the heads of hooks, their optimizer and the teachers' statistics."""
    widths = inputs.widths_of_teachers(teachers)
    model = build_student(recipe, widths)
    check_export_settings(recipe.export, model.config)
    # Read now: the folder may be deleted during the run.
    lineage = on_first_rank(lambda: _write_lineage(recipe, model, output, init_from, is_new=is_new))
    warm_start = _warm_start(recipe, accelerator, model, teachers, output, init_from) if is_new else None
    regularize(model.to(accelerator.device), recipe)
    objective = build_options(recipe, widths, model, accelerator)
    learner = extended(model, objective).to(accelerator.device)
    muon_dtype = torch.bfloat16 if recipe.mixed_precision == "bf16" else torch.float32
    optimizer = build_optimizer(learner, recipe.optimizer, muon_dtype)
    estimation_steps = recipe.schedule.in_steps(recipe.standardization.estimation_steps)
    standardization = recipe.standardization.replace(estimation_steps=estimation_steps)
    statistics = TeacherStatistics(standardization, widths).to(accelerator.device)
    return _LearnerParts(model, learner, optimizer, statistics, objective, lineage, warm_start)


def _build_data(
    recipe: Recipe,
    accelerator: Accelerator,
    images: Images | PartitionStreams,
    teachers: dict[str, Teacher],
    model: RadioModel,
    output: Path,
    stop_request: StopRequest,
) -> _DataParts:
    """Plan the batches and open the teachers' outputs for them."""
    plan = inputs.plan_batches(recipe, accelerator, images, inputs.widths_of_teachers(teachers), output)
    recipe = plan.recipe
    if is_sharded(accelerator):
        plan.check_equal_passes()
    fingerprint = inputs.fingerprint_of(images, recipe)
    source = inputs.open_targets(recipe, accelerator, images, teachers, stop_request)
    monitors = Monitors.of_run(recipe, model.config, teachers, accelerator, output / "pictures")
    wait_for_ranks()  # the first one has run all teachers alone for the held-out images
    inputs.shard_teachers(recipe, teachers)
    return _DataParts(plan, source, fingerprint, monitors)


def _build_parts(
    recipe: Recipe, accelerator: Accelerator, networks: _LearnerParts, data: _DataParts, output: Path
) -> RunParts:
    """Prepare the networks for the ranks, and add what acts on each step."""
    model = networks.model
    ema = MovingAverage(model, recipe.ema.decay)
    shapes = blueprint(accelerator, model)
    student, optimizer = _prepare(recipe, accelerator, model, networks.learner, networks.optimizer)
    shard_average(accelerator, ema.module)
    parts = RunParts(
        recipe=recipe,
        accelerator=accelerator,
        model=model,
        student=student,
        optimizer=optimizer,
        ema=ema,
        statistics=networks.statistics,
        hooks=networks.objective,
        skipped=SkippedSteps(recipe.optimizer.max_bad_steps),
        plan=data.plan,
        source=data.source,
        parallel_passes=parallel_passes(recipe, accelerator),
        blueprint=shapes,
        fingerprint=data.fingerprint,
        lineage=networks.lineage,
        monitors=data.monitors,
    )
    return replace(parts, hooks=build_hooks(parts, output / "skipped"))


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


def _initialize(recipe: Recipe, networks: _LearnerParts, data: _DataParts) -> None:
    """Fit what a new run starts with to some batches: the teachers' statistics, and the student's projections."""
    statistics, warm_start = networks.statistics, networks.warm_start
    needs_projections = warm_start is not None and warm_start.needs_projections
    projections = PrincipalProjections(networks.model) if needs_projections else None
    num_steps = recipe.standardization.calibration_steps
    for _, example in data.source.examples(lambda: data.plan.steps(0, num_steps)):
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
    standardize_heads(networks.model, warm_start.kept if warm_start else [], statistics.standardizers())


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
