from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from modeling_radio.core.interruption import TrainingDivergedError
from modeling_radio.demo import images
from modeling_radio.demo.images import DemoImages
from modeling_radio.evaluation.students import StudentEvaluation
from modeling_radio.evaluation.tasks.registry import find_task
from modeling_radio.studies import held_out as module
from modeling_radio.studies.held_out import HeldOut
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.student.build import build_student


@pytest.fixture
def student(opened, held_out):
    return build_student(opened.recipe("plain", 0), held_out.evaluation.teachers).eval()


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch):
    """Training probes takes most of the time, and is tested elsewhere."""
    monkeypatch.setattr(
        StudentEvaluation, "measure_backbone", lambda _, evaluation: find_task("knn").measure(evaluation)
    )


def ratio(held_out, sums, name):
    return sum(sums[name]) / sum(held_out.references().weights[name])


def angles(first, second):
    return F.cosine_similarity(first, second).acos().square().sum()


def test_errors_are_those_of_all_images_together(opened, held_out, student):
    sums, numbers = held_out.measure(student, opened.recipe("plain", 0))
    pixels = F.interpolate(held_out.images.float() / 255, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        found = student(pixels, feature_format="NCHW", return_dict=True).adaptors
    for name, teacher in held_out.evaluation.teachers.items():
        truth = teacher.extract_features(pixels).features
        mean = truth.mean((0, 2, 3), keepdim=True)
        expected = (found[name].features - truth).square().sum() / (mean - truth).square().sum()
        assert ratio(held_out, sums, f"dense_error/{name}") == pytest.approx(expected.item(), rel=0.02)
    truth = held_out.evaluation.teachers["semantic"].extract_features(pixels).summary
    expected = angles(found["semantic"].summary, truth) / angles(truth.mean(0).expand_as(truth), truth)
    assert ratio(held_out, sums, "summary_error/semantic") == pytest.approx(expected.item(), rel=0.05)
    assert "summary_error/segmenter" not in sums  # it has none
    assert {len(each) for each in sums.values()} == {4}  # sources
    assert numbers.keys() == {"fixed_pattern", "shift_error", "knn_sets"}
    assert -1 <= ratio(held_out, sums, "consistency") <= 1


def test_the_dense_error_is_that_of_the_ring_and_of_the_patches_inside(held_out):
    student, teacher = torch.rand(2, 5, 4, 3, 4)
    found = replace(held_out, has_ring=True)._squared_errors(student, teacher)
    assert found.keys() == {"dense_error", "ring_error", "inside_error"}
    torch.testing.assert_close(12 * found["dense_error"], 10 * found["ring_error"] + 2 * found["inside_error"])
    inside = (student - teacher)[:, :, 1, 1:3].square().sum(1).mean(1)
    torch.testing.assert_close(found["inside_error"], inside)


def test_a_student_whose_features_are_all_equal_has_failed(opened, held_out, student):
    for parameter in student.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(TrainingDivergedError, match="all equal, or not finite"):
        held_out.measure(student, opened.recipe("plain", 0))


def test_a_student_that_predicts_the_mean_has_an_error_of_one(opened, held_out, student):
    for name, teacher in held_out.teachers.items():
        linear = student.radio_model.adaptor(name).last_dense_linear
        with torch.no_grad():
            linear.weight.zero_()
            linear.bias.copy_(teacher.mean_features().mean(0).repeat(len(linear.bias) // len(teacher.map(0))))
    sums, _ = held_out.measure(student, opened.recipe("plain", 0))
    for name in held_out.teachers:
        assert ratio(held_out, sums, f"dense_error/{name}") == pytest.approx(1)


def test_images_are_the_demos_held_out_ones_and_teachers_run_once(opened, held_out, assets, tmp_path, monkeypatch):
    evaluation = held_out.evaluation
    evaluation = StudentEvaluation(evaluation.recipe, evaluation.data, evaluation.teachers, 32)
    reference = opened.reference.replace(data=opened.reference.data.replace(source="demo"))
    opened = opened._replace(reference=reference)
    monkeypatch.setattr(StudentEvaluation, "load", lambda recipe: evaluation)
    monkeypatch.setattr(images, "load_demo_assets", lambda source: assets)
    monkeypatch.setattr(images, "LABELED_PACKAGES", {})  # thousands of images
    first = HeldOut.load(opened, tmp_path / "cache")
    expected = DemoImages(assets, size=48, num_images=8, split="held_out")
    assert torch.equal(first.images, torch.stack([expected[index] for index in range(8)]))
    assert len(first.sources.unique()) == len({expected.source_of(index) for index in range(8)})
    known = {name: evaluation.teacher(name) for name in evaluation.teachers}
    for teacher in known.values():
        teacher.encode = None
    monkeypatch.setattr(StudentEvaluation, "teacher", lambda self, name: known[name])
    again = HeldOut.load(opened, tmp_path / "cache")
    assert (again.fingerprint, again.references()) == (first.fingerprint, first.references())


def test_sizes_that_a_student_does_not_take_are_refused(opened, held_out, monkeypatch):
    monkeypatch.setattr(StudentEvaluation, "load", lambda recipe: held_out.evaluation)
    wrong = opened._replace(study=opened.study.replace(sizes_px=[32, 40]))
    with pytest.raises(RecipeError, match=r"`sizes_px` .* got \[40\]"):
        HeldOut.load(wrong)


def test_a_radio1d_is_also_measured_over_its_tokens(opened, held_out, monkeypatch):
    recipe = opened.recipe("plain", 0)
    config = {**recipe.student.config, "downscale_levels": [1], "decoder_depth": 1}
    recipe = recipe.replace(student=recipe.student.replace(config=config))
    student = build_student(recipe, held_out.evaluation.teachers).eval()
    monkeypatch.setattr(module, "TOKEN_TASKS", ("knn_over_tokens", "fidelity_over_tokens"))
    _, numbers = held_out.measure(student, recipe)
    assert {name for name in numbers if "tokens" in name} == {"knn/1 tokens", "cosine/1 tokens"}  # 2 x 2 patches
