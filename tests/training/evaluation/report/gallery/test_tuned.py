"""What tuned models say of photographs: each task in its own way, others refused."""

from types import SimpleNamespace

import pytest
import torch
from task_models import tiny_config

from modeling_radio import (
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioImageProcessor,
)
from training.evaluation.report.gallery.tuned import _class_of, open_task_models, task_section


PHOTOGRAPHS = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model_class", "caption"),
    [
        (RadioForSemanticSegmentation, "classes"),
        (RadioForDepthEstimation, "depth, "),
        (RadioForImageClassification, "LABEL_"),
    ],
)
def test_each_task_is_shown(model_class, caption, tmp_path):
    config = tiny_config(preferred_resolution=[64, 64])
    model_class(config).save_pretrained(tmp_path / "tuned")
    RadioImageProcessor.from_model_config(config).save_pretrained(tmp_path / "tuned")
    (task,) = open_task_models([tmp_path / "tuned"])
    section = task_section(task, PHOTOGRAPHS, ["one", "two"])
    assert section.title == "Task: tuned"
    assert [row.title for row in section.rows] == ["one", "two"]
    photograph, answer = section.rows[1].pictures
    assert torch.equal(photograph.pixels, PHOTOGRAPHS[1])
    assert answer.caption.startswith(caption)
    assert answer.pixels.shape == (3, 64, 64)
    is_of_image = model_class is RadioForImageClassification
    assert torch.equal(answer.pixels, photograph.pixels) == is_of_image
    assert bool(section.legend) == (model_class is RadioForSemanticSegmentation)


def test_other_tasks_are_refused(tmp_path):
    RadioForObjectDetection(tiny_config()).save_pretrained(tmp_path / "boxes")
    with pytest.raises(ValueError, match=r"`tasks` must be folders of .*got .*of 'RadioForObjectDetection'"):
        open_task_models([tmp_path / "boxes"])


@pytest.mark.parametrize(
    ("problem_type", "shown"),
    [(None, "b, 0.82"), ("multi_label_classification", "b, 0.82"), ("regression", "a 0.00, b 3.00")],
)
def test_scores_of_classifiers_are_those_of_their_problem(problem_type, shown):
    config = tiny_config(num_labels=2, problem_type=problem_type, temperature=2.0)
    task = SimpleNamespace(model=SimpleNamespace(config=config), labels=["a", "b"])
    assert _class_of(task, torch.tensor([0.0, 3.0])) == shown
