import torch

from training.evaluation.metrics.equivariance.position_predictor import position_r2


def test_positions_are_read_where_they_are_written():
    axis = torch.linspace(-1, 1, 6)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    # On unit features a linear map sees directions: a constant beside the place keeps them apart.
    features = torch.cat([places, torch.ones(1, 6, 6)])[None].expand(12, -1, -1, -1) + 0.01 * torch.randn(12, 3, 6, 6)
    assert position_r2(features[:6], features[6:]) > 0.8
    noise = torch.randn(12, 3, 6, 6)
    assert abs(position_r2(noise[:6], noise[6:])) < 0.1
