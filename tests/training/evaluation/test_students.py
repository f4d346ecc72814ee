"""Students of one recipe are measured beside the same teachers, and named after what they are."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from model_cards.results import STUDENT
from training.evaluation import students
from training.evaluation.data.demo import DemoData
from training.evaluation.extractors import Features
from training.evaluation.students import StudentEvaluation
from training.recipe import load_recipe


RECIPE = """
student:
  config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, patch_size: 8, max_img_size: 64}
  adaptor: {hidden_size: 8, num_inner_blocks: 0}
teachers:
  - {name: a, kind: toy}
  - {name: b, kind: toy}
data: {source: toy}
"""


class ToyTeacher:
    """Answers with pixels."""

    def __init__(self, summary_dim: int | None) -> None:
        self.summary_dim, self.feature_dim = summary_dim, 3

    def answer(self, pixel_values: torch.Tensor) -> Features:
        summary = None if self.summary_dim is None else pixel_values.mean((2, 3))
        return Features(summary, F.avg_pool2d(pixel_values, 8))


@pytest.fixture
def evaluation(data, monkeypatch, tmp_path) -> StudentEvaluation:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    sizes, strides = [], []

    def build(entries, grid_stride):
        strides.append(grid_stride)
        return {"a": ToyTeacher(3), "b": ToyTeacher(None)}

    def load(source, size):
        sizes.append(size)
        return data

    monkeypatch.setattr(students, "build_teachers", build)
    monkeypatch.setattr(DemoData, "load", load)
    evaluation = StudentEvaluation.load(load_recipe(str(tmp_path / "toy.yaml")))
    assert sizes == [min(evaluation.untrained_student(0).preferred_resolution)]
    assert strides == [evaluation.patch_size]
    return evaluation


def test_teachers_are_asked_once_about_the_unlabeled_images(evaluation, data):
    assert list(evaluation.references) == ["a", "b"]
    assert evaluation.references["a"].summary.shape == (len(data.unlabeled), 3)
    assert evaluation.references["b"].summary is None
    assert evaluation.references["b"].features.shape == (len(data.unlabeled), 3, 2, 2)
    assert evaluation.patch_size == 8


def test_an_untrained_student_depends_on_its_seed_alone(evaluation):
    weights = [evaluation.untrained_student(seed).radio_model.model.blocks[0].mlp.fc1.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_student_has_rows_for_its_backbone_and_its_adaptors(evaluation):
    measurements = evaluation.measure_student(evaluation.untrained_student(3), " before training", 3)
    assert {found.seed for found in measurements} == {3}
    rows = {found.model: set() for found in measurements}
    for found in measurements:
        rows[found.model].add((found.task, found.metric))
    dense = {("adaptor_fidelity", metric) for metric in ("features", "centered features")}
    summary = {("adaptor_fidelity", metric) for metric in ("summary", "centered summary")}
    assert rows == {
        f"{STUDENT} before training": {
            ("knn", "accuracy"),
            ("knn", "accuracy, mean features"),
            ("segmentation_probe", "mIoU"),
        },
        "adaptor a before training": dense | summary,
        "adaptor b before training": dense,
    }


def test_fidelity_is_that_of_the_named_teacher(evaluation):
    answers = evaluation.references["a"]

    def perfect(pixel_values, **options):
        return SimpleNamespace(adaptors={"a": answers, "b": answers})

    by_metric = {
        teacher: {found.metric: found.value for found in evaluation.measure_fidelity("x", perfect, teacher, 0)}
        for teacher in ("a", "b")
    }
    assert by_metric["a"]["features"] == pytest.approx(1.0)
    assert by_metric["a"]["summary"] == pytest.approx(1.0)
    assert "summary" not in by_metric["b"]
