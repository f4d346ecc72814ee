"""Outputs of chosen blocks, averaged over groups of them and standardized where the checkpoint has normalizers."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .configuration_radio import RadioConfig
from .network_radio import RadioNetwork
from .normalizers_radio import RadioIntermediateNormalizer
from .outputs_radio import NetworkPass


Aggregation = Literal["sparse", "dense"]
"""Each block's own output, or the mean of all blocks since the previous one that was asked for."""

ScaleOrder = Literal["post-alpha", "pre-alpha", "none"]
"""Whether normalizers scale the mean of a group by its mean scale, scale each block before, or do not run at all."""


def group_blocks(blocks: Sequence[int], aggregation: Aggregation) -> list[list[int]]:
    """Return the blocks whose outputs are averaged, for each one in `blocks`, which ascend."""
    if aggregation == "sparse":
        return [[block] for block in blocks]
    starts = [0, *(block + 1 for block in blocks)]
    return [list(range(start, block + 1)) for start, block in zip(starts, blocks, strict=False)]


def check_widths(config: RadioConfig, groups: Sequence[Sequence[int]]) -> None:
    """Refuse to average blocks of different widths, as RADIO1D has them.

    Raises:
        ValueError: If a group has some.
    """
    mixed = next((group for group in groups if len({config.count_merges(block) for block in group}) > 1), None)
    if mixed is not None:
        raise ValueError(
            f"`aggregation` must be 'sparse' for blocks {list(mixed)}, got 'dense': tokens are merged before "
            f"{config.downscale_levels}, and what they were cannot be averaged with what they are."
        )


def average_blocks(
    network: RadioNetwork, passed: NetworkPass, blocks: list[int], scale_order: ScaleOrder = "post-alpha"
) -> Tensor:
    """Return the mean output of some blocks, `(batch, length, hidden)`; normalizers do not touch prefix tokens.

    Args:
        network: What the images passed through.
        passed: What it returned, with all of `blocks` kept.
        blocks: 0-based, ascending.
        scale_order: How normalizers scale a mean.
    """
    outputs = [passed.kept[block].to(passed.tokens.device) for block in blocks]
    tokens = torch.stack(outputs).mean(dim=0)
    normalizer = network.inter_feature_normalizer
    if normalizer is None or scale_order == "none":
        return tokens
    if scale_order == "post-alpha":
        features = normalizer(network.patch_features(tokens), blocks)
    else:
        features = _scale_each(normalizer, [network.patch_features(output) for output in outputs], blocks)
    return torch.cat([tokens[:, : network.config.num_prefix_tokens], features], dim=1)


def _scale_each(normalizer: RadioIntermediateNormalizer, features: list[Tensor], blocks: list[int]) -> Tensor:
    """Center and scale each block's features by its own numbers, then average and rotate them by the last one's."""
    scaled = [
        normalizer.alphas[block] * (part - normalizer.means[block])
        for block, part in zip(blocks, features, strict=True)
    ]
    rotation = normalizer.rotation if normalizer.rotation.ndim == 2 else normalizer.rotation[blocks[-1]]
    return torch.stack(scaled).mean(dim=0) @ rotation.T
