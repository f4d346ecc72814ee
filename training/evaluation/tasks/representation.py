"""Tasks on the features themselves: fidelity to teachers, rank and norms, numbers of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from core.seeds import make_generator
from core.timing import ProgressBar
from model_cards.results import STUDENT, Measurement
from modeling_radio.checks_radio import Resolution
from training.evaluation.data import CroppedViews, Examples, Kind, square
from training.evaluation.features import Wanted
from training.evaluation.metrics.fidelity import (
    canonical_correlation,
    fidelity_scores,
    fixed_pattern_energy,
    linear_fidelity,
    position_r2,
    shift_error,
)
from training.evaluation.metrics.representation import (
    BlockStatistics,
    block_norms,
    block_statistics,
    channel_statistics,
    effective_rank,
    lidar,
    rank_me,
)
from training.evaluation.models.base import FeatureModel
from training.evaluation.models.radio import RadioFeatures, radio_model
from training.evaluation.tasks.base import Evaluation, squares_of, summary_or_mean
from training.evaluation.tasks.classification import measure_knn
from training.evaluation.tasks.dense_prediction import measure_segmentation_probe


TOKENS_OF_EACH = 64
"""Our choice of patches of each image: enough for stable covariances, few enough for any memory."""


def adaptors(model: FeatureModel) -> Wanted:
    """Return that the maps of all adaptors are wanted."""
    return Wanted(dense=True, adaptors=frozenset(model.adaptor_names))


def measure_adaptor_fidelity(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean cosine of every adaptor with its teacher, as it is and about the teacher's mean."""
    _require_teachers(evaluation, "adaptor_fidelity")
    return [
        measurement
        for name in evaluation.teachers
        for measurement in _measurements(evaluation, "adaptor_fidelity", name, fidelity(evaluation, name, "images"))
    ]


def measure_fidelity_over_sizes(evaluation: Evaluation) -> list[Measurement]:
    """Measure the same at several sizes, where a teacher may change its answers, of photographs' middle squares."""
    _require_teachers(evaluation, "fidelity_over_sizes")
    measurements = []
    for size in evaluation.supported_sizes("switching_sizes_px", evaluation.settings.switching_sizes_px):
        for name in evaluation.teachers:
            scores = fidelity(evaluation, name, "photographs", size)
            named = {f"{size} px, {metric}": values for metric, values in scores.items()}
            measurements += _measurements(evaluation, "fidelity_over_sizes", name, named, "photographs")
    return measurements


def fidelity(
    evaluation: Evaluation, teacher: str, kind: Kind = "images", size_px: int | None = None
) -> dict[str, Tensor]:
    """Return the scores of each test image by metric, `(num_images,)`; see `fidelity_scores`.

    Args:
        evaluation: Of the student.
        teacher: Its name.
        kind: Of the images.
        size_px: Side of their middle squares; None for whole images at the student's own size.
    """
    if size_px is None:
        answers = evaluation.features(kind, wanted=Wanted(dense=True, adaptors=frozenset([teacher])))
    else:
        answers = evaluation.square_features(kind, size_px=size_px, wanted=adaptors(evaluation.model))
    return fidelity_scores(answers, evaluation.reference(teacher, kind, size_px), teacher)


def _measurements(
    evaluation: Evaluation, task: str, teacher: str, scores: dict[str, Tensor], kind: Kind = "images"
) -> list[Measurement]:
    row = f"adaptor {teacher}{evaluation.model.name.removeprefix(STUDENT)}"
    return [replace(evaluation.mean(task, metric, values, kind), model=row) for metric, values in scores.items()]


def _require_teachers(evaluation: Evaluation, task: str) -> None:
    if not evaluation.teachers:
        raise ValueError(f"`{task}` needs the teachers of the model's adaptors, which {evaluation.model.name!r} lacks.")


def measure_model_similarity(evaluation: Evaluation) -> list[Measurement]:
    """Measure canonical correlations of patches with each teacher's, and how well either is a linear map of the other.

    Directions and maps are fit to one half of the images and measured on the other.
    """
    if not evaluation.teachers:
        raise ValueError(
            f"`model_similarity` needs the teachers of the model's adaptors, which {evaluation.model.name!r} lacks."
        )
    measurements = []
    for name in evaluation.teachers:
        train, test = _halves(evaluation, name)
        values = {
            "CCA": canonical_correlation(train, test),
            "teacher from model, R2": linear_fidelity(train, test),
            "model from teacher, R2": linear_fidelity(train[::-1], test[::-1]),
        }
        for metric, value in values.items():
            measurement = evaluation.measurement("model_similarity", metric, value, "images")
            measurements.append(replace(measurement, model=f"{evaluation.model.name} beside {name}"))
    return measurements


