"""What a RADIO1D loses with fewer global tokens: kNN, segmentation and fidelity over their number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from model_cards.results import Measurement
from modeling_radio.checks_radio import Resolution
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import Evaluation
from training.evaluation.tasks.classification import measure_knn
from training.evaluation.tasks.dense_prediction import measure_segmentation_probe
from training.evaluation.tasks.fidelity import measure_adaptor_fidelity


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
