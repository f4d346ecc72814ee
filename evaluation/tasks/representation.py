"""Tasks on the features themselves: fidelity to teachers, rank and norms, numbers of tokens and channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.checks_radio import Resolution
from modeling_radio.core.seeds import make_generator
from modeling_radio.core.timing import ProgressBar
from modeling_radio.evaluation.data import CroppedViews, Examples, Kind, square
from modeling_radio.evaluation.features import StoredFeatures, Wanted
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.tasks.base import DENSE, Evaluation, Task, dense_features, squares_of, summary_or_mean
from modeling_radio.evaluation.tasks.classification import measure_knn
from modeling_radio.evaluation.tasks.dense_prediction import measure_segmentation_probe
from modeling_radio.metrics.feature_model import FeatureModel
from modeling_radio.metrics.representation import (
    BlockStatistics,
    block_norms,
    block_statistics,
    channel_statistics,
    effective_rank,
    lidar,
    rank_me,
)
from modeling_radio.metrics.results import STUDENT, Measurement
from modeling_radio.navit_radio import matryoshka_widths
from modeling_radio.training.losses.alignment import on_larger_grid
from modeling_radio.training.losses.fidelity import (
    canonical_correlation,
    fixed_pattern_energy,
    linear_fidelity,
    position_r2,
    shift_error,
)


TOKENS_OF_EACH = 64
"""Our choice of patches of each image: enough for stable covariances, few enough for any memory."""
MAX_TOKENS = 16384
"""Our choice of patches for metrics that need a matrix of them all."""
NUM_VIEWS = 8
"""Our choice of crops of each image for LiDAR; its paper takes 50 of 1000 to 10000 images."""
MAX_IMAGES = 32
"""Our choice of images for statistics of blocks: all attention logits of each are computed, and extremes hardly move
with more."""
_LARGEST = ("logit", "activation")


def all_adaptors(model: FeatureModel) -> Wanted:
    """Return the dense features of all adaptors."""
    return Wanted(dense=True, adaptors=frozenset(model.adaptor_names))


def measure_adaptor_fidelity(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean cosine of every adaptor with its teacher, plain and about the teacher's mean."""
    _require_teachers(evaluation, "adaptor_fidelity")
    measurements = []
    for name in evaluation.teachers:
        features = evaluation.features("images", wanted=Wanted(dense=True, adaptors=frozenset([name])))
        scores = fidelity_scores(features, evaluation.reference(name, "images"), name)
        measurements += _of_adaptor(evaluation, "adaptor_fidelity", name, scores, "images")
    return measurements


def measure_fidelity_over_sizes(evaluation: Evaluation) -> list[Measurement]:
    """Measure the fidelity of every adaptor on photographs' middle squares at several sizes."""
    _require_teachers(evaluation, "fidelity_over_sizes")
    measurements = []
    for size in evaluation.supported_sizes("switching_sizes_px", evaluation.settings.switching_sizes_px):
        for name in evaluation.teachers:
            features = evaluation.square_features("photographs", size_px=size, wanted=all_adaptors(evaluation.model))
            scores = fidelity_scores(features, evaluation.reference(name, "photographs", size), name)
            named = {f"{size} px, {metric}": values for metric, values in scores.items()}
            measurements += _of_adaptor(evaluation, "fidelity_over_sizes", name, named, "photographs")
    return measurements


def fidelity_scores(student: StoredFeatures, teacher: StoredFeatures, adaptor: str) -> dict[str, Tensor]:
    """Return the mean cosines of each image between an adaptor and its teacher, in [-1, 1], `(num_images,)`.

    The `centered` ones first subtract the teacher's mean vector from both sides; see `centered_cosine`.

    Args:
        student: Features of the student, with those of the adaptor, which are in the teacher's space.
        teacher: Features of the teacher. The smaller of two different grids is resampled, as in training.
        adaptor: Name of the adaptor.

    Returns:
        By name: `summary` and `centered summary` if both have a summary, `features` and `centered features`.

    Raises:
        ValueError: If the channels differ.
    """
    scores = {}
    summary, target = student.summary(adaptor), teacher.summary()
    if summary is not None and target is not None:
        center = target.mean(0)
        scores["summary"] = F.cosine_similarity(summary, target, dim=1)
        scores["centered summary"] = F.cosine_similarity(summary - center, target - center, dim=1)
    mean = teacher.mean_features().mean(0)[:, None, None]
    plain, centered = [], []
    for image in range(len(student)):
        features, truth = student.map(image, adaptor), teacher.map(image)
        if len(features) != len(truth):
            raise ValueError(
                f"`adaptor` must have as many channels as its teacher, {len(truth)}, got {len(features)} of "
                f"{adaptor!r}."
            )
        (own,), (wanted,) = on_larger_grid(features[None], truth[None])
        plain.append(F.cosine_similarity(own, wanted, dim=0).mean())
        centered.append(F.cosine_similarity(own - mean, wanted - mean, dim=0).mean())
    return {**scores, "features": torch.stack(plain), "centered features": torch.stack(centered)}


