"""From a task's name, and the labels of its images, to its class."""

from typing import get_args

import pytest
from datasets import Dataset
from tiny_tuning import mask_rows, tuning_settings

from training.finetuning.data import TARGET_COLUMNS, LabeledImages
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks.classification import ClassificationTask, MultiLabelTask, RegressionTask
from training.finetuning.tasks.dense import SegmentationTask
from training.finetuning.tasks.registry import TASK_CLASSES, build_task


def test_every_task_that_can_be_asked_for_has_a_class_and_columns():
    names = set(get_args(FinetuneSettings.model_fields["task"].annotation))
    assert set(TASK_CLASSES) == set(TARGET_COLUMNS) == names


@pytest.mark.parametrize(
    ("problem_type", "labels", "task_class"),
    [
        ("single_label_classification", [0, 1], ClassificationTask),
        ("multi_label_classification", [[0], [0, 1]], MultiLabelTask),
        ("regression", [0.5, 1.0], RegressionTask),
    ],
)
def test_labels_decide_which_classification_it_is(problem_type, labels, task_class):
    table = Dataset.from_dict({"target": labels})
    images = LabeledImages(table, table, ("a", "b"), "", problem_type)
    assert type(build_task(tuning_settings("image-classification"), images)) is task_class


def test_other_tasks_go_by_their_name():
    table = mask_rows([[0, 1]])
    images = LabeledImages(table, table, ("a", "b"), "")
    assert type(build_task(tuning_settings("semantic-segmentation"), images)) is SegmentationTask