def _halves(evaluation: Evaluation, teacher: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return patches of model and teacher at the same places, of the first half of the images and of the second."""
    ours = evaluation.features("images", wanted=Wanted(dense=True))
    theirs = evaluation.reference(teacher, "images")
    pairs = []
    for image in range(len(ours)):
        one, two = ours.map(image), theirs.map(image)
        two = F.interpolate(two[None], one.shape[1:], mode="bilinear", antialias=True)[0]
        generator = make_generator(evaluation.settings.random_seed, "places", image)
        places = torch.randperm(one[0].numel(), generator=generator)[:TOKENS_OF_EACH]
        pairs.append((one.flatten(1).T[places], two.flatten(1).T[places]))
    half = len(pairs) // 2
    if not half:
        raise ValueError("`data` must have two images for model_similarity, got one. Leave the task out.")
    (first, second), (third, fourth) = (
        (torch.cat([one for one, _ in part]), torch.cat([two for _, two in part]))
        for part in (pairs[:half], pairs[half:])
    )
    return (first, second), (third, fourth)


MAX_TOKENS = 16384
"""Our choice of patches for what needs a matrix of them all."""
NUM_VIEWS = 8
"""Our choice of crops of each image for LiDAR; its paper takes 50 of 1000 to 10000 images."""
MAX_IMAGES = 32
"""Our choice of images: all attention logits of each are computed, and extremes hardly move after some."""
_LARGEST = ("logit", "activation")


def measure_effective_rank(evaluation: Evaluation) -> list[Measurement]:
    """Measure how many directions summaries and patches use."""
    features = evaluation.features("images", wanted=Wanted(dense=True))
    values = {"summary": effective_rank(summary_or_mean(features)), "features": effective_rank(some_tokens(evaluation))}
    return [evaluation.measurement("effective_rank", metric, value, "images") for metric, value in values.items()]


def some_tokens(evaluation: Evaluation) -> Tensor:
    """Return at most `MAX_TOKENS` seeded patches of all test images, `(num_tokens, dim)`."""
    features = evaluation.features("images", wanted=Wanted(dense=True))
    each = max(1, MAX_TOKENS // len(features))
    chosen = []
    for image in range(len(features)):
        tokens = features.map(image).flatten(1).T
        generator = make_generator(evaluation.settings.random_seed, "tokens", image)
        chosen.append(tokens[torch.randperm(len(tokens), generator=generator)[:each]])
    return torch.cat(chosen)


def measure_feature_statistics(evaluation: Evaluation) -> list[Measurement]:
    """Measure which channels of the patches are far off or far wider than the others."""
    found = channel_statistics(some_tokens(evaluation))
    return [evaluation.measurement("feature_statistics", name, value, "images") for name, value in found.items()]


def measure_fixed_pattern(evaluation: Evaluation) -> list[Measurement]:
    """Measure the share of the features' variance that depends on the place in the grid alone."""
    energy = fixed_pattern_energy(_square_maps(evaluation))
    return [evaluation.measurement("fixed_pattern", "energy", energy, "images")]


def measure_shift_error(evaluation: Evaluation) -> list[Measurement]:
    """Measure how far features of an image that is moved by one patch are from the moved features."""
    model, images = evaluation.model, evaluation.examples("images")
    step, size = model.patch_size, model.size_px

    def seen(top: int) -> Tensor:
        pictures = _Shifted(images, size, step, top)
        name = f"{images.picture_fingerprint} shifted {top} of {size} + {step}"
        stored = evaluation.store.extract(
            model, pictures, name, Wanted(dense=True), size_px=size, description=f"shifted {top} px"
        )
        return stored.maps()

    error = shift_error(seen(0), seen(step), (1, 1))
    return [evaluation.measurement("shift_error", "one patch", error, "images")]


class _Shifted:
    """Squares of `size_px` at a distance of `top_px` from the corner of squares that are one patch larger."""

    def __init__(self, examples: Examples, size_px: int, patch_size: int, top_px: int) -> None:
        self.images, self.size_px, self.large, self.top = examples.images, size_px, size_px + patch_size, top_px

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        large = square(self.images[index], self.large)
        return large[:, self.top : self.top + self.size_px, self.top : self.top + self.size_px]

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels of a square."""
        return (self.size_px, self.size_px)


def measure_block_norms(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean and the largest length of patch tokens after each block: outliers stand out in the latter."""
    model = radio_model(evaluation.model, "block_norms")
    images = evaluation.examples("images").images
    means, largest = [], []
    for index in ProgressBar(range(len(images)), desc="norms", leave=False, disable=None):
        norms = block_norms(model.model, model.preprocess(images[index])[None].to(model.device))
        means.append(torch.stack([norm.mean() for norm in norms]).cpu())
        largest.append(torch.stack([norm.amax() for norm in norms]).cpu())
    measurements = []
    for block, (mean, most) in enumerate(zip(torch.stack(means).T, torch.stack(largest).T, strict=True)):
        measurements.append(evaluation.mean("block_norms", f"block {block}, mean", mean, "images"))
        measurements.append(evaluation.measurement("block_norms", f"block {block}, max", most.max().item(), "images"))
    return measurements


def measure_self_supervised(evaluation: Evaluation) -> list[Measurement]:
    """Measure RankMe of the summaries, and LiDAR over crops of each image: neither needs a label."""
    examples, seed = evaluation.examples("images"), evaluation.settings.random_seed
    views = CroppedViews(examples.images, NUM_VIEWS, seed)
    name = f"{examples.picture_fingerprint} crops {NUM_VIEWS} {seed}"
    stored = evaluation.store.extract(evaluation.model, views, name, Wanted(), description="crops")
    vectors = summary_or_mean(stored).unflatten(0, (len(examples), NUM_VIEWS + 1))
    whole, crops = vectors[:, 0], vectors[:, 1:]
    return [
        evaluation.measurement("self_supervised", "RankMe", rank_me(whole), "images"),
        evaluation.measurement("self_supervised", "LiDAR", lidar(crops), "images"),
    ]


def measure_position_predictor(evaluation: Evaluation) -> list[Measurement]:
    """Measure how well a linear map reads the place of a patch from its features, on images that it was not fit to."""
    maps = _square_maps(evaluation)
    half = len(maps) // 2
    if not half:
        raise ValueError("`data` must have two images for position_predictor, got one. Leave the task out.")
    value = position_r2(maps[:half], maps[half:])
    return [evaluation.measurement("position_predictor", "R2", value, "images")]


def _square_maps(evaluation: Evaluation) -> Tensor:
    """Return the maps of the middle squares of the images, all on one grid, `(num_images, dim, rows, cols)`."""
    examples = evaluation.examples("images")
    squares, name = squares_of(examples)
    wanted = Wanted(dense=True)
    return evaluation.store.extract(evaluation.model, squares, name, wanted, description="squares").maps()


@torch.no_grad()
def measure_model_statistics(evaluation: Evaluation) -> list[Measurement]:
    """Measure sizes of weights, logits and activations, and the entropy of attention, of every block."""
    model = radio_model(evaluation.model, "model_statistics")
    images = evaluation.examples("images").images
    step = -(-len(images) // MAX_IMAGES)
    passes = [
        block_statistics(model.model, model.preprocess(images[index])[None].to(model.device))
        for index in ProgressBar(range(0, len(images), step), desc="statistics", leave=False, disable=None)
    ]
    measurements = []
    for block, of_images in enumerate(zip(*passes, strict=True)):
        for field in dataclasses.fields(BlockStatistics):
            values = [getattr(each, field.name) for each in of_images]
            value = max(values) if field.name in _LARGEST else sum(values) / len(values)
            name = f"block {block}, {field.name}"
            measurements.append(evaluation.measurement("model_statistics", name, value, "images"))
    return measurements


def measure_knn_over_tokens(evaluation: Evaluation) -> list[Measurement]:
    """Measure kNN accuracy with 1, 2, 4, ... and all global tokens of the queries and of the gallery."""
    return _over_tokens(evaluation, "knn_over_tokens", measure_knn)


def measure_segmentation_over_tokens(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mIoU of a linear probe with as many tokens, each number with a probe of its own."""
    return _over_tokens(evaluation, "segmentation_over_tokens", measure_segmentation_probe)


def measure_fidelity_over_tokens(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean cosine of every adaptor with its teacher, with as many tokens."""
    return _over_tokens(evaluation, "fidelity_over_tokens", measure_adaptor_fidelity)


def token_counts(available: int) -> list[int]:
    """Return the powers of two below all tokens, and all."""
    return [2**power for power in range(available.bit_length()) if 2**power < available] + [available]


def _over_tokens(
    evaluation: Evaluation, task: str, measure: Callable[[Evaluation], list[Measurement]]
) -> list[Measurement]:
    model = evaluation.model
    if not isinstance(model, RadioFeatures) or not model.model.config.num_mergings:
        raise ValueError(
            f"`{task}` needs a RADIO1D, whose number of tokens can be chosen, got {model.name!r}. Leave the task out."
        )
    cells = model.size_px // model.patch_size
    measurements = []
    for count in token_counts(model.model.config.count_global_tokens(Resolution(cells, cells))):
        shorter = replace(
            evaluation,
            model=model.with_tokens(count),
            find_teachers=lambda: evaluation.teachers,
            shown_masks={},  # pictures show all tokens
        )
        measurements += [
            replace(found, task=task, metric=f"{count} tokens, {found.metric}") for found in measure(shorter)
        ]
    return measurements
