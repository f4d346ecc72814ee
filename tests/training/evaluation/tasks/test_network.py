import pytest
import torch

from training.evaluation.metrics.network_statistics import block_statistics
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import Evaluation
from training.evaluation.tasks.network import measure_model_statistics


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
