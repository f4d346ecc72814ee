import pytest
import torch

from training.evaluation.metrics.dense import DepthScore, depth_errors, depth_sums


def test_errors_of_known_pixels_alone():
    true = torch.tensor([[[1.0, 2.0, 0.0, 4.0]]])
    predicted = torch.tensor([[[1.1, 3.0, 9.0, 4.0]]])
    found = depth_errors(depth_sums(predicted, true))
    assert found["abs_rel"] == pytest.approx((0.1 + 0.5 + 0) / 3)
    assert found["rmse"] == pytest.approx(((0.01 + 1) / 3) ** 0.5)
    assert found["delta1"] == pytest.approx(2 / 3)


def test_batches_add_up():
    pairs = torch.rand(2, 2, 3, 4) + 1, torch.rand(2, 2, 3, 4) + 1
    score = DepthScore()
    for predicted, true in zip(*pairs, strict=True):
        score.update(predicted, true)
    whole = DepthScore()
    whole.update(*(each.flatten(0, 1) for each in pairs))
    for name, value in score.compute().items():
        torch.testing.assert_close(value, whole.compute()[name])
    score.reset()
    assert score.compute()["rmse"].isnan()
