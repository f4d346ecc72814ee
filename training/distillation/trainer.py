"""The distillation loop: resume, look at teacher statistics, train step by step, export.

A step is a pure function of the state and the step number: every random number is derived from the seed and
the step, so a restarted run repeats an undisturbed one bit for bit.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.optim import Optimizer

from core.files import WriteError, remove_partial, write_file, write_text
from core.interruption import OutOfTime, StopRequest, TrainingDivergedError
from core.ranks import STEP_TIMEOUT, TIMEOUT, any_rank, on_first_rank, set_timeout
from core.seeds import derive_seed
from model_cards.heritage import Heritage
from modeling_radio import RadioModel
from training.distillation.build import (
    fingerprint_of,
    load_teachers,
    open_images,
    open_targets,
    plan_batches,
    widths_of_teachers,
)
from training.distillation.checkpoints import (
    CheckpointWriter,
    RunState,
    check_export,
    check_same_recipe,
    checkpoint_path,
    newest_checkpoint,
    read_state,
    warn_of_other_data,
)
from training.distillation.held_out import HeldOutMetrics, HeldOutPictures, describe_lack
from training.distillation.memory import keep_freed_memory
from training.distillation.monitoring import LossesBySize, SkippedSteps, StepWatch, measure_block_norms
from training.distillation.optimizers import build_optimizer, cosine_with_warmup, linear_warmup
from training.distillation.sharding import (
    assemble,
    average_gradients,
    blueprint,
    build_accelerator,
    is_replicated,
    is_sharded,
    reshard,
    shard_average,
    shard_within,
    whole_norm,
)
from training.distillation.step import compare_with_average, compare_with_teachers, parallel_passes
from training.distillation.tracking import (
    ProgressLog,
    check_trackers,
    left_out_of_streams,
    start_trackers,
    write_data_record,
)
from training.evaluation.provenance import heritage_of
from training.figures.progress import EXPORTED_PREFIX
from training.losses.contrastive import build_contrasts
from training.losses.weighting import build_weights
from training.recipe import Recipe, save_recipe
from training.student.build import (
    build_student,
    check_student_views,
    checkpoint_blocks,
    compile_blocks,
    regularize,
)
from training.student.ema import MovingAverage
from training.student.export import Normalizers, check_normalizers, export_student, fit_normalizers
from training.student.intermediate import build_taps, with_taps
from training.student.packing import answer_groups, token_counts
from training.student.parameters import frozen_trunk
from training.student.regularizers import update_spectral_norms
from training.student.warm_start.radio import standardize_heads
from training.student.warm_start.start import start_student
from training.targets.examples import Example
from training.targets.refits import follow_refits
from training.targets.statistics import TeacherStatistics
from training.teachers.base import Teacher
from training.views.plan import Batch


OUTDATED = ".outdated"
"""In a run's folder as long as `final/` is of an earlier state than its last checkpoint."""


