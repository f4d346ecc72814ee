"""All evaluations of one saved checkpoint."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator

from foundation.checkpoints import open_checkpoint
from foundation.fields import OneOf
from foundation.settings import require
from foundation.timing import Clock
from model_cards.results import STUDENT, Measurement, Results
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.resolution_radio import check_multiple, largest_side
from training.evaluation.data.demo import DemoData
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
from training.recipe import Recipe, RecipeCommand, RecipeError
from training.teachers.base import Teacher
from training.teachers.embedded import EfficientNetLite0Teacher
from training.teachers.registry import build_teachers


class CheckpointEvaluation:
    """Measures one checkpoint: its backbone beside the raw pixels, its adaptors beside their teachers.

    Args:
        model: The student in eval mode.
        recipe: Names its teachers.
        data: The held-out images.
        settings: Of the evaluations.
    """

    def __init__(self, model: RadioModel, recipe: Recipe, data: DemoData, settings: "EvaluationSettings") -> None:
        self.model, self.recipe, self.data, self.settings = model, recipe, data, settings

    @cached_property
    def teachers(self) -> dict[str, Teacher]:
        """The teachers that the model has adaptors for, fetched on first use."""
        entries = [entry for entry in self.recipe.teachers if entry.name in self.model.radio_model.adaptors]
        if not entries:
            raise RecipeError(
                f"Recipe {self.recipe.name!r} names none of the checkpoint's adaptors "
                f"{[*self.model.radio_model.adaptors]}: give the --recipe it was trained with."
            )
        teachers = build_teachers(entries, self.model.patch_size)
        return {name: teacher.to(self.data.device) for name, teacher in teachers.items()}

    def knn(self) -> list[Measurement]:
        """Measure weighted kNN accuracy of the raw pixels and the backbone."""
        return self._beside_pixels(measure_knn)

    def segmentation_probe(self) -> list[Measurement]:
        """Measure the mean IoU of a linear probe on the raw pixels and on the backbone."""
        return self._beside_pixels(measure_segmentation_probe)

    def _beside_pixels(self, measure: Callable[..., list[Measurement]]) -> list[Measurement]:
        pixels = measure(RAW_PIXELS, pixel_extractor(self.model.patch_size), self.data)
        return pixels + measure(STUDENT, backbone_extractor(self.model), self.data)

    def adaptor_fidelity(self) -> list[Measurement]:
        """Measure the mean cosine of every adaptor with its teacher."""
        measurements = []
        for name, teacher in self.teachers.items():
            reference = self.data.extract(teacher.answer, self.data.unlabeled, name)
            adaptor = adaptor_extractor(self.model, name)
            measurements += measure_adaptor_fidelity(f"adaptor {name}", adaptor, reference, self.data)
        return measurements

    def zero_shot(self) -> list[Measurement]:
        """Measure zero-shot accuracy through the checkpoint's text tower, or else through a teacher's classifier."""
        config = RadioConfig.from_pretrained(self.settings.checkpoint)  # the model itself leaves out the tower
        if config.text_tower is not None:
            return self._text_zero_shot(str(config.text_adaptor))
        measurements = []
        for name, teacher in self.teachers.items():
            if isinstance(teacher, EfficientNetLite0Teacher):
                adaptor = adaptor_extractor(self.model, name)
                measurements += measure_zero_shot(f"teacher {name}", teacher.answer, teacher.classify, self.data)
                measurements += measure_zero_shot(f"adaptor {name}", adaptor, teacher.classify, self.data)
        if not measurements:
            raise RecipeError(
                "`zero_shot` needs a text tower in the checkpoint (conversion.from_nvidia --text-tower), or an adaptor "
                "for a teacher with a classifier: efficientnet-lite0."
            )
        return measurements

    def _text_zero_shot(self, name: str) -> list[Measurement]:
        class_names = self.data.classification.class_names
        classes = embed_with_packed_tower(self.settings.checkpoint, class_names, device=self.data.device)
        return measure_text_zero_shot(f"adaptor {name}", adaptor_extractor(self.model, name), classes, self.data)

    def resolution_consistency(self) -> list[Measurement]:
        """Measure the cosine of dense features at several sizes with those at the largest."""
        sizes = [
            self.model.get_nearest_supported_resolution(size, size).height
            for size in self.settings.consistency_sizes_px
        ]
        if len(set(sizes)) < 2:
            asked = self.settings.consistency_sizes_px
            raise ValueError(f"`consistency_sizes_px` {asked} are all {sizes[0]} px to this model: choose others.")
        return measure_resolution_consistency(STUDENT, backbone_extractor(self.model), self.data, sizes)


TASKS = {
    "knn": CheckpointEvaluation.knn,
    "segmentation_probe": CheckpointEvaluation.segmentation_probe,
    "adaptor_fidelity": CheckpointEvaluation.adaptor_fidelity,
    "zero_shot": CheckpointEvaluation.zero_shot,
    "resolution_consistency": CheckpointEvaluation.resolution_consistency,
}


class EvaluationSettings(RecipeCommand):
    """What shall be measured.

    Attributes:
        checkpoint: Folder with config.json and weights.
        recipe: Recipe that names data and teachers, or a file of your own that ends in .yaml.
        tasks: What to measure.
        size: Side of the images in pixels; by default the checkpoint's preferred resolution.
        output: File that the numbers are also written to, as JSON; earlier results in it are replaced.
        consistency_sizes_px: Sides of the images whose features are compared, the largest with each of the others; by
            default the range that the published models were trained for at low resolution, and one step beyond.
    """

    checkpoint: Path
    tasks: Annotated[list[str], OneOf(TASKS)] = Field(["knn", "segmentation_probe"], min_length=1)
    size: int | None = Field(None, gt=0)
    output: Path | None = None
    consistency_sizes_px: list[int] = [128, 192, 256, 384, 512]

    @model_validator(mode="after")
    def _check(self) -> "EvaluationSettings":
        sizes = self.consistency_sizes_px
        is_range = len(set(sizes)) > 1 and min(sizes) > 0
        require(is_range, "consistency_sizes_px", sizes, "at least two different sizes above 0")
        return self


def _check_output(path: Path | None) -> None:
    """Refuse to write results in place of anything but results, before anything is measured."""
    if path is None or not path.exists():
        return
    try:
        if path.is_dir():
            raise ValueError("it is a folder")
        Results.load(path)
    except ValueError as error:
        raise ValueError(
            f"`output` must be a new file or earlier results, got {str(path)!r}, which holds something else ({error}). "
            "Name another file."
        ) from error


def evaluate(settings: EvaluationSettings, recipe: Recipe) -> Results:
    """Run evaluations of a checkpoint folder.

    Args:
        settings: Which, of what.
        recipe: Names the data and the teachers.

    Returns:
        The measurements with their sources.

    Raises:
        ValueError: If the folder is no checkpoint, is damaged or not finite, `size` does not fit it, or `output` holds
            something else than results.
        PackageError: If data or teachers cannot be fetched.
    """
    checkpoint = settings.checkpoint
    _check_output(settings.output)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_checkpoint(checkpoint).model.to(device)  # pyrefly: ignore[bad-argument-type]
    size = settings.size or min(model.preferred_resolution)
    check_multiple("`size`", size, size, model.patch_size, largest_side(model.config))
    data = DemoData.load(recipe.data.source, size, device=device)
    evaluation = CheckpointEvaluation(model, recipe, data, settings)
    measurements, clock = [], Clock()
    for task in dict.fromkeys(settings.tasks):
        with clock.phase(task):
            measurements += TASKS[task](evaluation)
    run = describe_run(f"python -m training.evaluate {checkpoint} --tasks {','.join(settings.tasks)}", clock.seconds)
    return Results(measurements, teacher_sources(model.config, recipe), data_sources(data.assets), run, data.remarks())
