"""The distillation loop: resume, train step by step, save, export.

`build.py` builds what a step works with, `step.py` has the losses of a batch. A step is a pure function of the state
and the step number: every random number is derived from the seed and the step. So a restarted run repeats an
uninterrupted one; on a CPU bit for bit, with the same number of threads and the same instruction set.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from modeling_radio import RadioModel
from modeling_radio.core.files import remove_partial, write_file
from modeling_radio.core.heartbeats import Heartbeats
from modeling_radio.core.interruption import OutOfTime, StopRequest, TrainingDivergedError
from modeling_radio.core.ranks import STEP_TIMEOUT, TIMEOUT, any_rank, on_first_rank, set_timeout
from modeling_radio.core.seeds import derive_seed
from modeling_radio.training.distillation.build import build_run
from modeling_radio.training.distillation.checkpoints import (
    CheckpointWriter,
    RunState,
    check_export,
    check_same_dealing,
    check_same_recipe,
    checkpoint_path,
    newest_checkpoint,
    read_state,
    warn_of_other_arithmetic,
    warn_of_other_data,
)
from modeling_radio.training.distillation.cpu import keep_freed_memory
from modeling_radio.training.distillation.hooks import states_of
from modeling_radio.training.distillation.monitoring import ALONE
from modeling_radio.training.distillation.parts import RunParts
from modeling_radio.training.distillation.schedule import cosine_with_warmup, linear_warmup
from modeling_radio.training.distillation.step import batch_losses
from modeling_radio.training.distillation.tracking import (
    GRADIENT_NORM,
    ProgressLog,
    check_trackers,
    left_out_of_streams,
    start_trackers,
    write_data_record,
)
from modeling_radio.training.planning.memory import has_auto, with_parts
from modeling_radio.training.recipes.recipe import RECIPE_FILE, Recipe, save_recipe
from modeling_radio.training.recipes.sections import AUTO
from modeling_radio.training.student.build import check_student_views, with_measured_channels
from modeling_radio.training.student.export import Normalizers, export_student, fit_normalizers
from modeling_radio.training.student.parameters import frozen_trunk
from modeling_radio.training.student.sharding import (
    assemble,
    average_gradients,
    build_accelerator,
    is_replicated,
    reshard,
    whole_norm,
)
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.views.dealing import DEALING
from modeling_radio.training.views.plan import PlannedBatch


OUTDATED = ".outdated"
"""Marker in a run's folder: `final/` is older than the last checkpoint."""
NORMALIZER_IMAGES = 2048
"""Training images that normalizers are fitted to, at least. Our choice."""


def noise_of(batch: PlannedBatch) -> int:
    """Return which noise a part of a step gets: its first row, as each rank and each part has its own."""
    return batch.rows[0]


