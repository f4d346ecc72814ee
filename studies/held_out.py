"""Held-out images that all runs of a study are measured on, and the scores of a student on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio import RadioModel
from modeling_radio.core.files import cache_dir
from modeling_radio.core.interruption import TrainingDivergedError
from modeling_radio.core.opening import tensor_fingerprint
from modeling_radio.data.made_images import open_made_images
from modeling_radio.data.settings import is_made
from modeling_radio.data.training_images import build_images, render
from modeling_radio.evaluation.data import EvaluationData, Stacked, groups_of
from modeling_radio.evaluation.data_tables import TableData
from modeling_radio.evaluation.features import FeatureStore, StoredFeatures, Wanted
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.settings import DataOptions
from modeling_radio.evaluation.students import StudentEvaluation
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.registry import find_task
from modeling_radio.evaluation.tasks.settings import TaskSettings
from modeling_radio.figures.progress import TOKEN_TASKS, values_by_tokens
from modeling_radio.metrics.feature_model import Encoding
from modeling_radio.studies.raw_results import HeldOutSums
from modeling_radio.studies.study import (
    CONSISTENCY,
    DENSE,
    FIXED_PATTERN,
    INSIDE,
    KNN,
    MIOU,
    RING,
    SHIFT_ERROR,
    SUMMARY,
    OpenedStudy,
)
from modeling_radio.training.distillation.held_out import ViewPair
from modeling_radio.training.losses.alignment import on_larger_grid
from modeling_radio.training.losses.fidelity import fixed_pattern_energy, map_agreement, shift_error
from modeling_radio.training.losses.summaries import angle_between
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.student.build import build_student


BATCH = 64
"""Images in a pass; our choice."""
TOKEN_METRICS = {"accuracy": "knn", "mIoU": MIOU, "centered features": "cosine"}
BACKBONE = {("knn", "accuracy"): KNN, ("segmentation_probe", "mIoU"): MIOU}
"""Measure by task and metric: the mean over the labeled sets that have such labels."""
IMAGES_OF_SET = 500
"""Most images of each split of the labeled sets. Our choice: 15 seconds a run on one core."""


@dataclass
class HeldOut:
    """Images, labels and teachers' features that all runs of a study share.

    Attributes:
        evaluation: Teachers, and objects and scenes with labels.
        labeled: More labeled sets.
        images: uint8 RGB, `(num_images, 3, side, side)`, at the largest of the study's sizes.
        sources: Index of the picture that each image is made of, `(num_images,)`.
        teachers: Features of the images by teacher, at the size at which adaptors are measured.
        sizes_px: Sizes at which features are compared, the largest last.
        has_ring: Whether dense errors of the outermost patches and of the others are measured too.
    """

    evaluation: StudentEvaluation
    labeled: Sequence[EvaluationData]
    images: Tensor
    sources: Tensor
    teachers: Mapping[str, StoredFeatures]
    sizes_px: Sequence[int]
    has_ring: bool = False

    @classmethod
    def load(cls, opened: OpenedStudy, cache: Path | None = None) -> HeldOut:
        """Make the images, and run the teachers where their features are not stored yet.

        Args:
            opened: The study.
            cache: Folder of labeled sets and teachers' features; by default one for all studies in the cache folder.

        Raises:
            PackageError: If packages cannot be fetched.
            RecipeError: If a student takes no images of a size.
            ValueError: If the data cannot be opened, or has no images that are held out or no labels.
        """
        study, cache = opened.study, cache or cache_dir() / "studies"
        evaluation = StudentEvaluation.load(opened.reference)
        _check_sizes(opened, evaluation)
        side = max(*study.sizes_px, evaluation.size_px)
        source = opened.reference.data.source
        held_out = build_images(source, size=side, num_images=study.num_images, split="held_out")
        images = render(held_out, range(study.num_images), num_workers=0, show_progress=False)
        sources = groups_of([held_out.source_of(index) for index in range(study.num_images)])
        store, fingerprint = FeatureStore(cache, batch_size=BATCH), tensor_fingerprint(images)
        how: dict[str, Any] = {"size_px": evaluation.size_px, "description": "held-out images"}
        teachers = {
            name: store.extract(evaluation.teacher(name), Stacked(images), fingerprint, Wanted(dense=True), **how)
            for name in evaluation.teachers
        }
        options = DataOptions(max_images=IMAGES_OF_SET)
        folders = open_made_images(source).labeled_folders(cache / "sets") if is_made(source) else ()
        labeled = [TableData(str(folder), options) for folder in folders]
        has_ring = study.primary.partition("/")[0] in (RING, INSIDE)
        if has_ring and evaluation.size_px < 3 * evaluation.patch_size:
            rule = f"another measure for grids of {evaluation.size_px // evaluation.patch_size} patches a side"
            raise RecipeError(f"`primary` must be {rule}, which have none inside, got {study.primary!r}.")
        return cls(evaluation, labeled, images, sources, teachers, sorted(study.sizes_px), has_ring)

    @property
    def fingerprint(self) -> str:
        """Hash of images and sources."""
        return tensor_fingerprint(self.images, self.sources)

    def summed(self, scores: Tensor) -> Tensor:
        """Return sums over the images of each source, `(num_sources,)`, of one number for each image."""
        sums = torch.zeros(int(self.sources.max()) + 1, dtype=torch.float64)
        return sums.index_add_(0, self.sources, scores.double())

    def references(self) -> HeldOutSums:
        """Return the divisors of errors: the errors of predicting the teacher's mean."""
        weights = {CONSISTENCY: torch.ones(len(self.images))}
        for name, teacher in self.teachers.items():
            maps, mean = teacher.maps(), teacher.mean_features().mean(0)
            for family, errors in self._squared_errors(maps, mean[None, :, None, None]).items():
                weights[f"{family}/{name}"] = errors
            summary = teacher.summary()
            if summary is not None:
                direction = F.normalize(summary.mean(0), dim=0)
                weights[f"{SUMMARY}/{name}"] = angle_between(summary, direction.expand_as(summary)).square()
        sums = {name: self.summed(scores).tolist() for name, scores in weights.items()}
        return HeldOutSums(self.fingerprint, len(self.images), self.evaluation.size_px, list(self.sizes_px), sums)

    def measure(self, model: RadioModel, recipe: Recipe) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Return sums over the images of each source by measure, and the measures that are no such sums.

        Args:
            model: A student.
            recipe: Recipe of the student; its precision is the measurement's.

        Raises:
            TrainingDivergedError: If its features are all equal, or not finite.
        """
        dtype = torch.bfloat16 if recipe.mixed_precision == "bf16" else None
        student = RadioFeatures(model.eval(), size_px=self.evaluation.size_px, dtype=dtype)
        numbers = self._equivariance(student)
        scores = self._errors(student)
        scores[CONSISTENCY] = self._consistency(student)
        found = self.evaluation.measure_backbone(self.evaluation.of(student, recipe.seed))
        for data in self.labeled:
            found += find_task("knn").measure(Evaluation(student, data, TaskSettings(), seed=recipe.seed))
        values = {
            measure: [each.value for each in found if (each.task, each.metric) == own]
            for own, measure in BACKBONE.items()
        }
        numbers |= {measure: fmean(own) for measure, own in values.items() if own}
        if model.config.num_mergings:
            numbers |= self._over_tokens(student, recipe.seed)
        return {name: self.summed(values).tolist() for name, values in scores.items()}, numbers

    def _over_tokens(self, student: RadioFeatures, seed: int) -> dict[str, float]:
        """Return kNN, mIoU and the adaptors' mean centered cosine over the number of global tokens."""
        evaluation = self.evaluation.of(student, seed)
        found = [each for task in TOKEN_TASKS for each in find_task(task).measure(evaluation)]
        values: dict[str, list[float]] = {}
        for metric, by_model in values_by_tokens(found).items():
            if metric in TOKEN_METRICS:
                for count, own in [pair for by_count in by_model.values() for pair in by_count.items()]:
                    values.setdefault(f"{TOKEN_METRICS[metric]}/{count} tokens", []).extend(own)
        return {name: sum(own) / len(own) for name, own in values.items()}

    @torch.no_grad()
    def _errors(self, student: RadioFeatures) -> dict[str, Tensor]:
        """Return the adaptors' errors by measure and image."""
        scores: dict[str, list[Tensor]] = {}
        for indices, output in self._encoded(student, self.evaluation.size_px, list(self.teachers)):
            for name, teacher in self.teachers.items():
                own = output.adaptors[name]
                maps = on_larger_grid(own.features, teacher.maps(indices))
                for family, errors in self._squared_errors(*maps).items():
                    scores.setdefault(f"{family}/{name}", []).append(errors)
                summary = teacher.summary()
                if summary is not None and own.summary is not None:
                    angle = angle_between(own.summary.float(), summary[indices])
                    scores.setdefault(f"{SUMMARY}/{name}", []).append(angle.square())
        return {name: torch.cat(parts) for name, parts in scores.items()}

    def _squared_errors(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Return by measure the squared distance of maps, averaged over its patches, `(num_images,)`."""
        by_patch = (first - second).square().sum(1)
        found = {DENSE: by_patch.mean((1, 2))}
        if self.has_ring:
            is_inside = F.pad(by_patch.new_ones(*(side - 2 for side in by_patch.shape[1:])), (1, 1, 1, 1)) > 0
            found |= {RING: by_patch[:, ~is_inside].mean(1), INSIDE: by_patch[:, is_inside].mean(1)}
        return found

    @torch.no_grad()
    def _consistency(self, student: RadioFeatures) -> Tensor:
        """Return each image's centered cosine with the largest size, averaged over the others."""
        *smaller, largest = self.sizes_px
        reference = torch.cat([output.features.float() for _, output in self._encoded(student, largest)])
        mean, agreement = reference.mean((0, 2, 3)), torch.zeros(len(reference))
        for size in smaller:
            for indices, output in self._encoded(student, size):
                for index, features in zip(indices, output.features.float(), strict=True):
                    agreement[index] += map_agreement(features, reference[index], mean)[1] / len(smaller)
        return agreement

    @torch.no_grad()
    def _equivariance(self, student: RadioFeatures) -> dict[str, float]:
        view = ViewPair.of_size(self.evaluation.size_px, student.patch_size)
        parts = [view.of_images(images) for images in self.images.split(BATCH)]
        first, second = (
            torch.cat([student.encode(pixels).features.float() for pixels in views])
            for views in zip(*parts, strict=True)
        )
        whole = torch.cat([output.features.float() for _, output in self._encoded(student, self.evaluation.size_px)])
        if not whole.isfinite().all() or whole.var((0, 2, 3)).max() == 0:
            raise TrainingDivergedError("The student's features are all equal, or not finite.")
        shift = (view.shift, view.shift)
        return {FIXED_PATTERN: fixed_pattern_energy(whole), SHIFT_ERROR: shift_error(first, second, shift)}

    def _encoded(
        self, student: RadioFeatures, size_px: int, adaptors: Sequence[str] = ()
    ) -> Iterator[tuple[list[int], Encoding]]:
        """Yield batches of indices of images, and a student's output for them at a size."""
        for start in range(0, len(self.images), BATCH):
            indices = list(range(start, min(start + BATCH, len(self.images))))
            pixels = torch.stack([student.preprocess(self.images[index], size_px) for index in indices])
            yield indices, student.encode(pixels, adaptors)


def _check_sizes(opened: OpenedStudy, evaluation: StudentEvaluation) -> None:
    for name, recipe in opened.recipes.items():
        config = build_student(recipe, evaluation.teachers).config
        largest = config.max_img_size
        wrong = [size for size in opened.study.sizes_px if size % config.resolution_step or size > largest]
        if wrong:
            raise RecipeError(
                f"`sizes_px` must be multiples of {config.resolution_step} px, and at most the {largest} px of "
                f"`student.config.max_img_size` of arm {name!r}, got {wrong}."
            )
