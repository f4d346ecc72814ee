"""Functions of features: cosines, ranks, extreme channels; and statistics of a network's blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


if TYPE_CHECKING:
    from modeling_radio import RadioModel


REGULARIZATION = 1e-4  # LiDAR, section 4
EPSILON = 1e-7  # RankMe, eq. 1


def mean_cosine(features: Tensor, reference: Tensor) -> float:
    """Return the mean cosine of vectors, in [-1, 1].

    Args:
        features: `(num_vectors, dim)`, or maps `(num_images, dim, rows, cols)` of a vector for each position.
        reference: Vectors or maps of the same shape.
    """
    return F.cosine_similarity(features, reference, dim=1).mean().item()


def centered_cosine(features: Tensor, reference: Tensor) -> float:
    """Return the mean cosine about the reference's mean vector; shapes as in `mean_cosine`.

    Features of a network share a large mean, so a model that always returns that mean scores well on the plain cosine
    and zero here.
    """
    mean = reference.mean(dim=[axis for axis in range(reference.ndim) if axis != 1], keepdim=True)
    return mean_cosine(features - mean, reference - mean)


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of features, which falls where they collapse.

    `exp(-sum_i p_i ln p_i)` with `p_i = s_i / sum_j s_j` and `s_i` the singular values of the centered features.
    It lies between 1, where all lie on a line, and their rank, where all directions are used alike.

    Args:
        features: `(num_vectors, dim)`, at least two different ones; of maps, one vector for each position.

    Returns:
        The effective rank, at least 1 and at most `min(num_vectors - 1, dim)`.

    Raises:
        ValueError: If `features` has another shape, or all vectors are equal.

    References:
        Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007, definition 1; of the
        centered features is our choice, since a network's features share a large mean.
        As a measure of representations: RankMe, https://arxiv.org/abs/2210.02885
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"`features` must have the shape (num_vectors, dim) with at least two vectors, got {tuple(features.shape)}."
        )
    values = features.double()
    singular = torch.linalg.svdvals(values - values.mean(0))
    if singular.sum() == 0:
        raise ValueError("`features` must not all be equal: they have no direction.")
    shares = singular / singular.sum()
    return torch.special.entr(shares).sum().exp().item()


def rank_me(vectors: Tensor) -> float:
    """Return the effective rank of representations as they are, not centered.

    Args:
        vectors: `(num_images, dim)`.

    References:
        RankMe, eq. 1 and 2. https://arxiv.org/abs/2210.02885
    """
    return _effective(torch.linalg.svdvals(vectors.double()))


def lidar(views: Tensor) -> float:
    """Return the rank of the directions that tell images apart and do not change between views of one image.

    The effective rank of the eigenvalues of linear discriminant analysis, in which each image is a class.

    Args:
        views: `(num_images, num_views, dim)`, at least two of both.

    Raises:
        ValueError: If there are fewer.

    References:
        LiDAR, section 4. https://arxiv.org/abs/2312.04000
    """
    if views.ndim != 3 or min(views.shape[:2]) < 2:
        raise ValueError(f"`views` must be two or more views of two or more images, got {tuple(views.shape)}.")
    values = views.double()
    if values.shape[2] > values.shape[0] * values.shape[1]:  # nothing varies outside the span of the vectors
        centered = (values - values.mean((0, 1))).flatten(0, 1)
        rotated, scales, _ = torch.linalg.svd(centered, full_matrices=False)
        values = (rotated * scales).unflatten(0, views.shape[:2])
    means = values.mean(1)
    between = means - means.mean(0)
    within = (values - means[:, None]).flatten(0, 1)
    scatter = within.T @ within / len(within) + REGULARIZATION * torch.eye(values.shape[2], dtype=values.dtype)
    roots, directions = torch.linalg.eigh(scatter)
    whitened = between @ directions / roots.clamp(min=REGULARIZATION / 2).sqrt()
    eigenvalues = torch.linalg.svdvals(whitened / max(1, len(means) - 1) ** 0.5).square()
    return _effective(eigenvalues)


def _effective(values: Tensor) -> float:
    """Return the exponential of the entropy of values that are divided by their sum."""
    shares = values / values.sum() + EPSILON
    return torch.special.entr(shares).sum().exp().item()


def channel_statistics(tokens: Tensor) -> dict[str, float]:
    """Return how far the most extreme channels of features are from the others.

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


