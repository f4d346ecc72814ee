"""Table of the tasks by name: to add one, write a `Task` in the file of its group, and a line here.

It imports nothing heavy, so that `radio evaluate --help` need not wait for torch. A task of a user's own is a `Task` in
any module, which `--tasks my_package.my_module:MY_TASK` names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from modeling_radio.core.imports import import_object, is_import_path


if TYPE_CHECKING:
    from modeling_radio.evaluation.data import Kind
    from modeling_radio.evaluation.tasks.base import Task


RETRIEVAL = "retrieval"
"""Short name of the two retrieval tasks, as far as the data have labels or captions."""

TASKS: dict[str, str] = {
    "knn": "classification:KNN",
    "logistic_regression": "classification:LOGISTIC_REGRESSION",
    "zero_shot": "classification:ZERO_SHOT",
    "image_retrieval": "classification:IMAGE_RETRIEVAL",
    "image_text_retrieval": "classification:IMAGE_TEXT_RETRIEVAL",
    "segmentation_probe": "dense_prediction:SEGMENTATION_PROBE",
    "open_vocabulary": "dense_prediction:OPEN_VOCABULARY",
    "depth_probe": "dense_prediction:DEPTH_PROBE",
    "depth_dpt_probe": "dpt_probes:DEPTH_DPT_PROBE",
    "normals_dpt_probe": "dpt_probes:NORMALS_DPT_PROBE",
    "patch_correspondence": "dense_prediction:PATCH_CORRESPONDENCE",
    "keypoints": "correspondence:KEYPOINTS",
    "concept_segmentation": "concept_segmentation:CONCEPT_SEGMENTATION",
    "resolution_consistency": "dense_prediction:RESOLUTION_CONSISTENCY",
    "mode_switching": "classification:MODE_SWITCHING",
    "window_consistency": "dense_prediction:WINDOW_CONSISTENCY",
    "adaptor_fidelity": "representation:ADAPTOR_FIDELITY",
    "fidelity_over_sizes": "representation:FIDELITY_OVER_SIZES",
    "knn_over_tokens": "representation:KNN_OVER_TOKENS",
    "segmentation_over_tokens": "representation:SEGMENTATION_OVER_TOKENS",
    "fidelity_over_tokens": "representation:FIDELITY_OVER_TOKENS",
    "knn_over_widths": "representation:KNN_OVER_WIDTHS",
    "segmentation_over_widths": "representation:SEGMENTATION_OVER_WIDTHS",
    "model_similarity": "representation:MODEL_SIMILARITY",
    "effective_rank": "representation:EFFECTIVE_RANK",
    "feature_statistics": "representation:FEATURE_STATISTICS",
    "fixed_pattern": "representation:FIXED_PATTERN",
    "shift_error": "representation:SHIFT_ERROR",
    "block_norms": "representation:BLOCK_NORMS",
    "model_statistics": "representation:MODEL_STATISTICS",
    "self_supervised": "representation:SELF_SUPERVISED",
    "position_predictor": "representation:POSITION_PREDICTOR",
}
"""The `Task` of each name: a module beside this one, and its constant."""


def find_task(name: str) -> Task:
    """Return a task of `TASKS`, or the one at an import path, "my_package.my_module:MY_TASK".

    Raises:
        ValueError: If it cannot be imported, or is no `Task`.
    """
    from modeling_radio.evaluation.tasks.base import Task

    found = import_object(name if is_import_path(name) else f"{__package__}.{TASKS[name]}", "tasks")
    if not isinstance(found, Task):
        raise ValueError(
            f"`tasks` {name!r} must be a `Task` of modeling_radio.evaluation.tasks.base, got a {type(found).__name__}."
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
