import pytest
import torch

from training.evaluation.metrics.correlation import gather_alike


def test_noise_within_alike_patches_is_averaged_out():
    is_right = (torch.arange(8) >= 4).expand(8, 8)
    features = torch.stack([is_right, ~is_right]).float()[None]
    values = torch.stack([is_right, ~is_right]).float()[None] + 0.5 * torch.randn(1, 2, 8, 8)
    gathered = gather_alike(values, features)
    for side in (is_right, ~is_right):
        torch.testing.assert_close(gathered[0][:, side].std(1), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(gathered[0][:, side].mean(1), values[0][:, side].mean(1), atol=1e-3, rtol=0)


def test_other_grids_are_refused():
    with pytest.raises(ValueError, match=r"`features` must have the grid of `values`, \(4, 4\), got \(2, 4\)"):
        gather_alike(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 4))
