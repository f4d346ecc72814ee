"""The table of tasks: to add one, write a function of an `Evaluation` and a line here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from training.evaluation.data import Kind
from training.evaluation.tasks import classification, dense_prediction, representation
from training.evaluation.tasks.base import Task, dense, knows_texts, takes_sizes


TASKS: dict[str, Task] = {
    "knn": Task(classification.measure_knn, "labels", of_baselines=True),
    "logistic_regression": Task(classification.measure_logistic_regression, "labels", of_baselines=True),
    "zero_shot": Task(classification.measure_zero_shot, "labels", classification.wanted, of_compared=knows_texts),
    "image_retrieval": Task(classification.measure_image_retrieval, "labels", of_baselines=True),
    "image_text_retrieval": Task(
        classification.measure_image_text_retrieval, "captions", classification.text_space, of_compared=knows_texts
    ),
    "segmentation_probe": Task(dense_prediction.measure_segmentation_probe, "masks", dense, of_baselines=True),
    "open_vocabulary": Task(dense_prediction.measure_open_vocabulary, "masks"),
    "depth_probe": Task(dense_prediction.measure_depth_probe, "depth", dense, of_baselines=True),
    "patch_correspondence": Task(dense_prediction.measure_patch_correspondence, "photographs", of_baselines=True),
    "out_of_distribution": Task(dense_prediction.measure_out_of_distribution, "labels", of_baselines=True),
    "resolution_consistency": Task(
        dense_prediction.measure_resolution_consistency, "photographs", of_compared=takes_sizes
    ),
    "mode_switching": Task(dense_prediction.measure_mode_switching, "labels", of_compared=takes_sizes),
    "window_consistency": Task(dense_prediction.measure_window_consistency, "photographs"),
    "adaptor_fidelity": Task(representation.measure_adaptor_fidelity, "images", representation.adaptors),
    "fidelity_over_sizes": Task(representation.measure_fidelity_over_sizes, "photographs"),
    "knn_over_tokens": Task(representation.measure_knn_over_tokens, "labels"),
    "segmentation_over_tokens": Task(representation.measure_segmentation_over_tokens, "masks", dense),
    "fidelity_over_tokens": Task(representation.measure_fidelity_over_tokens, "images", representation.adaptors),
    "model_similarity": Task(representation.measure_model_similarity, "images", dense),
    "effective_rank": Task(representation.measure_effective_rank, "images", dense, of_baselines=True),
    "feature_statistics": Task(representation.measure_feature_statistics, "images", dense, of_baselines=True),
    "fixed_pattern": Task(representation.measure_fixed_pattern, "images", of_baselines=True),
    "shift_error": Task(representation.measure_shift_error, "images", of_baselines=True),
    "block_norms": Task(representation.measure_block_norms, "images"),
    "model_statistics": Task(representation.measure_model_statistics, "images"),
    "self_supervised": Task(representation.measure_self_supervised, "images", of_baselines=True),
    "position_predictor": Task(representation.measure_position_predictor, "images", of_baselines=True),
}
"""What can be measured, by name."""

RETRIEVAL = "retrieval"
"""Short for the tasks of retrieval that the data have something for."""


def task_names(asked: Sequence[str] | None, kinds: Collection[Kind]) -> list[str]:
    """Return names of `TASKS`, each once, in place of what was asked: of `RETRIEVAL` and of None what `kinds` allow."""
    if asked is None:
        return _possible(("knn", "segmentation_probe"), kinds)
    classification = _possible(("image_retrieval", "image_text_retrieval"), kinds)
    return list(dict.fromkeys(name for word in asked for name in (classification if word == RETRIEVAL else [word])))


def _possible(names: Sequence[str], kinds: Collection[Kind]) -> list[str]:
    """Return the tasks that the data have something for; else the first, whose lack is said as of every task."""
    return [name for name in names if TASKS[name].kind in kinds] or [*names[:1]]
