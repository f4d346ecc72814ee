"""Table of the tasks: to add one, write a function of an `Evaluation`, a line here, and its name in `TASK_NAMES`.

A task of a user's own is a `Task` in any module, which `--tasks my_package.my_module:MY_TASK` names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from modeling_radio.core.imports import import_object, is_import_path
from modeling_radio.evaluation.data import Kind
from modeling_radio.evaluation.features import Wanted
from modeling_radio.evaluation.settings import RETRIEVAL
from modeling_radio.evaluation.tasks import (
    classification,
    concept_segmentation,
    correspondence,
    dense_prediction,
    dpt_probes,
    representation,
)
from modeling_radio.evaluation.tasks.base import DENSE, Evaluation
from modeling_radio.metrics.feature_model import FeatureModel, TextModel
from modeling_radio.metrics.results import Measurement


@dataclass(frozen=True)
class Task:
    """An entry of the table of tasks.

    Attributes:
        measure: Returns the measurements of an evaluation.
        kind: Kind of the images.
        wanted: Returns the features that the task needs; called before any are extracted.
        of_baselines: Whether raw pixels, random networks and all models of `compare` are measured too.
        of_compared: Whether a model of `compare` is measured too.
        needs_teachers: Whether the checkpoint is compared with the teachers of a recipe.
    """

    measure: Callable[[Evaluation], list[Measurement]]
    kind: Kind
    wanted: Callable[[FeatureModel], Wanted] = lambda model: Wanted()
    of_baselines: bool = False
    of_compared: Callable[[FeatureModel], bool] = lambda model: False
    needs_teachers: bool = False


def _dense(model: FeatureModel) -> Wanted:
    return DENSE


def _takes_sizes(model: FeatureModel) -> bool:
    return model.runs_at_any_size


def _knows_texts(model: FeatureModel) -> bool:
    return isinstance(model, TextModel)


TASKS: dict[str, Task] = {
    "knn": Task(classification.measure_knn, "labels", of_baselines=True),
    "logistic_regression": Task(classification.measure_logistic_regression, "labels", of_baselines=True),
    "zero_shot": Task(
        classification.measure_zero_shot, "labels", classification.zero_shot_features, of_compared=_knows_texts
    ),
    "image_retrieval": Task(classification.measure_image_retrieval, "labels", of_baselines=True),
    "image_text_retrieval": Task(
        classification.measure_image_text_retrieval,
        "captions",
        classification.text_features,
        of_compared=_knows_texts,
    ),
    "segmentation_probe": Task(dense_prediction.measure_segmentation_probe, "masks", _dense, of_baselines=True),
    "open_vocabulary": Task(dense_prediction.measure_open_vocabulary, "masks"),
    "depth_probe": Task(dense_prediction.measure_depth_probe, "depth", _dense, of_baselines=True),
    "depth_dpt_probe": Task(dpt_probes.measure_depth_dpt_probe, "depth"),
    "normals_dpt_probe": Task(dpt_probes.measure_normals_dpt_probe, "normals"),
    "patch_correspondence": Task(dense_prediction.measure_patch_correspondence, "photographs", of_baselines=True),
    "keypoints": Task(correspondence.measure_keypoints, "pairs", of_baselines=True),
    "concept_segmentation": Task(concept_segmentation.measure_concept_segmentation, "phrases"),
    "resolution_consistency": Task(
        dense_prediction.measure_resolution_consistency, "photographs", of_compared=_takes_sizes
    ),
    "mode_switching": Task(classification.measure_mode_switching, "labels", of_compared=_takes_sizes),
    "window_consistency": Task(dense_prediction.measure_window_consistency, "photographs"),
    "adaptor_fidelity": Task(
        representation.measure_adaptor_fidelity, "images", representation.all_adaptors, needs_teachers=True
    ),
    "fidelity_over_sizes": Task(representation.measure_fidelity_over_sizes, "photographs", needs_teachers=True),
    "knn_over_tokens": Task(representation.measure_knn_over_tokens, "labels"),
    "segmentation_over_tokens": Task(representation.measure_segmentation_over_tokens, "masks", _dense),
    "fidelity_over_tokens": Task(
        representation.measure_fidelity_over_tokens, "images", representation.all_adaptors, needs_teachers=True
    ),
    "knn_over_widths": Task(representation.measure_knn_over_widths, "labels"),
    "segmentation_over_widths": Task(representation.measure_segmentation_over_widths, "masks", _dense),
    "model_similarity": Task(representation.measure_model_similarity, "images", _dense, needs_teachers=True),
    "effective_rank": Task(representation.measure_effective_rank, "images", _dense, of_baselines=True),
    "feature_statistics": Task(representation.measure_feature_statistics, "images", _dense, of_baselines=True),
    "fixed_pattern": Task(representation.measure_fixed_pattern, "images", of_baselines=True),
    "shift_error": Task(representation.measure_shift_error, "images", of_baselines=True),
    "block_norms": Task(representation.measure_block_norms, "images"),
    "model_statistics": Task(representation.measure_model_statistics, "images"),
    "self_supervised": Task(representation.measure_self_supervised, "images", of_baselines=True),
    "position_predictor": Task(representation.measure_position_predictor, "images", of_baselines=True),
}
"""All tasks by name."""


def find_task(name: str) -> Task:
    """Return a task of `TASKS`, or the one at an import path, "my_package.my_module:MY_TASK".

    Raises:
        ValueError: If it cannot be imported, or is no `Task`.
    """
    if not is_import_path(name):
        return TASKS[name]
    found = import_object(name, "tasks")
    if not isinstance(found, Task):
        raise ValueError(
            f"`tasks` {name!r} must be a `Task` of modeling_radio.evaluation.tasks.registry, got a "
            f"{type(found).__name__}."
        )
    return found


def task_names(asked: Sequence[str] | None, kinds: Collection[Kind]) -> list[str]:
    """Return names of `TASKS`, each once: `RETRIEVAL` and None become the tasks that `kinds` of images allow."""
    if asked is None:
        return _possible(("knn", "segmentation_probe"), kinds)
    retrieval = _possible(("image_retrieval", "image_text_retrieval"), kinds)
    return list(dict.fromkeys(name for word in asked for name in (retrieval if word == RETRIEVAL else [word])))


def _possible(names: Sequence[str], kinds: Collection[Kind]) -> list[str]:
    """Return the tasks that the data allow; if none, the first, which is then refused with the usual message."""
    return [name for name in names if find_task(name).kind in kinds] or [*names[:1]]
