"""The sections of a run's page are made of what its evaluations saw."""

import pytest
import torch

from model_cards.results import Results
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.report.build import check_page, report_sections
from training.evaluation.report.page import write_page
from training.evaluation.task_settings import TaskSettings
from training.evaluation.tasks.base import Evaluation
from training.evaluation.tasks.classification import measure_knn
from training.evaluation.tasks.dense.segmentation import measure_segmentation_probe


@pytest.fixture
def evaluations(pixels, data, tiny_model):
    student = Evaluation(RadioFeatures(tiny_model, size_px=16), data, TaskSettings(probe_steps=20))
    return [student, pixels(probe_steps=20)]


def test_what_was_measured_has_a_section(evaluations):
    for evaluation in evaluations:
        measure_knn(evaluation)
        measure_segmentation_probe(evaluation)
    colors, neighbors, masks = report_sections(evaluations, ["knn", "segmentation_probe"])
    assert [picture.caption for picture in colors.rows[0].pictures] == ["image", "student", "raw pixels"]
    assert len(neighbors.rows) == 2 * len(evaluations[0].shown("labels"))
    scene = masks.rows[0].pictures
    assert [picture.caption for picture in scene] == ["image", "true classes", "student", "raw pixels"]
    assert torch.equal(scene[1].pixels, scene[3].pixels)  # colors alone tell the halves apart
    assert [name for name, _ in masks.legend] == ["left", "right"]


def test_nothing_is_extracted_for_what_was_not_measured(evaluations):
    assert [section.title for section in report_sections(evaluations, ["effective_rank"])] == ["Dense features"]


def test_a_few_images_over_the_whole_set_are_shown(evaluations):
    assert evaluations[0].shown("labels") == [0, 2, 3, 5]
    assert evaluations[0].shown("masks") == [0, 1, 2, 3]


def test_only_pages_are_replaced_by_pages(tmp_path):
    path = tmp_path / "results.html"
    check_page(path)
    write_page(path, Results([]))
    check_page(path)
    path.write_text("<html>precious</html>")
    with pytest.raises(ValueError, match=r"`output` must leave room for its page, got '.*results.html', which holds"):
        check_page(path)