@dataclass(frozen=True)
class BlockStatistics:
    """Statistics of one block on some images.

    Attributes:
        weight: Root mean square of the numbers in its matrices.
        entropy: Mean entropy of a token's attention, as a share of that of equal attention to all, in [0, 1].
        logit: Largest size of an attention logit. Training in low precision diverges if it grows beyond about 50
            (ViT-22B, https://arxiv.org/abs/2302.05442, section 2).
        activation: Largest size of a number in the block's output.
    """

    weight: float
    entropy: float
    logit: float
    activation: float


def block_statistics(model: RadioModel, pixels: Tensor) -> list[BlockStatistics]:
    """Return the statistics of every block of a ViT on images `(batch, 3, height, width)`, with global attention.

    Raises:
        ValueError: If the network has no transformer's blocks.
    """
    if model.config.is_foreign:
        raise ValueError("`model_statistics` needs a network of our transformer blocks. Leave it out for this one.")
    blocks = list(model.blocks)
    with _recorded(blocks) as found:
        model(pixels, window_size="global", adaptor_names=[])
    statistics = []
    for block, own in zip(blocks, found, strict=True):
        matrices = [parameter for parameter in block.parameters() if parameter.ndim == 2]
        total = sum(matrix.double().square().sum().item() for matrix in matrices)
        statistics.append(BlockStatistics(math.sqrt(total / sum(matrix.numel() for matrix in matrices)), **own))
    return statistics


@torch.no_grad()
def block_norms(model: RadioModel, pixel_values: Tensor) -> list[Tensor]:
    """Return the Euclidean norm over channels of each patch token after each block, `(num_tokens,)` of all images.

    Attention is the model's own, with windows where its configuration has them. The blocks of a RADIO1D are those of
    its encoder, with fewer tokens after each merging.

    Args:
        model: In eval mode.
        pixel_values: `(batch, 3, height, width)` in [0, 1].

    References:
        Outlier patches: "Vision Transformers Need Registers", https://arxiv.org/abs/2309.16588
    """
    output = model(pixel_values, adaptor_names=[], output_hidden_states=True, return_dict=True)
    first_patch = model.config.num_prefix_tokens
    return [tokens[:, first_patch:].float().norm(dim=2).flatten() for tokens in output.hidden_states[1:]]


@contextmanager
def _recorded(blocks: list[nn.Module]) -> Iterator[list[dict[str, float]]]:
    """Record statistics of each block, one dictionary a block, during passes inside the `with` block."""
    found: list[dict[str, float]] = [{} for _ in blocks]
    handles = []
    for block, own in zip(blocks, found, strict=True):

        def before(attention: Any, arguments: tuple[Any, ...], own: dict[str, float] = own) -> None:
            own["entropy"], own["logit"] = attention_statistics(attention, *arguments[:2])

        def after(_: Any, __: Any, output: Any, own: dict[str, float] = own) -> None:
            own["activation"] = output.abs().amax().item()

        attention: Any = block.attn
        handles += [attention.register_forward_pre_hook(before), block.register_forward_hook(after)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def attention_statistics(attention: Any, hidden_states: Tensor, segments: Any) -> tuple[float, float]:
    """Return the entropy and the largest logit of an attention layer, head by head to keep memory small.

    Args:
        attention: A `RadioAttention`.
        hidden_states: Its input, `(batch, length, hidden)`.
        segments: Runs of segments, of which there must be one with one segment: global attention.
    """
    ((count, length),) = segments
    assert count == 1, "global attention"
    query, key, _ = attention.project(hidden_states).unbind(2)  # (batch, length, heads, head_dim)
    entropies, largest = [], 0.0
    for head in range(query.shape[2]):
        logits = (query[:, :, head] @ key[:, :, head].transpose(1, 2)).float() * attention.scaling
        logs = logits.log_softmax(dim=-1)
        entropies.append(-(logs.exp() * logs).sum(dim=-1).mean().item())
        largest = max(largest, logits.abs().amax().item())
    return sum(entropies) / len(entropies) / math.log(length), largest
