"""The distillation loop: resume, look at teacher statistics, train step by step, export.

A step is a pure function of the state and the step number: every random number is derived from the seed and
the step, so a restarted run repeats an undisturbed one bit for bit.
"""

import contextlib
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from modeling_radio import RadioModel
from training.alignment import align_to_teacher
from training.batches import Batch, BatchPlan
from training.checkpoints import (
    check_same_recipe,
    checkpoint_path,
    newest_checkpoint,
    read_state,
    save_checkpoint,
)
from training.collectives import any_rank
from training.data import build_images
from training.ema import build_ema
from training.export import export_student
from training.feature_cache import CacheContents, FeatureCache, TeacherAnswers, write_feature_cache
from training.files import remove_partial, write_file
from training.interruption import Interrupted, StopRequest, TrainingDivergedError
from training.losses import FEATURE_LOSSES, SUMMARY_LOSSES
from training.optimizers import build_optimizer, trunk_parameters
from training.recipe import Recipe, RecipeError, did_you_mean, save_recipe
from training.schedules import cosine_with_warmup
from training.seeds import derive_seed
from training.student import build_student, student_patch_size
from training.targets import CachedTargets, Example, OnlineTargets, TargetSource
from training.teacher_statistics import TeacherStatistics
from training.teachers import Teacher, build_teacher
from training.tracking import ProgressLog


