"""Fidelity to teachers and likeness to them, on models of which the answer is known."""

import pytest
import torch
from torch.nn import functional as F

from training.evaluation.data_tables import TableData
from training.evaluation.features import FeatureStore
from training.evaluation.models.pretrained import RawPixels
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import Evaluation, TaskSettings
from training.evaluation.tasks.representation import (
    measure_adaptor_fidelity,
    measure_fidelity_over_sizes,
    measure_model_similarity,
)


class Colors(RawPixels):
    """A teacher that answers with ten channels of color."""

    def __init__(self, summary_dim: int | None) -> None:
        super().__init__(8, 16)
        self.summary_dim = summary_dim

    def encode(self, pixels, adaptors=()):
        features = F.avg_pool2d(pixels, 8).repeat(1, 4, 1, 1)[:, :10]
        summary = None if self.summary_dim is None else features.mean((2, 3))[:, : self.summary_dim]
        return super().encode(pixels)._replace(summary=summary, features=features)


@pytest.fixture
def evaluation(tiny_model, noisy_folders) -> Evaluation:
    teachers = {"teacher_a": Colors(6), "teacher_b": Colors(None)}
    data, settings = TableData(str(noisy_folders)), TaskSettings(switching_sizes_px=[16, 32])
    return Evaluation(
        RadioFeatures(tiny_model, name="student before", size_px=16), data, settings, find_teachers=lambda: teachers
    )


def test_adaptors_have_rows_of_their_own(evaluation):
    found = measure_adaptor_fidelity(evaluation)
    rows = {}
    for each in found:
        rows.setdefault(each.model, []).append(each.metric)
        assert -1 <= each.low < each.value < each.high <= 1
    assert rows == {
        "adaptor teacher_a before": ["summary", "centered summary", "features", "centered features"],
        "adaptor teacher_b before": ["features", "centered features"],
    }


def test_teachers_are_asked_once(evaluation, monkeypatch):
    asked = []
    extract = FeatureStore.extract
    monkeypatch.setattr(FeatureStore, "extract", lambda *a, **k: (asked.append(a[1].name), extract(*a, **k))[1])
    measure_adaptor_fidelity(evaluation)
    measure_adaptor_fidelity(
        Evaluation(**{name: getattr(evaluation, name) for name in evaluation.__dataclass_fields__})
    )
    assert asked.count("raw pixels") == 2  # one pass of each teacher


def test_sizes_are_measured_one_by_one(evaluation):
    values = {each.metric: each.value for each in measure_fidelity_over_sizes(evaluation) if "_b" in each.model}
    assert list(values) == [f"{size} px, {name}" for size in (16, 32) for name in ("features", "centered features")]
    assert values["16 px, features"] != values["32 px, features"]


def test_sizes_are_compared_on_middle_squares(evaluation, monkeypatch):
    seen = []
    extract = FeatureStore.extract

    def noted(store, model, images, *arguments, **options):
        seen.append({images.size(index) for index in range(len(images))})
        return extract(store, model, images, *arguments, **options)

    monkeypatch.setattr(FeatureStore, "extract", noted)
    measure_fidelity_over_sizes(evaluation)
    assert len(seen) == 2 * 3  # sizes; the student and both teachers
    assert all(height == width for sizes in seen for height, width in sizes)


def test_without_teachers_it_is_refused(pixels):
    with pytest.raises(ValueError, match="`adaptor_fidelity` needs the teachers of the model's adaptors"):
        measure_adaptor_fidelity(pixels())
    assert torch.is_grad_enabled()


def test_a_model_is_a_linear_map_of_itself_and_not_of_another(noisy_folders, tiny_model):
    student = RadioFeatures(tiny_model, size_px=32)
    teachers = {"itself": student, "pixels": RawPixels(8, 32)}
    evaluation = Evaluation(student, TableData(str(noisy_folders)), find_teachers=lambda: teachers)
    found = {(each.model, each.metric): each.value for each in measure_model_similarity(evaluation)}
    assert found["student beside itself", "CCA"] == pytest.approx(1, abs=1e-2)
    assert found["student beside itself", "model from teacher, R2"] == pytest.approx(1, abs=1e-2)
    assert found["student beside pixels", "CCA"] < 0.99
    one, other = (
        found["student beside pixels", f"{name}, R2"] for name in ("teacher from model", "model from teacher")
    )
    assert one != other


def test_model_similarity_without_teachers_is_refused(pixels):
    with pytest.raises(ValueError, match="`model_similarity` needs the teachers"):
        measure_model_similarity(pixels())
