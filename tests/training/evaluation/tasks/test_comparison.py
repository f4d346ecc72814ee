import pytest

from training.evaluation.data.tables import TableData
from training.evaluation.models.baselines import RawPixels
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import Evaluation
from training.evaluation.tasks.comparison import measure_model_similarity


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


def test_without_teachers_it_is_refused(pixels):
    with pytest.raises(ValueError, match="`model_similarity` needs the teachers"):
        measure_model_similarity(pixels())
