"""Tasks on features and blocks, on models of known answers."""

import pytest
import torch
from tiny_navit import build_navit
from tiny_radio1d import build_radio1d
from torch.nn import functional as F

from modeling_radio.evaluation.data_tables import TableData
from modeling_radio.evaluation.features import FeatureStore
from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.representation import (
    measure_adaptor_fidelity,
    measure_block_norms,
    measure_effective_rank,
    measure_feature_statistics,
    measure_fidelity_over_sizes,
    measure_fidelity_over_tokens,
    measure_fixed_pattern,
    measure_knn_over_tokens,
    measure_knn_over_widths,
    measure_model_similarity,
    measure_model_statistics,
    measure_position_predictor,
    measure_segmentation_over_tokens,
    measure_segmentation_over_widths,
    measure_self_supervised,
    measure_shift_error,
    some_tokens,
)
from modeling_radio.evaluation.tasks.settings import TaskSettings
from modeling_radio.figures.progress import WIDTH_TASKS, values_by_tokens
from modeling_radio.metrics.representation import (
    block_statistics,
    channel_statistics,
    effective_rank,
)


class Colors(RawPixels):
    """A teacher whose features are colors."""

    def __init__(self, summary_dim: int | None, feature_dim: int = 10) -> None:
        super().__init__(8, 16)
        self.summary_dim, self.feature_dim = summary_dim, feature_dim

    def encode(self, pixels, adaptors=()):
        features = F.avg_pool2d(pixels, 8).repeat(1, 4, 1, 1)[:, : self.feature_dim]
        summary = None if self.summary_dim is None else features.mean((2, 3))[:, : self.summary_dim]
        return super().encode(pixels)._replace(summary=summary, features=features)


@pytest.fixture
def distilled(tiny_model, noisy_folders) -> Evaluation:
    teachers = {"teacher_a": Colors(6), "teacher_b": Colors(None)}
    data, settings = TableData(str(noisy_folders)), TaskSettings(switching_sizes_px=[16, 32])
    model = RadioFeatures(tiny_model, name="student before", size_px=16)
    return Evaluation(model, data, settings, find_teachers=lambda: teachers)


@pytest.fixture
def passes(monkeypatch):
    """Name of the model and sizes of the images of each extraction."""
    made, extract = [], FeatureStore.extract

    def noted(store, model, images, *arguments, **options):
        made.append((model.name, {images.size(index) for index in range(len(images))}))
        return extract(store, model, images, *arguments, **options)

    monkeypatch.setattr(FeatureStore, "extract", noted)
    return made


def test_fidelity_over_sizes_is_of_middle_squares(distilled, passes):
    values = {each.metric: each.value for each in measure_fidelity_over_sizes(distilled) if "_b" in each.model}
    assert list(values) == [f"{size} px, {name}" for size in (16, 32) for name in ("features", "centered features")]
    assert values["16 px, features"] != values["32 px, features"]
    assert len(passes) == 2 * 3  # sizes; the student and both teachers
    assert all(height == width for _, sizes in passes for height, width in sizes)


def test_a_model_is_a_linear_map_of_itself_and_not_of_another(noisy_folders, tiny_model):
    student = RadioFeatures(tiny_model, size_px=32)
    teachers = {"itself": student, "pixels": RawPixels(8, 32)}
    evaluation = Evaluation(student, TableData(str(noisy_folders)), find_teachers=lambda: teachers)
    found = {(each.model, each.metric): each.value for each in measure_model_similarity(evaluation)}
    assert found["student beside itself", "CCA"] == pytest.approx(1, abs=1e-2)
    assert found["student beside itself", "model from teacher, R2"] == pytest.approx(1, abs=1e-2)
    assert found["student beside pixels", "CCA"] < 0.99
    one, other = (f"{name}, R2" for name in ("teacher from model", "model from teacher"))
    assert found["student beside pixels", one] != found["student beside pixels", other]


@pytest.mark.parametrize(
    "measure",
    [
        measure_adaptor_fidelity,
        measure_fidelity_over_sizes,
        measure_model_similarity,
        measure_block_norms,
        measure_model_statistics,
        measure_knn_over_tokens,
        measure_knn_over_widths,
    ],
)
def test_other_models_are_refused(measure, pixels):
    with pytest.raises(ValueError, match=f"`{measure.__name__.removeprefix('measure_')}` needs"):
        measure(pixels())


class Placed(RawPixels):
    """Mean colors, plus a pattern that depends on the position."""

    def __init__(self, strength: float) -> None:
        super().__init__(8, 16)
        self.strength = strength

    def encode(self, pixels, adaptors=()):
        features = F.avg_pool2d(pixels, 8)
        rows, cols = features.shape[2:]
        axes = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, cols), indexing="ij")
        pattern = torch.cat([torch.stack(axes), torch.ones(1, rows, cols)])
        return super().encode(pixels)._replace(features=features + self.strength * pattern)


@pytest.fixture
def placed(noisy_folders):
    data = TableData(str(noisy_folders))
    return lambda strength: Evaluation(Placed(strength), data, TaskSettings())


