import pytest
import torch


@pytest.fixture
def features():
    """Three strong directions in channels 5, 2 and 0 (in that order), weak noise elsewhere."""
    features = 0.01 * torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    for channel, scale in [(5, 9.0), (2, 3.0), (0, 1.0)]:
        features[:, channel] += scale * torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(channel))
    return features
