"""What is measured of features and blocks, on models of which the answer is known."""

import pytest
import torch
from torch.nn import functional as F

from training.evaluation.data_tables import TableData
from training.evaluation.metrics.representation import block_statistics, channel_statistics, effective_rank
from training.evaluation.models.pretrained import RawPixels
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import Evaluation, TaskSettings
from training.evaluation.tasks.representation import (
    measure_block_norms,
    measure_effective_rank,
    measure_feature_statistics,
    measure_fixed_pattern,
    measure_model_statistics,
    measure_position_predictor,
    measure_self_supervised,
    measure_shift_error,
    some_tokens,
)


class Placed(RawPixels):
    """Mean colors, to which each place adds a pattern of its own."""

    def __init__(self, strength: float) -> None:
        super().__init__(8, 16)
        self.strength = strength

    def encode(self, pixels, adaptors=()):
        features = F.avg_pool2d(pixels, 8)
        rows, cols = features.shape[2:]
        place = torch.stack(torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, cols), indexing="ij"))
        pattern = torch.cat([place, torch.ones(1, rows, cols)])
        return super().encode(pixels)._replace(features=features + self.strength * pattern)


@pytest.fixture
def placed(noisy_folders):
    data = TableData(str(noisy_folders))
    return lambda strength: Evaluation(Placed(strength), data, TaskSettings())


def test_a_pattern_of_places_is_seen_by_each_measure(placed):
    def values(measure):
        return [measure(placed(strength))[0].value for strength in (0.0, 3.0)]

    without, with_pattern = values(measure_fixed_pattern)
    assert without < 0.3
    assert with_pattern > 0.95
    without, with_pattern = values(measure_shift_error)
    assert without == pytest.approx(0, abs=1e-6)  # colors move with the image
    assert with_pattern > 0.5
    without, with_pattern = values(measure_position_predictor)
    assert without < 0.5 < with_pattern


def test_ranks_are_of_summaries_and_patches(placed):
    evaluation = placed(0.0)
    found = {each.metric: each.value for each in measure_effective_rank(evaluation)}
    assert found["summary"] == pytest.approx(effective_rank(evaluation.features("images").summary()))
    assert 1 < found["features"] <= 3


def test_extreme_channels_are_those_of_the_patches(placed):
    evaluation = placed(3.0)
    found = {each.metric: each.value for each in measure_feature_statistics(evaluation)}
    assert found == pytest.approx(channel_statistics(some_tokens(evaluation)))
    assert found["largest mean"] > 1  # the constant that the pattern adds


def test_views_are_compared_without_labels(placed):
    found = {each.metric: each.value for each in measure_self_supervised(placed(0.0))}
    assert set(found) == {"RankMe", "LiDAR"}
    assert all(value > 1 for value in found.values())


def test_norms_are_those_of_the_hidden_states(tiny_model, data):
    evaluation = Evaluation(RadioFeatures(tiny_model, size_px=16), data)
    found = {each.metric: each.value for each in measure_block_norms(evaluation)}
    with torch.no_grad():
        states = tiny_model(data.unlabeled / 255, adaptor_names=[], output_hidden_states=True).hidden_states
    norms = states[1][:, tiny_model.num_summary_tokens :].norm(dim=2)
    assert found == {
        "block 0, mean": pytest.approx(norms.mean().item(), rel=1e-5),
        "block 0, max": pytest.approx(norms.max().item(), rel=1e-5),
    }


def test_norms_are_of_radio_models(pixels):
    with pytest.raises(ValueError, match="`block_norms` needs a RADIO model, got 'raw pixels'"):
        measure_block_norms(pixels())


@torch.no_grad()
def test_extremes_are_those_of_all_images_and_the_rest_means(tiny_model, data):
    evaluation = Evaluation(RadioFeatures(tiny_model, size_px=16), data)
    found = {each.metric: each.value for each in measure_model_statistics(evaluation)}
    passes = [block_statistics(tiny_model, image[None] / 255)[0] for image in data.unlabeled]
    assert found == {
        "block 0, weight": pytest.approx(passes[0].weight),
        "block 0, entropy": pytest.approx(sum(each.entropy for each in passes) / len(passes), rel=1e-4),
        "block 0, logit": pytest.approx(max(each.logit for each in passes), rel=1e-4),
        "block 0, activation": pytest.approx(max(each.activation for each in passes), rel=1e-4),
    }


def test_statistics_are_of_radio_models(pixels):
    with pytest.raises(ValueError, match="`model_statistics` needs a RADIO model, got 'raw pixels'"):
        measure_model_statistics(pixels())
