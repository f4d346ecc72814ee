"""What changes with the size of an image, and with windows: nothing should."""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.machine.timing import ProgressBar
from model_cards.results import Measurement
from training.evaluation.features import Wanted
from training.evaluation.metrics.equivariance import map_agreement
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import Evaluation, summary_or_mean, unit
from training.evaluation.tasks.classification import answers_of_neighbors, labels_of


DEFAULT_WINDOW = 16
"""Our choice for models without windows of their own: the window of the published ones, in tokens."""
CENTERED = ("", ", centered")


def measure_resolution_consistency(evaluation: Evaluation) -> list[Measurement]:
    """Measure how alike the dense features of the images' middle squares are at other sizes and at the largest.

    Metrics are "SIZE to LARGEST px", and the same with ", centered" about the mean feature.
    """
    sizes = evaluation.supported_sizes("consistency_sizes_px", evaluation.settings.consistency_sizes_px)
    maps = {size: evaluation.square_features("photographs", size_px=size, wanted=Wanted(dense=True)) for size in sizes}
    *smaller, largest = sizes
    mean = maps[largest].mean_features().mean(0)
    measurements = []
    for size in smaller:
        agreement = torch.stack(
            [map_agreement(maps[size].map(image), maps[largest].map(image), mean) for image in range(len(maps[size]))]
        )
        for suffix, scores in zip(CENTERED, agreement.T, strict=True):
            metric = f"{size} to {largest} px{suffix}"
            measurements.append(evaluation.mean("resolution_consistency", metric, scores, "photographs"))
    return measurements


def measure_mode_switching(evaluation: Evaluation) -> list[Measurement]:
    """Measure kNN accuracy at several sizes of the queries, the gallery at the model's own size and at theirs.

    A model that changes its mind with the resolution is good where both are alike, and bad where they differ. Of the
    images the middle squares are shown.

    References:
        RADIOv2.5, section 3 (mode switching). https://arxiv.org/abs/2412.07679
    """
    labels, own_size = labels_of(evaluation.part("labels").test), evaluation.model.size_px

    def vectors(split: str, size_px: int) -> Tensor:
        return summary_or_mean(evaluation.square_features("labels", split, size_px=size_px))

    measurements = []
    for size in evaluation.supported_sizes("switching_sizes_px", evaluation.settings.switching_sizes_px):
        queries = vectors("test", size)
        for name, gallery_size in (("gallery alike", size), (f"gallery at {own_size} px", own_size)):
            scores = answers_of_neighbors(evaluation, queries, vectors("gallery", gallery_size)) == labels
            measurements.append(evaluation.mean("mode_switching", f"{size} px, {name}", scores, "labels"))
        own = vectors("test", own_size)
        cosine = (unit(queries - own.mean(0)) * unit(own - own.mean(0))).sum(1)
        metric = f"{size} px, centered cosine with {own_size} px"
        measurements.append(evaluation.mean("mode_switching", metric, cosine, "labels"))
    return measurements


@torch.no_grad()
def measure_window_consistency(evaluation: Evaluation) -> list[Measurement]:
    """Measure how alike features with ViTDet windows and with global attention are, at the largest switching size."""
    model, settings = evaluation.model, evaluation.settings
    if not isinstance(model, RadioFeatures) or not model.model.config.has_windowed_blocks:
        raise ValueError(
            f"`window_consistency` needs a RADIO model with windowed blocks (`vitdet_num_global`), got {model.name!r}. "
            "Leave the task out."
        )
    config = model.model.config
    window = settings.compared_window or config.vitdet_window_size or DEFAULT_WINDOW
    size = min(max(settings.switching_sizes_px), model.max_size_px)
    size = max(model.patch_size, size // model.patch_size * model.patch_size)
    if window >= size // model.patch_size:
        raise ValueError(
            f"`compared_window` must be below the {size // model.patch_size} patches of {size} px, got {window}: else "
            "one window is the whole image."
        )
    images = evaluation.examples("photographs").images
    pairs: list[tuple[Tensor, Tensor]] = []
    for index in ProgressBar(range(len(images)), desc="windows", leave=False, disable=None):
        pixels = model.preprocess(images[index], size)[None].to(model.device)
        windowed, whole = (model.with_window(pixels, choice).features[0].float().cpu() for choice in (window, "global"))
        pairs.append((windowed, whole))
    mean = torch.stack([whole.mean((1, 2)) for _, whole in pairs]).mean(0)
    agreement = torch.stack([map_agreement(windowed, whole, mean) for windowed, whole in pairs])
    return [
        evaluation.mean("window_consistency", f"window {window} at {size} px{suffix}", scores, "photographs")
        for suffix, scores in zip(CENTERED, agreement.T, strict=True)
    ]
