"""What features are like, whatever they are used for, and what goes on inside a RADIO model, block by block."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from foundation.machine.timing import ProgressBar
from foundation.seeds import make_generator
from model_cards.results import Measurement
from training.evaluation.data.base import Examples
from training.evaluation.data.crops import CroppedViews, square
from training.evaluation.features import Wanted
from training.evaluation.metrics.equivariance import fixed_pattern_energy, position_r2, shift_error
from training.evaluation.metrics.network_statistics import BlockStatistics, block_norms, block_statistics
from training.evaluation.metrics.representation import channel_statistics, effective_rank, lidar, rank_me
from training.evaluation.models.radio import radio_model
from training.evaluation.tasks.base import Evaluation, squares_of, summary_or_mean


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