def _of_adaptor(
    evaluation: Evaluation, task: str, teacher: str, scores: dict[str, Tensor], kind: Kind
) -> list[Measurement]:
    """Return the means of scores as the row of an adaptor."""
    row = f"adaptor {teacher}{evaluation.model.name.removeprefix(STUDENT)}"
    return [replace(evaluation.mean(task, metric, values, kind), model=row) for metric, values in scores.items()]


def _require_teachers(evaluation: Evaluation, task: str) -> None:
    if not evaluation.teachers:
        raise ValueError(f"`{task}` needs the teachers of the model's adaptors, which {evaluation.model.name!r} lacks.")


def measure_model_similarity(evaluation: Evaluation) -> list[Measurement]:
    """Measure canonical correlations of patches with each teacher's, and how well either is a linear map of the other.

    Directions and maps are fit to one half of the images and measured on the other.
    """
    _require_teachers(evaluation, "model_similarity")
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
    """Return patches of model and teacher at the same positions, of the first half of the images and of the second."""
    ours = evaluation.features("images", wanted=DENSE)
    theirs = evaluation.reference(teacher, "images")
    pairs = []
    for image in range(len(ours)):
        one, two = ours.map(image), theirs.map(image)
        two = F.interpolate(two[None], one.shape[1:], mode="bilinear", antialias=True)[0]
        generator = make_generator(evaluation.settings.seed, "places", image)
        positions = torch.randperm(one[0].numel(), generator=generator)[:TOKENS_OF_EACH]
        pairs.append((one.flatten(1).T[positions], two.flatten(1).T[positions]))
    half = len(pairs) // 2
    if not half:
        raise ValueError("`data` must have two images for model_similarity, got one. Leave the task out.")

    def joined(some: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.cat([one for one, _ in some]), torch.cat([two for _, two in some])

    return joined(pairs[:half]), joined(pairs[half:])


def measure_effective_rank(evaluation: Evaluation) -> list[Measurement]:
    """Measure the number of directions that summaries and patches use."""
    features = evaluation.features("images", wanted=DENSE)
    values = {"summary": effective_rank(summary_or_mean(features)), "features": effective_rank(some_tokens(evaluation))}
    return [evaluation.measurement("effective_rank", metric, value, "images") for metric, value in values.items()]


def some_tokens(evaluation: Evaluation) -> Tensor:
    """Return at most `MAX_TOKENS` random patches of all test images, seeded, `(num_tokens, dim)`."""
    features = evaluation.features("images", wanted=DENSE)
    each = max(1, MAX_TOKENS // len(features))
    chosen = []
    for image in range(len(features)):
        tokens = features.map(image).flatten(1).T
        generator = make_generator(evaluation.settings.seed, "tokens", image)
        chosen.append(tokens[torch.randperm(len(tokens), generator=generator)[:each]])
    return torch.cat(chosen)


def measure_feature_statistics(evaluation: Evaluation) -> list[Measurement]:
    """Measure how far the most extreme channels of the patches are from the others."""
    found = channel_statistics(some_tokens(evaluation))
    return [evaluation.measurement("feature_statistics", name, value, "images") for name, value in found.items()]


def measure_fixed_pattern(evaluation: Evaluation) -> list[Measurement]:
    """Measure the share of the features' variance that depends on the position alone."""
    energy = fixed_pattern_energy(_square_maps(evaluation))
    return [evaluation.measurement("fixed_pattern", "energy", energy, "images")]


def measure_shift_error(evaluation: Evaluation) -> list[Measurement]:
    """Measure how far features of an image that is shifted by one patch are from the shifted features."""
    model, images = evaluation.model, evaluation.examples("images")
    step, size = model.patch_size, model.size_px

    def shifted(top: int) -> Tensor:
        squares = _Shifted(images, size, step, top)
        name = f"{images.image_fingerprint} shifted {top} of {size} + {step}"
        description = f"shifted {top} px"
        return evaluation.store.extract(model, squares, name, DENSE, size_px=size, description=description).maps()

    error = shift_error(shifted(0), shifted(step), (1, 1))
    return [evaluation.measurement("shift_error", "one patch", error, "images")]


class _Shifted:
    """Squares of `size_px` at an offset of `top_px` down and right in squares that are one patch larger."""

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
    """Measure the mean and the largest norm of patch tokens after each block; the latter shows outliers."""
    model = _radio_model(evaluation.model, "block_norms")
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
    """Measure RankMe of the summaries, and LiDAR over crops of each image; neither needs labels."""
    examples, seed = evaluation.examples("images"), evaluation.settings.seed
    views = CroppedViews(examples.images, NUM_VIEWS, seed)
    name = f"{examples.image_fingerprint} crops {NUM_VIEWS} {seed}"
    stored = evaluation.store.extract(evaluation.model, views, name, Wanted(), description="crops")
    vectors = summary_or_mean(stored).unflatten(0, (len(examples), NUM_VIEWS + 1))
    whole, crops = vectors[:, 0], vectors[:, 1:]
    return [
        evaluation.measurement("self_supervised", "RankMe", rank_me(whole), "images"),
        evaluation.measurement("self_supervised", "LiDAR", lidar(crops), "images"),
    ]


def measure_position_predictor(evaluation: Evaluation) -> list[Measurement]:
    """Measure how well a linear map predicts the position of a patch from its features, on images outside the fit."""
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
    return evaluation.store.extract(evaluation.model, squares, name, DENSE, description="squares").maps()


def _radio_model(model: FeatureModel, task: str) -> RadioFeatures:
    if not isinstance(model, RadioFeatures):
        raise ValueError(f"`{task}` needs a RADIO model, got {model.name!r}. Leave the task out.")
    return model


@torch.no_grad()
def measure_model_statistics(evaluation: Evaluation) -> list[Measurement]:
    """Measure sizes of weights, logits and activations, and the entropy of attention, of every block."""
    model = _radio_model(evaluation.model, "model_statistics")
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
    """Measure the mIoU of a linear probe with 1, 2, 4, ... and all global tokens, one probe for each number."""
    return _over_tokens(evaluation, "segmentation_over_tokens", measure_segmentation_probe)


def measure_fidelity_over_tokens(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean cosine of every adaptor with its teacher with 1, 2, 4, ... and all global tokens."""
    return _over_tokens(evaluation, "fidelity_over_tokens", measure_adaptor_fidelity)


def measure_knn_over_widths(evaluation: Evaluation) -> list[Measurement]:
    """Measure kNN accuracy with the first 128, 256, ... and all channels, where they were learned for that."""
    return _over_widths(evaluation, "knn_over_widths", measure_knn)


def measure_segmentation_over_widths(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mIoU of a linear probe on the first 128, 256, ... and all channels, one probe for each number."""
    return _over_widths(evaluation, "segmentation_over_widths", measure_segmentation_probe)


def _over_widths(
    evaluation: Evaluation, task: str, measure: Callable[[Evaluation], list[Measurement]]
) -> list[Measurement]:
    model = evaluation.model
    if not isinstance(model, RadioFeatures) or not (model.model.config.navit or {}).get("matryoshka"):
        raise ValueError(
            f"`{task}` needs a NaViT with matryoshka widths (`student.matryoshka`), got {model.name!r}. Leave the task "
            "out."
        )
    measurements = []
    for width in matryoshka_widths(model.model.config.hidden_size):
        narrower = replace(evaluation, model=model.truncated(width), shown_masks={})  # the report shows all channels
        measurements += [
            replace(found, task=task, metric=f"{width} channels, {found.metric}") for found in measure(narrower)
        ]
    return measurements


def token_counts(available: int) -> list[int]:
    """Return the powers of two below the number of tokens, and the number itself."""
    return [2**power for power in range(available.bit_length()) if 2**power < available] + [available]


def _over_tokens(
    evaluation: Evaluation, task: str, measure: Callable[[Evaluation], list[Measurement]]
) -> list[Measurement]:
    model = evaluation.model
    if not isinstance(model, RadioFeatures) or not model.model.config.num_mergings:
        raise ValueError(
            f"`{task}` needs a RADIO1D, whose number of tokens can be chosen, got {model.name!r}. Leave the task out."
        )
    side = model.size_px // model.patch_size
    measurements = []
    for count in token_counts(model.model.config.count_global_tokens(Resolution(side, side))):
        shorter = replace(
            evaluation,
            model=model.with_tokens(count),
            find_teachers=lambda: evaluation.teachers,
            shown_masks={},  # the report shows all tokens
        )
        measurements += [
            replace(found, task=task, metric=f"{count} tokens, {found.metric}") for found in measure(shorter)
        ]
    return measurements


ADAPTOR_FIDELITY = Task(measure_adaptor_fidelity, "images", all_adaptors, needs_teachers=True)
FIDELITY_OVER_SIZES = Task(measure_fidelity_over_sizes, "photographs", needs_teachers=True)
KNN_OVER_TOKENS = Task(measure_knn_over_tokens, "labels")
SEGMENTATION_OVER_TOKENS = Task(measure_segmentation_over_tokens, "masks", dense_features)
FIDELITY_OVER_TOKENS = Task(measure_fidelity_over_tokens, "images", all_adaptors, needs_teachers=True)
KNN_OVER_WIDTHS = Task(measure_knn_over_widths, "labels")
SEGMENTATION_OVER_WIDTHS = Task(measure_segmentation_over_widths, "masks", dense_features)
MODEL_SIMILARITY = Task(measure_model_similarity, "images", dense_features, needs_teachers=True)
EFFECTIVE_RANK = Task(measure_effective_rank, "images", dense_features, of_baselines=True)
FEATURE_STATISTICS = Task(measure_feature_statistics, "images", dense_features, of_baselines=True)
FIXED_PATTERN = Task(measure_fixed_pattern, "images", of_baselines=True)
SHIFT_ERROR = Task(measure_shift_error, "images", of_baselines=True)
BLOCK_NORMS = Task(measure_block_norms, "images")
MODEL_STATISTICS = Task(measure_model_statistics, "images")
SELF_SUPERVISED = Task(measure_self_supervised, "images", of_baselines=True)
POSITION_PREDICTOR = Task(measure_position_predictor, "images", of_baselines=True)
