"""All evaluations of one saved checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch

from foundation.timing import Clock
from model_cards.results import STUDENT, Measurement, Results
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.messages_radio import check_choice
from training.evaluation.data import EvaluationData
from training.evaluation.extractors import RAW_PIXELS, adaptor_extractor, backbone_extractor, pixel_extractor
from training.evaluation.provenance import data_sources, describe_run, teacher_sources
from training.evaluation.tasks import (
    measure_adaptor_fidelity,
    measure_knn,
    measure_resolution_consistency,
    measure_segmentation_probe,
    measure_text_zero_shot,
    measure_zero_shot,
)
from training.evaluation.text_encoder import embed_with_packed_tower
from training.recipe import Recipe, RecipeError
from training.teachers.base import Teacher
from training.teachers.embedded import EfficientNetLite0Teacher
from training.teachers.registry import build_teachers


CONSISTENCY_SIZES_PX = (128, 192, 256, 384, 512)
"""The range that the published models were trained for at low resolution, and one step beyond."""


class CheckpointEvaluation:
    """Runs evaluations of one checkpoint beside the raw pixels.

    Args:
        model: The student in eval mode.
        recipe: Names its teachers.
        data: The held-out images.
        checkpoint: Folder that the model was opened from.
    """

    def __init__(self, model: RadioModel, recipe: Recipe, data: EvaluationData, checkpoint: Path):
        self.model, self.recipe, self.data, self.checkpoint = model, recipe, data, checkpoint

    @cached_property
    def teachers(self) -> dict[str, Teacher]:
        """The teachers that the model has adaptors for, fetched on first use."""
        entries = [entry for entry in self.recipe.teachers if entry.name in self.model.radio_model.adaptors]
        if not entries:
            raise RecipeError(
                f"Recipe {self.recipe.name!r} names none of the checkpoint's adaptors "
                f"{[*self.model.radio_model.adaptors]}: give the --recipe it was trained with."
            )
        return {name: teacher.to(self.data.device) for name, teacher in build_teachers(entries).items()}

    def knn(self) -> list[Measurement]:
        """Weighted kNN accuracy."""
        return self._beside_pixels(measure_knn)

    def segmentation_probe(self) -> list[Measurement]:
        """Mean IoU of a linear probe."""
        return self._beside_pixels(measure_segmentation_probe)

    def _beside_pixels(self, measure: Callable[..., list[Measurement]]) -> list[Measurement]:
        pixels = measure(RAW_PIXELS, pixel_extractor(self.model.patch_size), self.data)
        return pixels + measure(STUDENT, backbone_extractor(self.model), self.data)

    def adaptor_fidelity(self) -> list[Measurement]:
        """Mean cosine of every adaptor with its teacher."""
        measurements = []
        for name, teacher in self.teachers.items():
            reference = self.data.extract(teacher, self.data.unlabeled, name)
            adaptor = adaptor_extractor(self.model, name)
            measurements += measure_adaptor_fidelity(f"adaptor {name}", adaptor, reference, self.data)
        return measurements

    def zero_shot(self) -> list[Measurement]:
        """Zero-shot accuracy through the checkpoint's text tower, or else through a teacher's classifier."""
        config = RadioConfig.from_pretrained(self.checkpoint)  # the model itself leaves out the tower
        if config.text_tower is not None:
            return self._text_zero_shot(str(config.text_adaptor))
        measurements = []
        for name, teacher in self.teachers.items():
            if isinstance(teacher, EfficientNetLite0Teacher):
                adaptor = adaptor_extractor(self.model, name)
                measurements += measure_zero_shot(f"teacher {name}", teacher, teacher.classify, self.data)
                measurements += measure_zero_shot(f"adaptor {name}", adaptor, teacher.classify, self.data)
        if not measurements:
            raise RecipeError(
                "`zero_shot` needs a text tower in the checkpoint (conversion.from_nvidia --text-tower), or an adaptor "
                "for a teacher with a classifier: efficientnet-lite0."
            )
        return measurements

    def _text_zero_shot(self, name: str) -> list[Measurement]:
        class_names = self.data.classification.class_names
        classes = embed_with_packed_tower(self.checkpoint, class_names, device=self.data.device)
        return measure_text_zero_shot(f"adaptor {name}", adaptor_extractor(self.model, name), classes, self.data)

    def resolution_consistency(self) -> list[Measurement]:
        """Cosine of dense features at several sizes with those at the largest."""
        sizes = [self.model.get_nearest_supported_resolution(size, size).height for size in CONSISTENCY_SIZES_PX]
        return measure_resolution_consistency(STUDENT, backbone_extractor(self.model), self.data, sizes)


TASKS = {
    "knn": CheckpointEvaluation.knn,
    "segmentation_probe": CheckpointEvaluation.segmentation_probe,
    "adaptor_fidelity": CheckpointEvaluation.adaptor_fidelity,
    "zero_shot": CheckpointEvaluation.zero_shot,
    "resolution_consistency": CheckpointEvaluation.resolution_consistency,
}


def evaluate(checkpoint: Path, tasks: Sequence[str], recipe: Recipe, *, size: int | None = None) -> Results:
    """Run evaluations of a checkpoint folder.

    Args:
        checkpoint: Folder with `config.json` and `model.safetensors`.
        tasks: Names out of `TASKS`.
        recipe: Names the data and the teachers.
        size: Side of the images in pixels; None for the checkpoint's preferred resolution.

    Returns:
        The measurements with their sources.

    Raises:
        ValueError: If a task or the folder is not known.
        PackageError: If data or teachers cannot be fetched.
    """
    for task in tasks:
        check_choice("tasks", task, TASKS)
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"`checkpoint` must be a folder with a config.json, got {str(checkpoint)!r}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = RadioModel.from_pretrained(checkpoint).eval().to(device)  # pyrefly: ignore[bad-argument-type]
    data = EvaluationData.load(recipe.data.source, size or min(model.preferred_resolution), device=device)
    evaluation = CheckpointEvaluation(model, recipe, data, checkpoint)
    measurements, clock = [], Clock()
    for task in tasks:
        with clock.phase(task):
            measurements += TASKS[task](evaluation)
    run = describe_run(f"python -m training.evaluate {checkpoint} --tasks {','.join(tasks)}", clock.seconds)
    return Results(measurements, teacher_sources(model.config, recipe), data_sources(data.assets), run, data.remarks())