class Distiller:
    """One distillation run.

    Args:
        recipe: Everything that decides it.
        output: Folder of the run; `runs/NAME` by default. Gets `recipe.yaml`, `checkpoints/`, `logs/`, `pictures/`
            and `final/`.
        init_from: Folder to start from instead of `student.init_from`: the export of the stage before.
        deadline: `time.monotonic()` in seconds after which the session ends with a checkpoint; None for no limit.
        allowed_changes: Settings, or sections, in which the recipe may differ from the newest checkpoint's.
        device: See `build_accelerator`.

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
        device: str | None = None,
    ) -> None:
        check_trackers(recipe.logging.trackers)
        check_student_views(recipe)
        self.recipe = recipe
        self.output = Path("runs") / recipe.name if output is None else output
        self.init_from = recipe.student.init_from if init_from is None else str(init_from)
        self.stop_request = StopRequest(deadline)
        self.accelerator = build_accelerator(recipe, self.output, device)
        self.device = self.accelerator.device
        self.resumed_from = on_first_rank(lambda: newest_checkpoint(self.output / "checkpoints"))
        self.changes: list[str] = []
        self.step = 0
        self._must_stop = self._is_signaled = self._is_writing = False
        if self.resumed_from is not None:
            saved = read_state(self.resumed_from)
            recipe = self.recipe = with_measured_channels(recipe, saved["recipe"])
            self.changes = check_same_recipe(self.resumed_from, saved["recipe"], recipe, allowed_changes)
            check_same_dealing(self.resumed_from, saved.get("dealing"), recipe)
            self.recipe = self._with_saved_parts(saved)
        else:
            recipe = self.recipe = on_first_rank(lambda: with_measured_channels(recipe, None))
            on_first_rank(lambda: check_export(self.output, recipe, allowed_changes))

    @property
    def is_finished(self) -> bool:
        """True if an earlier session trained to the end and exported the student, and what is saved has this recipe."""
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
                before them. Also at the end if most steps were skipped; checkpoints are kept.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        # A signal ends what comes before the first step and after the last at once: there is nothing to save.
        on_first_rank(self._save_recipe)
        asked = self.recipe
        self.build()
        if self.recipe != asked:
            on_first_rank(self._save_recipe)  # with the numbers that were chosen
        if self.resumed_from is not None:
            self._load(self.resumed_from)
        num_steps = self.recipe.schedule.num_steps
        heartbeats = Heartbeats(lambda: (self.step, self.parts.monitors.watch.phase), ALONE)
        with self.stop_request, heartbeats:
            self._train(num_steps if stop_at is None else min(stop_at, num_steps), heartbeats)
        if self.step < num_steps:
            return None
        if summary := self.parts.skipped.summary(self.step):
            self.accelerator.print(summary, flush=True)
        return self._export()

    def _with_saved_parts(self, saved: Mapping[str, Any]) -> Recipe:
        """Return the recipe with what `accumulation_steps: auto` was before; other numbers of ranks choose anew."""
        if not has_auto(self.recipe) or len(saved["places_in_data"]) != self.accelerator.num_processes:
            return self.recipe
        auto = [each.name for each in self.recipe.partitions if each.accumulation_steps == AUTO]
        saved_parts = {each["name"]: each["accumulation_steps"] for each in saved["recipe"]["partitions"]}
        before = {name: saved_parts[name] for name in auto if name in saved_parts}
        told = ", ".join(f"{name} {number}" for name, number in before.items())
        self.accelerator.print(f"Parts of a step on each rank, as before: {told}.", flush=True)
        return with_parts(self.recipe, before)

    def _save_recipe(self) -> None:
        for folder in (self.output, *(self.output / name for name in ("checkpoints", "pictures", "skipped"))):
            remove_partial(folder)
        write_file(self.output / RECIPE_FILE, lambda path: save_recipe(self.recipe, path))

    def build(self) -> None:
        """Build the parts of the run, and what reads and writes their state."""
        parts = build_run(
            self.recipe,
            self.accelerator,
            self.output,
            self.stop_request,
            init_from=self.init_from,
            is_new=self.resumed_from is None,
        )
        self.parts: RunParts = parts
        self.recipe = parts.recipe
        modules = {"student": parts.model, "ema": parts.ema, "statistics": parts.statistics, **states_of(parts.hooks)}
        self.state = RunState(modules, parts.optimizer, parts.skipped, parts.source)
        self.writer = CheckpointWriter(self.output / "checkpoints", self.recipe.checkpoints.keep)

    # Training

    def _train(self, last_step: int, heartbeats: Heartbeats) -> None:
        recipe, parts = self.recipe, self.parts
        parts.student.train()
        num_steps, first_step = recipe.schedule.num_steps, self.step
        start_trackers(self.accelerator, recipe, self.output, is_new=first_step == 0)
        log = ProgressLog(
            self.accelerator,
            recipe.logging,
            first_step,
            num_steps,
            parts.plan.images_per_step,
            self.output,
            parts.monitors.end_interval,
        )
        examples = parts.source.examples(lambda: parts.plan.steps(first_step, last_step))
        try:
            if self.changes and self.step >= last_step:
                self._save()  # with the new recipe: no step remains that would
            while self.step < last_step:
                heartbeats.send()
                if log.is_due(self.step + 1):
                    parts.monitors.watch.begin_step()
                values = self.train_step(examples)
                parts.monitors.watch.end_step()
                if self.step == first_step + 1:
                    set_timeout(STEP_TIMEOUT)
                self._monitor(values, log)
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
            # Not `end_training`, which also destroys the process group: the ranks have yet to export.
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def train_step(self, examples: Iterator[tuple[PlannedBatch, Example]]) -> dict[str, Tensor]:
        """Do one optimizer step; return each loss, the sum over passes times their shares; empty if it is skipped."""
        parts, hooks = self.parts, self.parts.hooks.values()
        self._set_learning_rate()
        # DDP's buckets hold the gradients themselves (`gradient_as_bucket_view`): None would allocate second copies.
        parts.optimizer.zero_grad(set_to_none=not is_replicated(self.accelerator))
        values: dict[str, Tensor] = {}
        for batch, example, losses in self._passes(examples):
            for hook in hooks:
                hook.see(batch, example, losses)
            for name, loss in losses.items():
                values[name] = values.get(name, 0.0) + loss.detach() * batch.weight
        norm = self._clip_gradients()
        is_skipped = self._must_skip(norm, values)
        for hook in hooks:
            hook.end_step(values, is_skipped=is_skipped)
        if not is_skipped:
            parts.optimizer.step()
            reshard(parts.average)
            parts.ema.update_parameters(parts.model)
        self.step += 1
        return {} if is_skipped else {**values, GRADIENT_NORM: norm}

    def _passes(
        self, examples: Iterator[tuple[PlannedBatch, Example]]
    ) -> Iterator[tuple[PlannedBatch, Example, dict[str, Tensor]]]:
        """Run the step's passes forward and backward; yield each batch with its example and losses."""
        parts, hooks, numbers = self.parts, self.parts.hooks.values(), range(self.parts.plan.batches_per_step)
        prefetches_all = parts.parallel_passes is not None or any(hook.needs_examples for hook in hooks)
        fetched = [self._fetch(examples) for _ in numbers if prefetches_all]
        for hook in hooks:
            hook.begin_step(self.step, fetched)
        if parts.parallel_passes is not None:
            with self._maybe_frozen_trunk():
                trainable = [parameter for parameter in parts.student.parameters() if parameter.requires_grad]
                losses = parts.parallel_passes.run(fetched, self._objective, trainable)
                yield from ((*each, own) for each, own in zip(fetched, losses, strict=True))
            return
        for number in numbers:
            batch, example = fetched[number] if fetched else self._fetch(examples)
            self._seed(batch)
            for hook in hooks:
                hook.begin_pass(batch)
            with self._gradients_in_sync(number == numbers[-1]), self._maybe_frozen_trunk():
                total, losses = self._objective((batch, example))
                if number == numbers[-1] and is_replicated(self.accelerator):
                    parts.monitors.watch.meet()
                self.accelerator.backward(total)
            yield batch, example, losses
        if self._is_trunk_frozen:
            reshard(parts.student)  # without a backward pass FSDP leaves weights gathered
            if is_replicated(self.accelerator):
                average_gradients(parts.student.parameters())

    def _fetch(self, examples: Iterator[tuple[PlannedBatch, Example]]) -> tuple[PlannedBatch, Example]:
        watch = self.parts.monitors.watch
        watch.enter("data")
        batch, example = next(examples)
        watch.enter("student")
        watch.see(example.pixel_values[0])
        return batch, example

    def _objective(self, fetched: tuple[PlannedBatch, Example]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a batch's share of the objective of the step, and its losses by name."""
        losses = batch_losses(self.parts, *fetched)
        return losses["loss"] * fetched[0].weight, losses

    def _seed(self, batch: PlannedBatch) -> None:
        """Seed torch's generator for the noise on the weights (and dropout, where there is any).

        Call it after fetching the batch: starting a data loader draws from torch's generator, and not in every step.
        """
        # On a CPU `torch.manual_seed` would format a traceback for each kind of device that is not there.
        seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed(derive_seed(self.recipe.seed, "noise", batch.partition, batch.step, noise_of(batch)))

    def _clip_gradients(self) -> Tensor:
        """Clip the gradient; return its norm before that."""
        clip_norm = self.recipe.optimizer.clip_norm
        max_norm = float("inf") if clip_norm is None else clip_norm
        return whole_norm(torch.nn.utils.clip_grad_norm_(self.parts.student.parameters(), max_norm))

    def _must_skip(self, norm: Tensor, values: dict[str, Tensor]) -> bool:
        """Return whether the step is skipped as not finite; learn, too, whether any rank is to stop or still writes."""
        is_bad = ~(torch.isfinite(norm) & torch.isfinite(values["loss"]))
        # The one place of a step where Python waits for the device: what it decides here must be the same on all ranks.
        flags = [is_bad, self.stop_request.is_set, self.stop_request.is_asked, self.writer.is_busy]
        is_skipped, self._must_stop, self._is_signaled, self._is_writing = any_rank(flags, self.device)
        return is_skipped

    def _set_learning_rate(self) -> None:
        for group in self.parts.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step, is_trunk=group["is_trunk"])

    def _learning_rate(self, step: int, *, is_trunk: bool) -> float:
        """Return the learning rate of a step; a trunk that was frozen warms up once more, after it is unfrozen."""
        optimizer, schedule = self.recipe.optimizer, self.recipe.schedule
        warmup_steps, frozen_steps = map(schedule.in_steps, (schedule.warmup_steps, optimizer.trunk_frozen_steps))
        factor = cosine_with_warmup(step, schedule.num_steps, warmup_steps)
        if is_trunk and frozen_steps:
            own = optimizer.trunk_warmup_steps
            factor *= linear_warmup(step - frozen_steps, warmup_steps if own is None else schedule.in_steps(own))
        return optimizer.learning_rate * factor

    @property
    def _is_trunk_frozen(self) -> bool:
        return self.step < self.recipe.schedule.in_steps(self.recipe.optimizer.trunk_frozen_steps)

    def _maybe_frozen_trunk(self) -> contextlib.AbstractContextManager:
        """Return the context of a forward pass: no graph below the heads while the trunk is frozen."""
        return frozen_trunk(self.parts.model) if self._is_trunk_frozen else contextlib.nullcontext()

    def _gradients_in_sync(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Return the context of a backward pass: ranks exchange gradients once per step, with its last batch.

        DDP would wait for those of a frozen trunk: then they are exchanged after the pass.
        """
        is_exchanged_later = self._is_trunk_frozen and is_replicated(self.accelerator)
        if is_last and not is_exchanged_later:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(self.parts.student)

    def _monitor(self, values: dict[str, Tensor], log: ProgressLog) -> None:
        """Log the step, and draw and measure the moving average where that is due; all ranks must take part."""
        parts = self.parts
        log.record(self.step, values, self._log_scalars)
        parts.monitors.draw(self.step, parts.average, parts.statistics, log)
        parts.monitors.measure(self.step, parts.average, parts.model, parts.statistics, log)

    def _log_scalars(self) -> dict[str, float]:
        """Return what is recorded beside the losses; all ranks must take part."""
        parts, monitors = self.parts, self.parts.monitors
        norms = monitors.block_norms(parts.average)
        learning_rates = {"learning_rate": self._learning_rate(self.step - 1, is_trunk=False)}
        scalars = {name: value for hook in parts.hooks.values() for name, value in hook.scalars().items()}
        return {**learning_rates, **scalars, **monitors.watch.shares(), **norms}

    def _stop_if_asked(self) -> None:
        if self._must_stop:
            self._save()
            self.writer.finish()
            message = (
                f"Stopped after step {self.step} of {self.recipe.schedule.num_steps}, saved in "
                f"{str(self.output / 'checkpoints')!r}: the same command resumes."
            )
            raise self.stop_request.interrupted(message) if self._is_signaled else OutOfTime(message)

    # State

    def _save(self) -> None:
        """Begin a checkpoint, which the next steps do not wait for; after the last one an older export is outdated."""
        is_last = self.step >= self.recipe.schedule.num_steps
        if is_last and self.accelerator.is_main_process and (self.output / "final").is_dir():
            (self.output / OUTDATED).touch()  # or a kill here would let the next stage start from the old export
        facts = {"step": self.step, "data": self.parts.fingerprint, "recipe": self.recipe.to_dict(), "dealing": DEALING}
        facts["widths"] = {
            each["name"]: (each["summary_dim"], each["feature_dim"]) for each in self.parts.model.config.adaptors
        }
        positions = self.state.save(self.writer, facts)
        if self.recipe.data.streaming and self.accelerator.is_main_process:
            write_data_record(self.output, self.recipe, left_out_of_streams(positions))

    def _load(self, folder: Path) -> None:
        saved = self.state.load(folder)
        self.step = saved["step"]
        if self.changes:
            changes = "; ".join(self.changes)
            self.accelerator.print(f"Going on from step {self.step} with changes: {changes}.", flush=True)
        if self.accelerator.is_main_process:
            warn_of_other_data(folder, saved["data"], self.parts.fingerprint)
            warn_of_other_arithmetic(folder, saved["arithmetic"])

    def _export(self) -> Path:
        """Write `final/` from the moving average (or the student itself)."""
        parts, path = self.parts, self.output / "final"
        network = parts.average if self.recipe.ema.is_exported else parts.model
        normalizers = self._fit_normalizers(network)
        model = assemble(network, parts.blueprint)
        standardizers = parts.statistics.standardizers()

        def export() -> None:
            export_student(
                cast(RadioModel, model),
                standardizers,
                path,
                normalizers,
                parts.lineage,
                folds_layer_scale=self.recipe.export.fold_layer_scale,
            )
            (self.output / OUTDATED).unlink(missing_ok=True)

        on_first_rank(export)
        return path

    def _fit_normalizers(self, network: RadioModel) -> Normalizers | None:
        """Fit normalizers to what the run would have seen next, if the recipe wants any; all ranks must take part."""
        options, first_step = self.recipe.export, self.step
        if not options.has_normalizers:
            return None
        num_steps = math.ceil(NORMALIZER_IMAGES / self.parts.plan.images_per_step)
        images = self.parts.source.student_images(lambda: self.parts.plan.steps(first_step, first_step + num_steps))
        normalizers = fit_normalizers(network, images, options)
        reshard(network)
        self.accelerator.print(f"Feature normalizers: fitted to {num_steps * self.parts.plan.images_per_step} images.")
        return normalizers