class Distiller:
    """One distillation run.

    Args:
        recipe: Everything that decides it.
        output: Folder of the run; `runs/NAME` by default. Gets `recipe.yaml`, `checkpoints/`, `logs/`, `pictures/`
            and `final/`.
        init_from: Folder to start from instead of `student.init_from`: a stage knows that of the stage before.
        deadline: Second of `time.monotonic` after which the session ends with a checkpoint; None for no limit.
        allowed_changes: Settings, or sections, in which the recipe may differ from the newest checkpoint's.

    Raises:
        RecipeError: If the recipe names something unknown, or does not fit the output folder's checkpoints.
        CheckpointError: If none of these checkpoints is intact.
    """

    def __init__(
        self,
        recipe: Recipe,
        output: Path | None = None,
        init_from: Path | None = None,
        deadline: float | None = None,
        allowed_changes: Sequence[str] = (),
    ) -> None:
        check_trackers(recipe.logging.trackers)
        check_student_views(recipe)
        self.recipe = recipe
        self.output = Path("runs") / recipe.name if output is None else output
        self.init_from = recipe.student.init_from if init_from is None else str(init_from)
        self.stop_request = StopRequest(deadline)
        self.accelerator = build_accelerator(recipe, self.output)
        self.device = self.accelerator.device
        self.resumed_from = on_first_rank(lambda: newest_checkpoint(self.output / "checkpoints"))
        self.changes: list[str] = []
        if self.resumed_from is not None:
            saved = read_state(self.resumed_from)["recipe"]
            self.changes = check_same_recipe(self.resumed_from, saved, recipe, allowed_changes)
        else:
            on_first_rank(lambda: check_export(self.output, recipe, allowed_changes))

    @property
    def is_finished(self) -> bool:
        """Whether an earlier session trained to the end and exported the student, and what is saved has this recipe."""
        last = checkpoint_path(self.output / "checkpoints", self.recipe.schedule.num_steps)
        is_trained = self.resumed_from is not None and self.resumed_from >= last
        is_exported = (self.output / "final").is_dir() and not (self.output / OUTDATED).exists()
        return is_trained and not self.changes and is_exported

    def run(self, stop_at: int | None = None) -> Path | None:
        """Train to the end, from the newest checkpoint if there is one, and export the student.

        Args:
            stop_at: End the session with a checkpoint after this many steps of the run; the same command goes
                on.

        Returns:
            The exported folder, or None if the run stopped before its end.

        Raises:
            Interrupted: After SIGINT, SIGTERM or SIGUSR1, once the state is saved; `OutOfTime` after the deadline.
            TrainingDivergedError: After too many non-finite steps in a row; the last checkpoint is from
                before them. Or in the end, if most steps were skipped as such; checkpoints are kept.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        # A signal ends what comes before the first step and after the last at once: there is nothing to save.
        on_first_rank(self._save_recipe)
        self._build()
        if self.resumed_from is not None:
            self._load(self.resumed_from)
        num_steps = self.recipe.schedule.num_steps
        with self.stop_request:
            self._train(num_steps if stop_at is None else min(stop_at, num_steps))
        if self.step < num_steps:
            return None
        if summary := self.skipped.summary(self.step):
            self.accelerator.print(summary, flush=True)
        return self._export()

    # Setting up

    def _save_recipe(self) -> None:
        for folder in (self.output, self.output / "checkpoints", self.output / "pictures"):
            remove_partial(folder)
        write_file(self.output / "recipe.yaml", lambda path: save_recipe(self.recipe, path))

    def _remember_heritage(self) -> Heritage:
        """Return what the student learns from, with what earlier sessions and stages knew of it; keep it for later."""
        known = Heritage() if self.resumed_from is None else Heritage.find(self.output)
        if self.init_from is not None and self.init_from != self.recipe.student.init_from:
            known = known.joined(Heritage.find(Path(self.init_from)))
        heritage = known.joined(heritage_of(self.model.config, self.recipe))
        heritage.save(self.output)
        return heritage

    def _build(self) -> None:
        """Build teachers, student, optimizer, average, statistics and the source of targets."""
        recipe = self.recipe
        teachers = load_teachers(recipe, self.device)
        widths = widths_of_teachers(teachers)
        images = open_images(recipe, self.accelerator)
        self.model: RadioModel = build_student(recipe, widths)
        check_normalizers(recipe.export, self.model.config)
        self.heritage = on_first_rank(self._remember_heritage)  # now: a folder that it reads may go away
        kept_heads = self._warm_start(teachers)
        regularize(self.model.to(self.device), recipe)
        matrix_dtype = torch.bfloat16 if recipe.mixed_precision == "bf16" else torch.float32
        self.taps = build_taps(recipe, self.model)
        if self.taps is not None:
            self.accelerator.print(self.taps.describe(), flush=True)
        learner = with_taps(self.model, self.taps).to(self.device)
        optimizer = build_optimizer(learner, recipe.optimizer, matrix_dtype)
        self.statistics = TeacherStatistics(recipe.standardization, widths, recipe.inner_depths()).to(self.device)
        self.weights = build_weights(recipe, widths, self.device)
        self.contrasts = build_contrasts(recipe, widths, self.device)
        accelerator, patch_size = self.accelerator, self.model.config.patch_size
        self.plan = plan_batches(recipe, accelerator, images, patch_size, self.output)
        if is_sharded(accelerator):
            self.plan.check_equal_passes()
        self.data_fingerprint = fingerprint_of(images, recipe, accelerator)
        self.source = open_targets(recipe, accelerator, images, teachers, self.stop_request)
        self.watch = StepWatch(teachers, self.device)
        self.losses_by_size = LossesBySize(recipe.partitions)
        self.pictures = HeldOutPictures.of_run(recipe, teachers, self.device, self.output / "pictures")
        self.metrics = HeldOutMetrics.of_run(recipe, self.model.config, teachers, accelerator)
        for line in [*recipe.idle_parts(), describe_lack(recipe)]:
            if line:
                accelerator.print(line, flush=True)
        self.step = 0
        self._is_skipped = self._must_stop = self._is_asked_to = self._is_writing = False
        self.skipped = SkippedSteps(recipe.optimizer.max_bad_steps)
        if self.resumed_from is None:
            self._calibrate()
            standardize_heads(self.model, kept_heads, self.statistics.standardizers())
        self.ema = MovingAverage(self.model, recipe.ema.decay)
        self._distribute(learner, optimizer)
        modules = {"student": self.model, "ema": self.ema, "statistics": self.statistics}
        extras = {"balancing": self.weights, "contrasts": self.contrasts, "taps": self.taps}
        modules |= {name: module for name, module in extras.items() if module is not None and module.state_dict()}
        self.state = RunState(modules, self.optimizer, self.skipped, self.source)
        self.writer = CheckpointWriter(self.output / "checkpoints", recipe.checkpoints.keep)

    def _warm_start(self, teachers: Mapping[str, Teacher]) -> list[str]:
        """Copy what the source to start from has for a new run; return the teachers whose heads came along."""
        if self.init_from is None or self.resumed_from is not None:
            return []
        is_of_recipe = self.init_from == self.recipe.student.init_from
        blocks = self.recipe.student.init_blocks if is_of_recipe else None
        report = start_student(self.model, self.init_from, teachers, blocks)
        self.accelerator.print(report.describe(), flush=True)
        if self.accelerator.is_main_process:
            write_text(self.output / "warm_start.json", json.dumps(asdict(report), indent=2) + "\n")
        return report.kept

    def _distribute(self, learner: torch.nn.Module, optimizer: Optimizer) -> None:
        """Prepare the student for the ranks and its moving average alike; teachers stay as they are.

        Args:
            learner: The student, with the heads of its taps around it.
            optimizer: Of all of its parameters.
        """
        options = self.recipe.student
        self.blueprint = blueprint(self.accelerator, self.model)
        if options.gradient_checkpointing:
            checkpoint_blocks(self.model)
        if options.compile:
            num_graphs = compile_blocks(self.model, self.recipe)
            self.accelerator.print(f"Blocks are compiled as they are met, to at most {num_graphs} graphs.", flush=True)
        if learner is not self.model:
            shard_within(self.accelerator, self.model)
        self.student, self.optimizer = self.accelerator.prepare(learner, optimizer)
        self.parallel_passes = parallel_passes(self.recipe, self.accelerator)
        shard_average(self.accelerator, self.ema.module)

    # Training

    def _calibrate(self) -> None:
        """Look at some batches of teacher features before the first step."""
        num_steps = self.recipe.standardization.calibration_steps
        for _, example in self.source.examples(lambda: self.plan.steps(0, num_steps)):
            finite = {name: target for name, target in example.targets.items() if target.is_finite()}
            for name in example.targets.keys() - finite.keys():
                print(f"Calibration leaves out a batch of teacher {name!r}: its answer is not finite.", flush=True)
            self.statistics.update(finite)
        self.statistics.end_step()
        self.statistics.refit()

    def _train(self, last_step: int) -> None:
        recipe = self.recipe
        self.student.train()
        num_steps, first_step = recipe.schedule.num_steps, self.step
        start_trackers(self.accelerator, recipe, self.output, is_new=first_step == 0)
        log = ProgressLog(
            self.accelerator, recipe.logging, first_step, num_steps, self.plan.images_per_step, self.output
        )
        examples = self.source.examples(lambda: self.plan.steps(first_step, last_step))
        try:
            if self.changes and self.step >= last_step:
                self._save()  # with the new recipe: no step will
            while self.step < last_step:
                if log.is_due(self.step + 1):
                    self.watch.begin_step()
                values = self._train_step(examples)
                self.watch.end_step()
                self.step += 1
                if self.step == first_step + 1:
                    set_timeout(STEP_TIMEOUT)
                log.record(self.step, values, self._settings)
                self._draw_picture(log)
                self._measure(log)
                if not self._is_writing:
                    self.writer.finish()
                self._stop_if_asked()
                if self.step % recipe.checkpoints.every_steps == 0 or self.step == last_step:
                    self._save()
            self.writer.finish()
        except TrainingDivergedError:  # on all ranks
            self.writer.finish()
            raise
        finally:
            set_timeout(TIMEOUT)
            log.close()
            # Not `end_training`, which also parts the ranks: they have yet to export.
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _train_step(self, examples: Iterator[tuple[Batch, Example]]) -> dict[str, Tensor]:
        """Do one optimizer step; return the losses, weighted as they were added up, or none if it is skipped."""
        self._set_learning_rate()
        update_spectral_norms(self.model)
        changes = self.statistics.begin_step(self.step)
        follow_refits(changes, [self.model, cast(RadioModel, self.ema.module)], self.optimizer, self.taps)
        self.weights.begin_step(self.step)
        # Ranks exchange gradients where they lie (`gradient_as_bucket_view`): others would be there beside them.
        self.optimizer.zero_grad(set_to_none=not is_replicated(self.accelerator))
        values: dict[str, Tensor] = {}
        for batch, example, losses in self._passes(examples):
            self.losses_by_size.add(batch, losses)
            self.weights.observe(batch, losses)
            for name, loss in losses.items():
                values[name] = values.get(name, 0.0) + loss.detach() * batch.weight
            self.statistics.update(example.targets)
        self.statistics.end_step()
        self.weights.end_step()
        if self._is_trunk_frozen:
            reshard(self.student)  # what is not run backward stays gathered
            if is_replicated(self.accelerator):
                average_gradients(self.accelerator, self.student.parameters())
        values["gradient_norm"] = self._update_weights(values)
        self.losses_by_size.end_step(is_counted=not self._is_skipped)
        return {} if self._is_skipped else values

    def _passes(self, examples: Iterator[tuple[Batch, Example]]) -> Iterator[tuple[Batch, Example, dict[str, Tensor]]]:
        """Run the step's passes forward and backward; yield what each saw, and its losses."""
        numbers = range(self.plan.batches_per_step)
        is_fetched_first = self.parallel_passes is not None or self.contrasts is not None
        parts = [self._fetch(examples) for _ in numbers if is_fetched_first]
        if self.contrasts is not None:
            self.contrasts.begin_step(parts)
        if self.parallel_passes is not None:
            with self._trunk_as_due():
                learned = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
                losses = self.parallel_passes.run(parts, self._weighted_losses, learned)
                yield from ((*part, own) for part, own in zip(parts, losses, strict=True))
            return
        for number in numbers:
            part = parts[number] if parts else self._fetch(examples)
            self._seed(part[0])
            with self._gradients_in_sync(number == numbers[-1]), self._trunk_as_due():
                total, losses = self._weighted_losses(part)
                self.accelerator.backward(total)
            yield *part, losses

    def _fetch(self, examples: Iterator[tuple[Batch, Example]]) -> tuple[Batch, Example]:
        self.watch.enter("data")
        batch, example = next(examples)
        self.watch.enter("student")
        self.watch.see(example.pixel_values[0])
        return batch, example

    def _weighted_losses(self, part: tuple[Batch, Example]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what a pass adds to what the step minimizes, and its losses by name."""
        losses = self._losses(*part)
        return losses["loss"] * part[0].weight, losses

    def _seed(self, batch: Batch) -> None:
        """Seed torch's generator for the noise on the weights (and dropout, where there is any).

        Call it after fetching the batch: starting a data loader draws from torch's generator, and not in every step.
        """
        part = "all" if self.recipe.damp.is_shared else batch.rows[0]
        # On a CPU the other one would format a traceback for each kind of device that is not there.
        seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed(derive_seed(self.recipe.seed, "noise", batch.partition, batch.step, part))

    def _losses(self, batch: Batch, example: Example) -> dict[str, Tensor]:
        """Compare the student with every teacher and its average: losses by name, `"loss"` being the weighted sum."""
        draws = batch.uniform("student", self.model.num_draws).to(self.device, non_blocking=True)
        options: dict[str, Any] = {"window_size": batch.vitdet_window or "global", "draws": draws}
        counts = token_counts(self.recipe, self.model.config, batch, *example.pixel_values[0].shape[-2:])
        if counts is not None:
            options["num_tokens"] = counts
        # Accelerate adds autocast under DDP but not under FSDP.
        with self.accelerator.autocast():
            answer = answer_groups(self.student, example.pixel_values, self.model.patch_size, **options)
        parts = (self.statistics, self.weights, self.contrasts)
        taps = () if self.taps is None else self.taps.taps
        losses = compare_with_teachers(self.recipe, *parts, batch, example, answer, taps)
        if example.average is not None:
            average = self._average_features(example.average.pixel_values)
            losses["mesa"] = compare_with_average(answer.features, average, example.average.shifts, example.extents)
            losses["loss"] = losses["loss"] + self.recipe.mesa.weight * losses["mesa"]
        return losses

    @torch.no_grad()
    def _average_features(self, groups: Sequence[Tensor]) -> list[Tensor]:
        """Return the backbone's features of the moving average: nothing random, and global attention."""
        with self.accelerator.autocast():
            return answer_groups(
                self.ema.module, groups, self.model.patch_size, window_size="global", adaptor_names=[]
            ).features

    def _update_weights(self, values: dict[str, Tensor]) -> Tensor:
        """Clip, and step unless a gradient is not finite; return the gradient's norm before clipping."""
        clip_norm = self.recipe.optimizer.clip_norm
        max_norm = float("inf") if clip_norm is None else clip_norm
        norm = whole_norm(torch.nn.utils.clip_grad_norm_(self.student.parameters(), max_norm))
        is_bad = ~(torch.isfinite(norm) & torch.isfinite(values["loss"]))
        # The one place of a step where Python waits for the device: what it decides here must be the same on all ranks.
        flags = [is_bad, self.stop_request.is_set, self.stop_request.is_asked, self.writer.is_busy]
        self._is_skipped, self._must_stop, self._is_asked_to, self._is_writing = any_rank(flags, self.device)
        if self._is_skipped:
            self._count_bad_step(values)
        else:
            self.skipped.end_row()
            if self.contrasts is not None:
                self.contrasts.end_step()
            self.optimizer.step()
            reshard(self.ema.module)
            self.ema.update_parameters(self.model)
        return norm

    def _count_bad_step(self, values: dict[str, Tensor]) -> None:
        """Count and report a step that all ranks skip; give up after too many in a row."""
        bad = [name for name, value in values.items() if not torch.isfinite(value)]
        reports = [(self.accelerator.process_index, ", ".join(bad))] if bad else []
        causes = [f"{names} on rank {rank}" for rank, names in gather_object(reports)] or ["gradient"]
        self.accelerator.print(self.skipped.add(self.step, causes), flush=True)

    def _set_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(is_trunk=group["is_trunk"])

    def _learning_rate(self, *, is_trunk: bool) -> float:
        """Return the learning rate of this step; a trunk that was frozen warms up once more, from when it wakes."""
        optimizer, schedule = self.recipe.optimizer, self.recipe.schedule
        factor = cosine_with_warmup(self.step, schedule.num_steps, schedule.warmup_steps, schedule.final_fraction)
        if is_trunk and optimizer.trunk_frozen_steps:
            warmup_steps = optimizer.trunk_warmup_steps
            warmup_steps = schedule.warmup_steps if warmup_steps is None else warmup_steps
            factor *= linear_warmup(self.step - optimizer.trunk_frozen_steps, warmup_steps)
        return optimizer.learning_rate * factor

    @property
    def _is_trunk_frozen(self) -> bool:
        return self.step < self.recipe.optimizer.trunk_frozen_steps

    def _trunk_as_due(self) -> contextlib.AbstractContextManager:
        """Return the context of a forward pass: no graph below the heads while the trunk is frozen."""
        return frozen_trunk(self.model) if self._is_trunk_frozen else contextlib.nullcontext()

    def _gradients_in_sync(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Return the context of a backward pass: ranks exchange gradients once per step, with its last batch.

        DDP would wait for those of a frozen trunk: then they are exchanged after the pass.
        """
        is_exchanged_later = self._is_trunk_frozen and is_replicated(self.accelerator)
        if is_last and not is_exchanged_later:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(self.student)

    def _settings(self) -> dict[str, float]:
        """Return what is recorded beside the losses; all ranks must take part."""
        assert self.watch.images is not None  # only asked after a watched step
        with self.accelerator.autocast():
            norms = measure_block_norms(cast(RadioModel, self.ema.module), self.watch.images)
        reshard(self.ema.module)
        learning_rates = {"learning_rate": self._learning_rate(is_trunk=False)}
        by_size = self.losses_by_size.end_interval(self.accelerator)
        scalars = self.statistics.scalars() | self.weights.scalars()
        if self.taps is not None:
            scalars["weight/taps"] = self.recipe.taps.weight_at(self.step - 1, self.recipe.schedule.num_steps)
        return {**by_size, **learning_rates, **scalars, **self.watch.shares(), **norms}

    @torch.no_grad()
    def _draw_picture(self, log: ProgressLog) -> None:
        """Show what the moving average has learned by now, if a picture is due; all ranks must take part."""
        every_steps = self.recipe.logging.picture_every_steps
        if self.pictures is None or every_steps is None or self.step % every_steps:
            return
        with self.accelerator.autocast():
            output = self.ema.module(
                self.pictures.pixel_values, window_size="global", feature_format="NCHW", return_dict=True
            )
        reshard(self.ema.module)
        if self.accelerator.is_main_process:
            standardizers = self.statistics.standardizers()
            answers = {name: standardizers[name].invert(output.adaptors[name].features) for name in standardizers}
            try:
                log.record_picture(self.step, self.pictures.draw(self.step, answers))
            except WriteError as error:  # other ranks go on
                self.accelerator.print(f"Step {self.step}: no picture. {error}", flush=True)

    def _measure(self, log: ProgressLog) -> None:
        """Measure the moving average, and what is exported, on held-out images if that is due; all ranks take part."""
        every_steps = self.recipe.logging.metrics_every_steps
        is_last = self.step == self.recipe.schedule.num_steps
        if self.metrics is None or every_steps is None or (self.step % every_steps and not is_last):
            return
        networks = {"": cast(RadioModel, self.ema.module)}
        if not self.recipe.ema.is_exported:
            networks[EXPORTED_PREFIX] = self.model
        with log.apart():
            log.record_metrics(self.step, self.metrics.measure(networks, self.statistics.standardizers()))

    def _stop_if_asked(self) -> None:
        if self._must_stop:
            self._save()
            self.writer.finish()
            message = (
                f"Stopped after step {self.step} of {self.recipe.schedule.num_steps}, saved in "
                f"{str(self.output / 'checkpoints')!r}: the same command resumes."
            )
            raise self.stop_request.interrupted(message) if self._is_asked_to else OutOfTime(message)

    # State

    def _save(self) -> None:
        """Begin a checkpoint, which the next steps do not wait for; after the last one an older export is outdated."""
        is_last = self.step >= self.recipe.schedule.num_steps
        if is_last and self.accelerator.is_main_process and (self.output / "final").is_dir():
            (self.output / OUTDATED).touch()  # or a stage killed now would hand it on
        facts = {"step": self.step, "data": self.data_fingerprint, "recipe": self.recipe.to_dict()}
        places = self.state.save(self.writer, facts, is_main_process=self.accelerator.is_main_process)
        if self.recipe.data.streaming and self.accelerator.is_main_process:
            write_data_record(self.output, self.recipe, left_out_of_streams(places))

    def _load(self, folder: Path) -> None:
        saved = self.state.load(folder)
        self.step = saved["step"]
        if self.changes:
            changes = "; ".join(self.changes)
            self.accelerator.print(f"Going on from step {self.step} with changes: {changes}.", flush=True)
        if self.accelerator.is_main_process:
            warn_of_other_data(folder, saved["data"], self.data_fingerprint)

    def _export(self) -> Path:
        """Write `final/` from the moving average (or the student itself)."""
        path = self.output / "final"
        network = cast(RadioModel, self.ema.module if self.recipe.ema.is_exported else self.model)
        normalizers = self._fit_normalizers(network)
        model = assemble(network, self.blueprint)
        standardizers = self.statistics.standardizers()

        def export() -> None:
            export_student(cast(RadioModel, model), standardizers, path, normalizers, self.heritage)
            (self.output / OUTDATED).unlink(missing_ok=True)

        on_first_rank(export)
        return path

    def _fit_normalizers(self, network: RadioModel) -> Normalizers | None:
        """Fit normalizers to what the run would have seen next, if the recipe wants any; all ranks must take part."""
        options, first_step = self.recipe.export, self.step
        if not options.has_normalizers:
            return None
        num_steps = -(-options.normalizer_images // self.plan.images_per_step)
        images = self.source.student_images(lambda: self.plan.steps(first_step, first_step + num_steps))
        normalizers = fit_normalizers(network, images, options)
        reshard(network)
        self.accelerator.print(f"Feature normalizers: fitted to {num_steps * self.plan.images_per_step} images.")
        return normalizers
