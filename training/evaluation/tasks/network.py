"""What goes on inside a RADIO model, block by block."""

from __future__ import annotations

import dataclasses

import torch

from foundation.machine.timing import ProgressBar
from model_cards.results import Measurement
from training.evaluation.metrics.network_statistics import BlockStatistics, block_statistics
from training.evaluation.models.radio import radio_model
from training.evaluation.tasks.base import Evaluation


MAX_IMAGES = 32
"""Our choice of images: all attention logits of each are computed, and extremes hardly move after some."""
_LARGEST = ("logit", "activation")


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