@pytest.mark.parametrize(
    ("measure", "largest_without", "least_with"),
    [(measure_fixed_pattern, 0.3, 0.95), (measure_shift_error, 1e-6, 0.5), (measure_position_predictor, 0.5, 0.5)],
)
def test_a_pattern_of_positions_is_measured(placed, measure, largest_without, least_with):
    assert measure(placed(0.0))[0].value < largest_without
    assert measure(placed(3.0))[0].value > least_with


def test_ranks_are_of_summaries_and_patches(placed):
    evaluation = placed(0.0)
    found = {each.metric: each.value for each in measure_effective_rank(evaluation)}
    assert found["summary"] == pytest.approx(effective_rank(evaluation.features("images").summary()))
    assert 1 < found["features"] <= 3
    found = {each.metric: each.value for each in measure_self_supervised(evaluation)}
    assert set(found) == {"RankMe", "LiDAR"}
    assert all(value > 1 for value in found.values())


def test_extreme_channels_are_those_of_the_patches(placed):
    evaluation = placed(3.0)
    found = {each.metric: each.value for each in measure_feature_statistics(evaluation)}
    assert found == pytest.approx(channel_statistics(some_tokens(evaluation)))
    assert found["largest mean"] > 1  # the constant of the pattern


@torch.no_grad()
def test_norms_and_statistics_are_those_of_the_blocks(tiny_model, data):
    evaluation = Evaluation(RadioFeatures(tiny_model, size_px=16), data)
    states = tiny_model(data.unlabeled / 255, adaptor_names=[], output_hidden_states=True).hidden_states
    norms = states[1][:, tiny_model.num_summary_tokens :].norm(dim=2)
    assert {each.metric: each.value for each in measure_block_norms(evaluation)} == {
        "block 0, mean": pytest.approx(norms.mean().item(), rel=1e-5),
        "block 0, max": pytest.approx(norms.max().item(), rel=1e-5),
    }
    passes = [block_statistics(tiny_model, image[None] / 255)[0] for image in data.unlabeled]
    assert {each.metric: each.value for each in measure_model_statistics(evaluation)} == {
        "block 0, weight": pytest.approx(passes[0].weight),
        "block 0, entropy": pytest.approx(sum(each.entropy for each in passes) / len(passes), rel=1e-4),
        "block 0, logit": pytest.approx(max(each.logit for each in passes), rel=1e-4),
        "block 0, activation": pytest.approx(max(each.activation for each in passes), rel=1e-4),
    }


@pytest.fixture
def radio1d(data) -> Evaluation:
    model = build_radio1d(patch_size=8, max_img_size=64)  # 4 x 4 patches of 32 px: four global tokens
    teachers = {"teacher_a": Colors(6), "teacher_b": Colors(None, 4)}
    settings = TaskSettings(neighbors=3, probe_steps=3)
    return Evaluation(RadioFeatures(model, size_px=32), data, settings, find_teachers=lambda: teachers)


def test_each_number_of_tokens_is_measured(radio1d):
    found = measure_knn_over_tokens(radio1d)
    accuracies = [each.metric for each in found if "mean" not in each.metric]
    assert accuracies == [f"{count} tokens, accuracy" for count in (1, 2, 4)]
    assert {each.task for each in found} == {"knn_over_tokens"}
    found = measure_segmentation_over_tokens(radio1d)
    assert {each.metric for each in found} >= {"1 tokens, mIoU", "4 tokens, mIoU"}
    assert radio1d.shown_masks == {}
    model = radio1d.model
    assert len({model.fingerprint(), model.with_tokens(1).fingerprint(), model.with_tokens(2).fingerprint()}) == 3


def test_each_width_is_measured(data):
    model = build_navit({"matryoshka": True}, hidden_size=256, patch_size=8, num_hidden_layers=1)
    evaluation = Evaluation(RadioFeatures(model, size_px=32), data, TaskSettings(neighbors=3, probe_steps=3))
    found = measure_knn_over_widths(evaluation)
    assert [each.metric for each in found if "mean" not in each.metric] == [
        "128 channels, accuracy",
        "256 channels, accuracy",
    ]
    found = measure_segmentation_over_widths(evaluation)
    assert {each.metric for each in found} >= {"128 channels, mIoU", "256 channels, mIoU"}
    narrow, pixels = evaluation.model.truncated(128), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        whole, cut = evaluation.model.encode(pixels), narrow.encode(pixels)
    assert torch.equal(cut.features, whole.features[:, :128])
    assert torch.equal(cut.summary, torch.cat([whole.summary[:, :128], whole.summary[:, 256:384]], dim=1))
    assert narrow.fingerprint() != evaluation.model.fingerprint()
    with pytest.raises(ValueError, match="`truncate_dim`"):
        evaluation.model.truncated(257)
    assert set(values_by_tokens(found, WIDTH_TASKS)["mIoU"]) == {"student"}


def test_all_tokens_are_the_plain_task(radio1d):
    plain = {(each.model, each.metric): each.value for each in measure_adaptor_fidelity(radio1d)}
    over = {(each.model, each.metric): each.value for each in measure_fidelity_over_tokens(radio1d)}
    for (model, metric), value in plain.items():
        assert over[model, f"4 tokens, {metric}"] == pytest.approx(value, abs=1e-6)
    assert any(over[model, f"1 tokens, {metric}"] != pytest.approx(value) for (model, metric), value in plain.items())
