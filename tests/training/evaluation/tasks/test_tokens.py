import pytest
from tiny_radio1d import build_radio1d
from torch.nn import functional as F

from training.evaluation.models.pretrained import RawPixels
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import Evaluation, TaskSettings
from training.evaluation.tasks.representation import (
    measure_fidelity_over_tokens,
    measure_knn_over_tokens,
    measure_segmentation_over_tokens,
    token_counts,
)


class Colors(RawPixels):
    """A teacher that answers with ten channels of color."""

    def __init__(self, summary_dim: int | None, feature_dim: int) -> None:
        super().__init__(8, 32)
        self.summary_dim, self.feature_dim = summary_dim, feature_dim

    def encode(self, pixels, adaptors=()):
        features = F.avg_pool2d(pixels, 8).repeat(1, 4, 1, 1)[:, : self.feature_dim]
        summary = None if self.summary_dim is None else features.mean((2, 3))[:, : self.summary_dim]
        return super().encode(pixels)._replace(summary=summary, features=features)


@pytest.fixture
def evaluation(data) -> Evaluation:
    model = build_radio1d(patch_size=8, max_img_size=64)  # 4 x 4 patches of 32 px: four global tokens
    teachers = {"teacher_a": Colors(6, 10), "teacher_b": Colors(None, 4)}
    settings = TaskSettings(neighbors=3, probe_steps=3)
    return Evaluation(RadioFeatures(model, size_px=32), data, settings, find_teachers=lambda: teachers)


@pytest.mark.parametrize(("available", "counts"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_powers_of_two_and_all(available, counts):
    assert token_counts(available) == counts


def test_each_number_is_measured(evaluation):
    found = measure_knn_over_tokens(evaluation)
    accuracies = [each.metric for each in found if "mean" not in each.metric]
    assert accuracies == [f"{count} tokens, accuracy" for count in (1, 2, 4)]
    assert {each.task for each in found} == {"knn_over_tokens"}


def test_all_tokens_are_what_the_plain_task_measures(evaluation):
    from training.evaluation.tasks.representation import measure_adaptor_fidelity

    plain = {(each.model, each.metric): each.value for each in measure_adaptor_fidelity(evaluation)}
    over = {(each.model, each.metric): each.value for each in measure_fidelity_over_tokens(evaluation)}
    for (model, metric), value in plain.items():
        assert over[model, f"4 tokens, {metric}"] == pytest.approx(value, abs=1e-6)
    differing = [key for key in plain if over[key[0], f"1 tokens, {key[1]}"] != pytest.approx(plain[key], abs=1e-6)]
    assert differing


def test_pictures_show_all_tokens(evaluation):
    found = measure_segmentation_over_tokens(evaluation)
    assert {each.metric for each in found} >= {"1 tokens, mIoU", "4 tokens, mIoU"}
    assert evaluation.shown_masks == {}


def test_answers_of_other_numbers_are_kept_apart(evaluation):
    model = evaluation.model
    assert len({model.fingerprint(), model.with_tokens(1).fingerprint(), model.with_tokens(2).fingerprint()}) == 3


def test_other_models_are_refused(data, tiny_model):
    for model in (RawPixels(8, 16), RadioFeatures(tiny_model, size_px=16)):
        with pytest.raises(ValueError, match="`knn_over_tokens` needs a RADIO1D"):
            measure_knn_over_tokens(Evaluation(model, data, TaskSettings()))
