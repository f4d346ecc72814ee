import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_radio.evaluation import students
from modeling_radio.evaluation.students import StudentEvaluation
from modeling_radio.metrics.results import STUDENT
from modeling_radio.training.recipes.recipe import load_recipe
from modeling_radio.training.teachers.outputs import TeacherOutput


RECIPE = """
student:
  config:
    {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, patch_size: 8, max_img_size: 64,
     preferred_resolution: [16, 16]}
  adaptor: {hidden_size: 8, num_inner_blocks: 0}
teachers:
  - {name: a, kind: toy}
  - {name: b, kind: toy}
data: {source: toy}
"""


class ToyTeacher(nn.Module):
    """Outputs mean colors, and counts its passes."""

    def __init__(self, summary_dim: int | None) -> None:
        super().__init__()
        self.summary_dim, self.feature_dim, self.num_calls = summary_dim, 3, 0
        self.register_buffer("mean", torch.zeros(1))

    def extract_features(self, pixel_values: torch.Tensor) -> TeacherOutput:
        self.num_calls += 1
        summary = None if self.summary_dim is None else pixel_values.mean((2, 3))
        return TeacherOutput(summary, F.avg_pool2d(pixel_values, 8))


@pytest.fixture
def evaluation(data, monkeypatch, tmp_path) -> StudentEvaluation:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    asked = []
    teachers = {"a": ToyTeacher(3), "b": ToyTeacher(None)}
    monkeypatch.setattr(students, "build_teachers", lambda entries, stride: asked.append(stride) or teachers)
    monkeypatch.setattr(students, "open_data", lambda source, options, size_px: asked.append(size_px) or data)
    evaluation = StudentEvaluation.load(load_recipe(str(tmp_path / "toy.yaml")))
    assert asked == [evaluation.patch_size, evaluation.size_px] == [8, 16]
    return evaluation


def test_a_student_has_rows_for_its_backbone_and_its_adaptors(evaluation):
    for seed in (0, 3):
        measurements = evaluation.measure_student(evaluation.untrained_student(seed), " before training", seed)
    assert [teacher.num_calls for teacher in evaluation.teachers.values()] == [1, 1]  # seeds share their features
    assert {found.seed for found in measurements} == {3}
    dense = [("adaptor_fidelity", metric) for metric in ("features", "centered features")]
    summary = [("adaptor_fidelity", metric) for metric in ("summary", "centered summary")]
    backbone = [
        ("knn", "accuracy"),
        ("knn", "accuracy, mean features"),
        ("segmentation_probe", "mIoU"),
        ("segmentation_probe", "pixel accuracy"),
    ]
    assert {(found.model, found.task, found.metric) for found in measurements} == {
        *((f"{STUDENT} before training", *each) for each in backbone),
        *(("adaptor a before training", *each) for each in [*dense, *summary]),
        *(("adaptor b before training", *each) for each in dense),
    }


def test_teachers_are_rows_of_their_own(evaluation):
    measurements = evaluation.measure_backbone(evaluation.of(evaluation.teacher("a")))
    assert {(found.model, found.seed) for found in measurements} == {("teacher a", None)}
    (found,) = [each for each in measurements if (each.task, each.metric) == ("knn", "accuracy")]
    assert found.value == 1.0  # the colors of the toy data