class Distiller:
    """One distillation run.

    Args:
        recipe: Everything that decides it.
        output: Folder of the run; `runs/NAME` by default. Gets `recipe.yaml`, `checkpoints/`, `logs/` and
            `final/`.
        is_restart: Refuse a folder that is not empty instead of resuming from it.

    Raises:
        RecipeError: If the recipe names something unknown, or does not fit the output folder's checkpoints.
    """

    def __init__(self, recipe: Recipe, output: Path | None = None, *, is_restart: bool = False) -> None:
        _check_choice("loss.features", recipe.loss.features, FEATURE_LOSSES)
        _check_choice("loss.summary", recipe.loss.summary, SUMMARY_LOSSES)
        self.recipe = recipe
        self.output = Path("runs") / recipe.name if output is None else output
        if is_restart and self.output.exists() and any(self.output.iterdir()):
            raise RecipeError(f"Output {str(self.output)!r} is not empty: give another --output to start anew.")
        self.resumed_from = newest_checkpoint(self.output / "checkpoints")
        if self.resumed_from is not None:
            check_same_recipe(self.resumed_from, read_state(self.resumed_from)["recipe"], recipe)
        self.stop_request = StopRequest()
        self.accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            log_with=cast(Any, recipe.logging.trackers or None),
            project_dir=self.output,
        )
        self.device = self.accelerator.device

    def run(self, stop_at: int | None = None) -> Path | None:
        """Train to the end, from the newest checkpoint if there is one, and export the student.

        Args:
            stop_at: End the session with a checkpoint after this many steps of the run; the same command goes
                on.

        Returns:
            The exported folder, or None if the run stopped before its end.

        Raises:
            Interrupted: After SIGINT or SIGTERM, once the state is saved.
            TrainingDivergedError: After too many non-finite steps in a row; the last checkpoint is from
                before them.
        """
        with self.stop_request:
            self._save_recipe()
            self._build()
            self._restore_or_calibrate()
            last_step = min(stop_at or self.recipe.schedule.num_steps, self.recipe.schedule.num_steps)
            self._train(last_step)
        return self._export() if self.step == self.recipe.schedule.num_steps else None

    # Setting up

    def _save_recipe(self) -> None:
        if self.accelerator.is_main_process:
            remove_partial(self.output)
            remove_partial(self.output / "checkpoints")
            write_file(self.output / "recipe.yaml", lambda path: save_recipe(self.recipe, path))

    def _build(self) -> None:
        """Build teachers, student, optimiser, average, statistics and the source of targets."""
        recipe = self.recipe
        teachers = self._build_teachers()
        images = self._build_images()
        self.model: RadioModel = build_student(recipe, teachers).to(self.device)
        optimizer = build_optimizer(self.model, recipe.optimizer)
        self.trunk = trunk_parameters(self.model)
        self.ema = build_ema(self.model, recipe.ema.decay)
        self.statistics = TeacherStatistics(recipe.standardization, teachers).to(self.device)
        self.student, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        num_images, accelerator = len(cast(Sized, images)), self.accelerator
        self.plan = BatchPlan(recipe, num_images, accelerator.process_index, accelerator.num_processes)
        self.source = self._build_source(images, teachers)
        self.step = 0
        self.num_bad_steps = 0

    def _build_images(self) -> Dataset[Tensor]:
        data = self.recipe.data
        with self.accelerator.main_process_first():
            return build_images(data.source, size=data.image_size_px, num_images=data.num_images, seed=data.seed)

    def _build_teachers(self) -> dict[str, Teacher]:
        """Load the teachers, one rank after the other; they are never wrapped, trained or saved."""
        teachers = {}
        patch_size = student_patch_size(self.recipe)
        with self.accelerator.main_process_first():
            for entry in self.recipe.teachers:
                options: dict[str, Any] = {"grid_stride": patch_size, **entry.options}
                teacher = build_teacher(entry.name, kind=entry.kind, source=entry.source, **options)
                teachers[entry.name] = teacher.to(self.device).eval().requires_grad_(False)
        return teachers

    def _build_source(self, images: Dataset[Tensor], teachers: dict[str, Teacher]) -> TargetSource:
        patch_size = self.model.config.patch_size
        if self.recipe.views.teachers == "online":
            return OnlineTargets(self.recipe, patch_size, images, teachers, self.device)
        contents = CacheContents.of(self.recipe, patch_size, self.plan.num_images)
        folder = contents.default_folder()
        if self.recipe.views.cache_dir is not None:
            folder = Path(self.recipe.views.cache_dir)
        write_feature_cache(
            folder,
            contents,
            images,
            TeacherAnswers(teachers, contents.values["cells_per_side"], self.device),
            num_workers=self.recipe.data.num_workers,
            rank=self.accelerator.process_index,
            num_ranks=self.accelerator.num_processes,
            should_stop=lambda: self.stop_request.is_set,
        )
        self.accelerator.wait_for_everyone()
        return CachedTargets(self.recipe, patch_size, FeatureCache(folder, contents), self.device)

    # Training

    def _restore_or_calibrate(self) -> None:
        """Continue from the newest checkpoint; a new run first looks at some batches of teacher features."""
        if self.resumed_from is not None:
            self._load(self.resumed_from)
            return
        num_steps = self.recipe.standardization.calibration_steps
        for _, example in self.source.examples(lambda: self.plan.steps(0, num_steps)):
            self.statistics.update(example.targets)
        self.statistics.end_step()
        self.statistics.refit()

    def _train(self, last_step: int) -> None:
        recipe = self.recipe
        self.student.train()
        self.accelerator.init_trackers("logs")
        log = ProgressLog(
            self.accelerator, recipe.logging, self.step, recipe.schedule.num_steps, self.plan.images_per_step
        )
        first_step = self.step
        examples = self.source.examples(lambda: self.plan.steps(first_step, last_step))
        try:
            while self.step < last_step:
                values = self._train_step(examples)
                self.step += 1
                log.record(self.step, values, self._settings)
                self._stop_if_asked()
                if self.step % recipe.checkpoints.every_steps == 0 or self.step == last_step:
                    self._save()
        finally:
            log.close()
            self.accelerator.end_training()

    def _train_step(self, examples: Iterator[tuple[Batch, Example]]) -> dict[str, Tensor]:
        """Do one optimiser step; return the losses, weighted as they were added up."""
        recipe, step = self.recipe, self.step
        self._set_learning_rate()
        self.statistics.begin_step(step)
        self.optimizer.zero_grad()
        values: dict[str, Tensor] = {}
        for number in range(self.plan.batches_per_step):
            batch, example = next(examples)
            # After `next`: a data loader draws from the global generator when it starts, which is not at every step.
            torch.manual_seed(derive_seed(recipe.seed, "student", batch.partition, step, batch.start))
            with self._gradients_in_sync(number == self.plan.batches_per_step - 1):
                losses = self._losses(example, batch.vitdet_window)
                self.accelerator.backward(losses["loss"] * batch.weight)
            for name, loss in losses.items():
                values[name] = values.get(name, 0.0) + loss.detach() * batch.weight
            self.statistics.update(example.targets)
        self.statistics.end_step()
        values["gradient_norm"] = self._update_weights(values)
        return values

    def _losses(self, example: Example, vitdet_window: int | None) -> dict[str, Tensor]:
        """Run the student and compare it with every teacher: each loss by name, `"loss"` being the weighted sum."""
        output = self.student(example.pixel_values, window_size=vitdet_window or "global", feature_format="NCHW")
        losses: dict[str, Tensor] = {}
        total = example.pixel_values.new_zeros(())
        for entry in self.recipe.teachers:
            answer, target = output.adaptors[entry.name], example.targets[entry.name]
            standardized = self.statistics.standardize(entry.name, target.features)
            maps = align_to_teacher(answer.features, standardized, target.shift)
            losses[f"features/{entry.name}"] = FEATURE_LOSSES[self.recipe.loss.features](*maps)
            total = total + entry.feature_weight * losses[f"features/{entry.name}"]
            if target.summary is not None:
                losses[f"summary/{entry.name}"] = SUMMARY_LOSSES[self.recipe.loss.summary](
                    answer.summary, target.summary, self.statistics.dispersion(entry.name)
                )
                total = total + entry.summary_weight * losses[f"summary/{entry.name}"]
        return {"loss": total, **losses}

    def _update_weights(self, values: dict[str, Tensor]) -> Tensor:
        """Clip, and step unless a gradient is not finite; return the gradient's norm before clipping."""
        recipe = self.recipe.optimizer
        if self.step < recipe.trunk_frozen_steps:
            for parameter in self.trunk:
                parameter.grad = None
        max_norm = float("inf") if recipe.clip_norm is None else recipe.clip_norm
        norm = cast(Tensor, self.accelerator.clip_grad_norm_(self.student.parameters(), max_norm))
        if torch.isfinite(norm):
            self.num_bad_steps = 0
            self.optimizer.step()
            self.ema.update_parameters(self.model)
        else:
            self._count_bad_step(values)
        return norm

    def _count_bad_step(self, values: dict[str, Tensor]) -> None:
        """Note a skipped step; give up after too many in a row."""
        self.num_bad_steps += 1
        bad = [name for name, value in values.items() if not torch.isfinite(value)] or ["gradient"]
        message = (
            f"Step {self.step} skipped on rank {self.accelerator.process_index}: not finite: {', '.join(bad)} "
            f"({self.num_bad_steps} in a row)."
        )
        if self.num_bad_steps >= self.recipe.optimizer.max_bad_steps:
            raise TrainingDivergedError(f"{message} Giving up; the last checkpoint is from before.")
        print(message, flush=True)

    def _set_learning_rate(self) -> None:
        schedule = self.recipe.schedule
        factor = cosine_with_warmup(self.step, schedule.num_steps, schedule.warmup_steps, schedule.final_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.learning_rate * factor

    def _gradients_in_sync(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Ranks exchange gradients once per step, with its last batch."""
        return contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.student)

    def _settings(self) -> dict[str, float]:
        return {"learning_rate": self.optimizer.param_groups[0]["lr"], **self.statistics.scalars()}

    def _stop_if_asked(self) -> None:
        if any_rank(self.stop_request.is_set, self.device):
            self._save()
            raise Interrupted(
                f"Stopped after step {self.step} of {self.recipe.schedule.num_steps}, saved in "
                f"{str(self.output / 'checkpoints')!r}: the same command resumes."
            )

    # State

    def _save(self) -> None:
        """Write a checkpoint unless this step has one already."""
        folder = self.output / "checkpoints"
        if self.accelerator.is_main_process and not checkpoint_path(folder, self.step).exists():
            state: dict[str, Any] = {
                "step": self.step,
                "num_bad_steps": self.num_bad_steps,
                "recipe_fingerprint": self.recipe.fingerprint(),
                "recipe": self.recipe.to_dict(),
                "torch_version": torch.__version__,
            }
            save_checkpoint(folder, state, self._write_tensors, self.recipe.checkpoints.keep)
        self.accelerator.wait_for_everyone()

    def _write_tensors(self, folder: Path) -> None:
        save_file(self.model.state_dict(), folder / "student.safetensors")
        save_file(self.ema.state_dict(), folder / "ema.safetensors")
        save_file(self.statistics.state_dict(), folder / "statistics.safetensors")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def _load(self, folder: Path) -> None:
        self.model.load_state_dict(load_file(folder / "student.safetensors"))
        self.ema.load_state_dict(load_file(folder / "ema.safetensors"))
        self.statistics.load_state_dict(load_file(folder / "statistics.safetensors"))
        optimizer_state = torch.load(folder / "optimizer.pt", weights_only=True, map_location=self.device)
        self.optimizer.load_state_dict(optimizer_state)
        state = read_state(folder)
        self.step, self.num_bad_steps = state["step"], state["num_bad_steps"]

    def _export(self) -> Path:
        """Write `final/` from the moving average (or the student itself)."""
        path = self.output / "final"
        if self.accelerator.is_main_process:
            model = self.ema.module if self.recipe.ema.is_exported else self.model
            export_student(cast(RadioModel, model), self.statistics.standardizers(), path)
        self.accelerator.wait_for_everyone()
        return path


def _check_choice(name: str, value: str, choices: dict[str, Any]) -> None:
    if value not in choices:
        raise RecipeError(f"`{name}` must be one of {sorted(choices)}; got {value!r}.{did_you_mean(value, [*choices])}")
