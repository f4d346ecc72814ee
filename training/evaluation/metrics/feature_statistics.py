"""How the channels of features are distributed: those that are far off or far wider than the others."""

from __future__ import annotations

from torch import Tensor


def channel_statistics(tokens: Tensor) -> dict[str, float]:
    """Return what is extreme among the channels of features.

    Args:
        tokens: `(num_tokens, dim)`, at least two.

    Returns:
        "largest mean": the largest size of a channel's mean, in root mean squares of all features;
        "largest deviation": the largest standard deviation of a channel, in medians of all channels';
        "variance of the widest": that channel's share of the variance;
        "excess kurtosis": the mean over channels, 0 of normal ones: how heavy their tails are.
    """
    tokens = tokens.double()
    mean, deviation = tokens.mean(dim=0), tokens.std(dim=0, unbiased=False)
    root_mean_square = tokens.square().mean().sqrt().clamp(min=1e-12)
    standard = (tokens - mean) / deviation.clamp(min=1e-12)
    variance = deviation.square()
    return {
        "largest mean": (mean.abs().amax() / root_mean_square).item(),
        "largest deviation": (deviation.amax() / deviation.median().clamp(min=1e-12)).item(),
        "variance of the widest": (variance.amax() / variance.sum().clamp(min=1e-12)).item(),
        "excess kurtosis": (standard.pow(4).mean(dim=0)[deviation > 0].mean() - 3).item(),
    }
